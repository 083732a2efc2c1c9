"""The evidence, held against the definition written as loops; blocks make no difference."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from dim.app import tasks
from dim.audit import evidence as module
from dim.audit import label_sums, neighbours
from dim.audit import photos as audited
from dim.audit.evidence import NEUTRAL, crowding, evidence
from dim.audit.neighbours import Neighbours
from dim.errors import UserError
from dim.search.exact import Part


def photos(seed, labels=9, most=5):
    generator = np.random.default_rng(seed)
    codes = np.repeat(np.arange(labels), generator.integers(1, most + 1, labels))
    codes[:2] = codes[0]  # one label has two photos
    codes = np.unique(codes, return_inverse=True)[1]
    centres = generator.standard_normal((labels, 16))
    vectors = centres[codes] + generator.standard_normal((len(codes), 16))
    order = generator.permutation(len(codes))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[order], codes[order], generator.uniform(0, 1, len(codes))


def of(vectors, codes, parts=3, **machine):
    """These photos, in parts of which none is empty. A photo with the code −1 has no label."""
    bounds = np.linspace(0, len(codes), parts + 1).astype(int).tolist()
    loaded = [Part(a, b - a, lambda a=a, b=b: vectors[a:b]) for a, b in itertools.pairwise(bounds)]
    labels = pa.chunked_array([pa.array([None if code < 0 else f"{code:03d}" for code in codes], pa.string())])
    ids = pa.chunked_array([pa.array([f"{row:04d}" for row in range(len(codes))])])
    return audited.of(loaded, ids, labels, labels, **machine)


@pytest.mark.parametrize("workers", [None, 3])
def test_the_exact_search_of_neighbours_has_the_workers(monkeypatch, workers):
    asked, run = [], tasks.spread
    monkeypatch.setattr(tasks, "spread", lambda *given, **how: asked.append(how["workers"]) or run(*given, **how))
    neighbours.by_comparison(of(*photos(0)[:2], workers=workers))
    assert asked == [workers]


def near(crowded, rows=None):
    """Neighbours of which these are the crowding."""
    found = np.zeros((len(crowded), 1), int) if rows is None else rows
    return Neighbours(found, np.repeat(crowded[:, None], found.shape[1], 1), rows is not None)


def naive(vectors, codes, crowded):
    """Own evidence, that of the strongest other label, this label, `any` and `scale`."""
    said, any_pair, scale = _said(vectors, codes, crowded)
    own = said[np.arange(len(codes)), codes].copy()
    said[np.arange(len(codes)), codes] = -np.inf
    return own, said.max(axis=1), said.argmax(axis=1), any_pair, scale


def naive_of_labels(vectors, codes, crowded):
    """The evidence of each label for each photo."""
    return _said(vectors, codes, crowded)[0]


def _said(vectors, codes, crowded):
    n, labels = len(codes), codes.max() + 1
    x = vectors.astype(np.float64)
    c = np.array([[2 * x[i] @ x[j] - crowded[i] - crowded[j] for j in range(n)] for i in range(n)])
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    same = np.mean([c[i, j] for i, j in pairs if codes[i] == codes[j]])
    any_pair = np.mean([c[i, j] for i, j in pairs])
    middle = (same + any_pair) / 2
    said = np.zeros((n, labels))
    for i in range(n):
        for label in range(labels):
            others = [j for j in range(n) if codes[j] == label and j != i]
            said[i, label] = sum(c[i, j] - middle for j in others) / (len(others) + NEUTRAL) / (same - any_pair)
    return said, any_pair, same - any_pair


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "labels"), [(1024, 4096), (3, 2)])
@pytest.mark.parametrize("share", [2**30, 1])
def test_evidence_equals_its_definition(monkeypatch, seed, rows, labels, share):
    monkeypatch.setattr(module, "ROWS", rows)
    for place in (module, label_sums):
        monkeypatch.setattr(place, "LABELS", labels)
    given = photos(seed)
    found, expected = evidence(of(*given[:2], share=share), near(given[2])), naive(*given)
    for name, value in zip(("own", "other", "other_label", "any_pair", "scale"), expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-6)
    np.testing.assert_allclose(found.score, expected[1] - expected[0], atol=1e-6)


def test_parts_units_slices_and_workers_make_no_difference(monkeypatch):
    given = photos(7, labels=20)
    monkeypatch.setattr(label_sums, "LABELS", 3)
    monkeypatch.setattr(module, "LABELS", 3)
    first = evidence(of(*given[:2]), near(given[2]))
    for parts, rows, share, workers in ((3, 1, 1, 1), (3, 20, 1, 3), (3, 1, 4 * 8 * 16, 7)):
        monkeypatch.setattr(audited, "UNIT_ROWS", rows)
        again = evidence(of(*given[:2], parts, share=share, workers=workers), near(given[2]))
        for name in ("own", "other", "other_label", "any_pair", "scale"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_of_the_labels_that_an_index_proposes_the_strongest_is_found():
    vectors, codes, crowded = photos(3)
    codes[5] = -1
    codes = np.unique(codes, return_inverse=True)[1] - 1
    rows = np.random.default_rng(1).integers(-1, len(codes), (len(codes), 4))
    rows[8] = -1
    used = codes >= 0
    all_of = naive_of_labels(vectors[used], codes[used], crowded[used])
    found = evidence(of(vectors, codes), near(crowded, rows))
    for place, row in enumerate(np.flatnonzero(used)):
        asked = {codes[other] for other in rows[row] if other >= 0} - {codes[row], -1}
        best = max(((all_of[place, label], -label) for label in asked), default=(-np.inf, 1))
        assert (found.other[row], -found.other_label[row]) == pytest.approx(best)
    assert np.isnan(found.own[5]) and found.other_label[8] == -1


def test_the_mean_within_a_label_is_that_of_its_definition():
    vectors, codes, crowded = photos(4)
    mean = evidence(of(vectors, codes), near(crowded)).mean_within(codes)
    for row, code in enumerate(codes):
        others = np.flatnonzero((codes == code) & (np.arange(len(codes)) != row))
        likeness = 2 * vectors[others] @ vectors[row] - crowded[others] - crowded[row]
        assert mean[row] == pytest.approx(likeness.mean(), abs=1e-6) if len(others) else np.isnan(mean[row])


@pytest.mark.parametrize("length", [0.9, 0.0, np.nan])
def test_descriptors_that_are_not_normalised_are_refused(length):
    vectors, codes, crowded = photos(0)
    vectors[3] *= length
    with pytest.raises(UserError, match=f"a descriptor has the length {length:.4f}, not 1"):
        evidence(of(vectors, codes), near(crowded))


def test_crowding_is_over_the_neighbours_there_are():
    np.testing.assert_allclose(crowding(np.array([[0.5, 0.25], [0.75, -np.inf]])), [0.375, 0.75])
