"""The evidence, held against the definition written as loops; blocks make no difference."""

import numpy as np
import pytest

from dim.audit import evidence as module
from dim.audit.evidence import NEUTRAL, crowding, evidence


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


def naive(vectors, codes, crowded):
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
    own = said[np.arange(n), codes].copy()
    said[np.arange(n), codes] = -np.inf
    return own, said.max(axis=1), said.argmax(axis=1), any_pair, same - any_pair


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "labels"), [(1024, 4096), (3, 2)])
def test_evidence_equals_its_definition(monkeypatch, seed, rows, labels):
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "LABELS", labels)
    given = photos(seed)
    found, expected = evidence(*given), naive(*given)
    for name, value in zip(("own", "other", "other_label", "any_pair", "scale"), expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-6)
    np.testing.assert_allclose(found.score, expected[1] - expected[0], atol=1e-6)


def test_crowding_is_over_the_neighbours_there_are():
    np.testing.assert_allclose(crowding(np.array([[0.5, 0.25], [0.75, -np.inf]])), [0.375, 0.75])
