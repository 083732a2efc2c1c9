"""The nearest photos of a label, against a loop; parts, units, memory and workers make no difference."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from dim.audit import photos as audited
from dim.audit import within_label
from dim.search.exact import Part
from dim.search.exact_scores import on_grid


def of(vectors, codes, parts, **machine):
    bounds = np.linspace(0, len(codes), parts + 1).astype(int).tolist()
    loaded = [Part(a, b - a, lambda a=a, b=b: vectors[a:b]) for a, b in itertools.pairwise(bounds)]
    labels = pa.array([None if code < 0 else f"{code:03d}" for code in codes], pa.string())
    return audited.of(
        loaded, pa.chunked_array([[f"{row:04d}" for row in range(len(codes))]]), labels, labels, **machine
    )


@pytest.mark.parametrize("count", [1, 3])
def test_the_nearest_of_a_label_are_those_of_a_loop(monkeypatch, count):
    generator = np.random.default_rng(count)
    vectors = generator.standard_normal((60, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = vectors[3]  # equal ones
    codes = generator.integers(-1, 9, 60)
    codes[[3, 7]] = 0
    codes = np.unique(codes, return_inverse=True)[1] - 1
    crowded = generator.uniform(0, 1, 60)
    crowded[7] = crowded[3]
    rows = generator.integers(0, 60, 25)
    labels = generator.integers(0, codes.max() + 1, 25)
    exact = on_grid(vectors)
    expected = []
    for row, label in zip(rows, labels, strict=True):
        others = [other for other in range(60) if codes[other] == label and other != row]
        likeness = {other: 2 * exact[row] @ exact[other] - crowded[other] - crowded[row] for other in others}
        best = sorted(others, key=lambda other: (-likeness[other], other))[:count]
        missing = count - len(best)
        expected.append((best + [-1] * missing, [likeness[other] for other in best] + [-np.inf] * missing))
    found = []
    for parts, least, share, workers in ((1, 100, 2**30, 1), (2, 1, 2**30, 2), (7, 20, 8 * 12 * 4, 3), (3, 1, 1, 7)):
        monkeypatch.setattr(audited, "UNIT_ROWS", least)
        monkeypatch.setattr(within_label, "_ASKING", 1 + share % 5)
        photos = of(vectors, codes, parts, share=share, workers=workers)
        found.append(within_label.nearest(photos, rows, labels, crowded, count))
    np.testing.assert_array_equal(found[0][0], [best for best, _ in expected])
    np.testing.assert_allclose(found[0][1], [likeness for _, likeness in expected], atol=1e-12)
    for others, likeness in found[1:]:
        np.testing.assert_array_equal(others, found[0][0])
        np.testing.assert_array_equal(likeness, found[0][1])
