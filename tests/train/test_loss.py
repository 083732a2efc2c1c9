"""Each loss against a naive loop, its gradient against finite differences, and AP against its limits."""

import math
import typing
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from dim.train.config import LossName, TrainConfig
from dim.train.loss import LOSSES, ap_loss, contrastive_loss, multi_similarity_loss, quantised_ap, triplet_loss

LABELS = np.array([0, 1, 0, 2, 1, 0, 3, 1, 2, 4])  # the photos of 3 and 4 have no positive


def unit(*shape):
    vectors = np.random.default_rng(0).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def triplets() -> np.ndarray:
    """Anchors, positives and negatives (3, 20, 5), float64, of length 1."""
    return unit(3, 20, 5)


def naive_triplet(triplets: np.ndarray, margin: float) -> list[float]:
    found = []
    for anchor, positive, negative in triplets.transpose(1, 0, 2):
        distance_ap = sum((a - p) ** 2 for a, p in zip(anchor, positive, strict=True))
        distance_an = sum((a - n) ** 2 for a, n in zip(anchor, negative, strict=True))
        found.append(max(0.0, margin + distance_ap - distance_an))
    return found


def naive_contrastive(triplets: np.ndarray, margin: float) -> list[float]:
    found = []
    for anchor, positive, negative in triplets.transpose(1, 0, 2):
        pairs = [(math.dist(anchor, positive), 1), (math.dist(anchor, negative), 0)]
        found.append(sum((y * d**2 + (1 - y) * max(0.0, margin - d) ** 2) / 2 for d, y in pairs))
    return found


def naive_ap(vectors: np.ndarray, bins: int, most: float = 2.0) -> list[float]:
    found, width = [], 2 / (bins - 1)
    for query, label in enumerate(LABELS):
        others = [row for row in range(len(LABELS)) if row != query]
        others = [row for row in others if LABELS[row] == label or vectors[query] @ vectors[row] <= most]
        positives = [row for row in others if LABELS[row] == label]
        right = listed = ap = 0.0
        for number in range(bins):
            weights = {
                row: max(0.0, 1 - abs(vectors[query] @ vectors[row] - 1 + number * width) / width) for row in others
            }
            gained = sum(weights[row] for row in positives)
            right, listed = right + gained, listed + sum(weights.values())
            if gained:
                ap += right / listed * gained / len(positives)
        found.append(1 - ap if positives else 0.0)
    return found


def naive_multi_similarity(vectors: np.ndarray, most: float = 2.0) -> list[float]:
    found = []
    for anchor, label in enumerate(LABELS):
        scores = [float(vectors[anchor] @ vector) for vector in vectors]
        positives = [scores[row] for row in range(len(LABELS)) if LABELS[row] == label and row != anchor]
        negatives = [scores[row] for row in range(len(LABELS)) if LABELS[row] != label and scores[row] <= most]
        hard_positives = [s for s in positives if s < max(negatives) + 0.1]
        hard_negatives = [s for s in negatives if positives and s > min(positives) - 0.1]
        pull = math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in hard_positives)) / 2
        push = math.log(1 + sum(math.exp(40 * (s - 0.5)) for s in hard_negatives)) / 40
        found.append(pull + push)
    return found


def ap_of(bins):
    return lambda vectors: ap_loss(vectors, LABELS, bins=bins), partial(naive_ap, bins=bins)


def of_triplets(loss, naive, margin):
    return lambda parts: loss(parts[0], parts[1], parts[2], margin), partial(naive, margin=margin)


# The loss and its naive loop, of one array: triplets (3, B, D), or descriptors (N, D).
CASES = {
    "triplet": (*of_triplets(triplet_loss, naive_triplet, 0.1), unit(3, 20, 5)),
    "contrastive": (*of_triplets(contrastive_loss, naive_contrastive, 1.2), unit(3, 20, 5)),
    "ap": (*ap_of(20), unit(len(LABELS), 3)),
    "ap of three bins": (*ap_of(3), unit(len(LABELS), 3)),
    "ap without the most similar negatives": (
        lambda vectors: ap_loss(vectors, LABELS, 0.5, bins=20),
        partial(naive_ap, bins=20, most=0.5),
        unit(len(LABELS), 3),
    ),
    "multi-similarity": (
        lambda vectors: multi_similarity_loss(vectors, LABELS),
        naive_multi_similarity,
        unit(len(LABELS), 3),
    ),
    "multi-similarity without the most similar negatives": (
        lambda vectors: multi_similarity_loss(vectors, LABELS, 0.5),
        partial(naive_multi_similarity, most=0.5),
        unit(len(LABELS), 3),
    ),
}
cases = pytest.mark.parametrize(("loss", "naive", "vectors"), CASES.values(), ids=CASES)


