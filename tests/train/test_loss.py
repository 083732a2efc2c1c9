"""The triplet loss against a loop, its gradient against the formula and finite differences."""

import numpy as np
import pytest
import tensorflow as tf

from dim.train.loss import triplet_loss


@pytest.fixture(scope="module")
def triplets() -> np.ndarray:
    """Anchors, positives and negatives (3, 20, 5), float64, of length 1."""
    vectors = np.random.default_rng(0).normal(size=(3, 20, 5))
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


def losses(triplets: np.ndarray, margin: float) -> list[float]:
    found = []
    for anchor, positive, negative in triplets.transpose(1, 0, 2):
        distance_ap = sum((a - p) ** 2 for a, p in zip(anchor, positive, strict=True))
        distance_an = sum((a - n) ** 2 for a, n in zip(anchor, negative, strict=True))
        found.append(max(0.0, margin + distance_ap - distance_an))
    return found


@pytest.mark.parametrize("margin", [0.1, 0.0, 1.0])
def test_equals_a_naive_loop(triplets, margin):
    found = triplet_loss(*triplets, margin)
    np.testing.assert_allclose(found, losses(triplets, margin), rtol=1e-12, atol=1e-12)
    assert 0 < np.count_nonzero(found) < 20


def gradients(triplets: np.ndarray, margin: float) -> np.ndarray:
    parts = [tf.constant(part) for part in triplets]
    with tf.GradientTape() as tape:
        tape.watch(parts)
        total = tf.reduce_sum(triplet_loss(*parts, margin))
    return np.array([part.numpy() for part in tape.gradient(total, parts)])


def test_gradient_is_the_formulas(triplets):
    anchor, positive, negative = triplets
    active = np.array(losses(triplets, 0.1))[:, None] > 0
    # Gordo's, which are of half this loss: n − p, p − a, a − n.
    expected = 2 * active * np.array([negative - positive, positive - anchor, anchor - negative])
    np.testing.assert_allclose(gradients(triplets, 0.1), expected, atol=1e-12)


def test_gradient_equals_finite_differences(triplets):
    found = gradients(triplets, 0.1)
    for index in np.ndindex(triplets.shape):
        step = np.zeros_like(triplets)
        step[index] = 1e-6
        higher, lower = (sum(losses(triplets + sign * step, 0.1)) for sign in (1, -1))
        assert found[index] == pytest.approx((higher - lower) / 2e-6, abs=1e-6)