@pytest.mark.parametrize("margin", [0.1, 0.0, 1.0])
def test_some_triplets_have_no_triplet_loss(triplets, margin):
    found = triplet_loss(*triplets, margin)
    np.testing.assert_allclose(found, naive_triplet(triplets, margin), rtol=1e-12, atol=1e-12)
    assert 0 < np.count_nonzero(found) < 20


@cases
def test_equals_a_naive_loop(loss, naive, vectors):
    found = loss(tf.constant(vectors)).numpy()
    np.testing.assert_allclose(found, naive(vectors), rtol=1e-9, atol=1e-12)
    assert len(np.unique(found)) > 3


def gradient(loss, vectors: np.ndarray) -> np.ndarray:
    constant = tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch(constant)
        total = tf.reduce_sum(loss(constant))
    return tape.gradient(total, constant).numpy()


@cases
def test_gradient_equals_finite_differences(loss, naive, vectors):
    found = gradient(loss, vectors)
    for index in np.ndindex(vectors.shape):
        step = np.zeros_like(vectors)
        step[index] = 1e-6
        higher, lower = (sum(naive(vectors + sign * step)) for sign in (1, -1))
        assert found[index] == pytest.approx((higher - lower) / 2e-6, abs=1e-6)


def test_gradient_of_the_triplet_loss_is_the_formulas(triplets):
    anchor, positive, negative = triplets
    active = np.array(naive_triplet(triplets, 0.1))[:, None] > 0
    # Gordo's, which are of half this loss: n − p, p − a, a − n.
    expected = 2 * active * np.array([negative - positive, positive - anchor, anchor - negative])
    found = gradient(lambda parts: triplet_loss(parts[0], parts[1], parts[2], 0.1), triplets)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", typing.get_args(LossName))
def test_equal_descriptors_give_finite_gradients(name):
    vectors, loss = np.repeat(unit(1, 4).astype(np.float32), 6, axis=0), LOSSES[name]
    function = loss.function(TrainConfig())
    labels = np.array([0, 1, 0, 1, 2, 2])
    found = gradient(lambda parts: function(parts, labels) if loss.listwise else function(parts, parts, parts), vectors)
    assert np.isfinite(found).all()


def test_every_loss_has_a_flag():
    assert set(typing.get_args(LossName)) == set(LOSSES)


def test_ap_of_separated_scores_is_the_exact_one():
    """Each score is the centre of a bin of its own, so that no two photos share a bin."""
    generator, bins = np.random.default_rng(1), 2001
    scores = np.array([generator.choice(np.linspace(-1, 1, bins), 40, replace=False) for _ in range(5)])
    positives = (generator.random((5, 40)) < 0.2).astype(float)
    positives[4] = 0  # a query without a positive
    found = quantised_ap(tf.constant(scores), positives, np.ones_like(scores), bins).numpy()
    for row in range(4):
        ranks = np.flatnonzero(positives[row][np.argsort(-scores[row])])
        expected = np.mean([(count + 1) / (rank + 1) for count, rank in enumerate(ranks)])
        assert found[row] == pytest.approx(expected, rel=1e-9)
    assert found[4] == 0


def test_ap_of_a_perfect_batch_is_one():
    vectors = np.eye(5, dtype=np.float32)[LABELS]
    np.testing.assert_allclose(ap_loss(tf.constant(vectors), LABELS, bins=20), 0, atol=1e-6)
    np.testing.assert_allclose(multi_similarity_loss(tf.constant(vectors), LABELS), 0, atol=1e-6)
