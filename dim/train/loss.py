"""The losses of `--loss`, which the training minimises.

A loss of tuples takes the mined triplets. A listwise loss takes all photos of a batch with their labels, so that it
compares each photo with all others. All descriptors are L2-normalised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dim.model.backend import ops
from dim.train.config import TrainConfig

ANY = 2.0  # no cosine is greater
TINY = 1e-12  # squared distance below which two descriptors count as equal: the direction between them is unknown


def triplet_loss(anchors: Any, positives: Any, negatives: Any, margin: float) -> Any:
    """The triplet loss max(0, m + ‖a − p‖² − ‖a − n‖²).

    Gordo et al. (Deep Image Retrieval, arXiv:1604.01325, section 3.2) add a factor ½, which only scales the gradient.

    Args:
        anchors: L2-normalised descriptors, (B, D).
        positives: Descriptors of photos with the anchor's label, (B, D).
        negatives: Descriptors of photos with another label, (B, D).
        margin: m. If the negative's squared distance exceeds the positive's by m or more, the loss is 0.

    Returns:
        The loss of each triplet, (B,).
    """
    distance_ap = ops.sum(ops.square(anchors - positives), axis=-1)
    distance_an = ops.sum(ops.square(anchors - negatives), axis=-1)
    return ops.relu(margin + distance_ap - distance_an)


def contrastive_loss(anchors: Any, positives: Any, negatives: Any, margin: float) -> Any:
    """The contrastive loss of the pairs anchor–positive and anchor–negative: ½‖a − p‖² + ½ max(0, τ − ‖a − n‖)².

    Radenović et al. (Fine-tuning CNN Image Retrieval with No Human Annotation, arXiv:1711.02512, equation 4). A pair
    that is in several triplets counts in each of them.

    Args:
        anchors: L2-normalised descriptors, (B, D).
        positives: Descriptors of photos with the anchor's label, (B, D).
        negatives: Descriptors of photos with another label, (B, D).
        margin: τ. A negative at this distance (not squared) or farther adds nothing.

    Returns:
        The loss of the two pairs of each triplet, (B,).
    """
    distance_ap = ops.sum(ops.square(anchors - positives), axis=-1)
    distance_an = ops.sqrt(ops.maximum(ops.sum(ops.square(anchors - negatives), axis=-1), TINY))
    return (distance_ap + ops.square(ops.relu(margin - distance_an))) / 2


def ap_loss(descriptors: Any, labels: Any, most_similar: Any = ANY, *, bins: int) -> Any:
    """1 − AP of each photo as a query among the others of the batch, with the AP of quantised scores.

    Revaud et al. (Learning with Average Precision, arXiv:1906.07589, section 3.2); see `quantised_ap`.

    Args:
        descriptors: L2-normalised, (N, D). The scores are their inner products.
        labels: Whole numbers, (N,). The positives of a photo are the other photos with its label.
        most_similar: The greatest cosine of a negative. A more similar photo with another label is left out.
        bins: M, the number of bins.

    Returns:
        The loss of each photo, (N,). It is 0 for a photo without a positive.
    """
    scores, positives, negatives = _pairs(descriptors, labels, most_similar)
    precisions = quantised_ap(scores, positives, positives + negatives, bins)
    return ops.where(ops.any(positives > 0, axis=1), 1 - precisions, 0)


def quantised_ap(scores: Any, positives: Any, listed: Any, bins: int) -> Any:
    """The average precision of quantised scores, which has a gradient.

    The centres of the M bins are b_m = 1 − (m − 1)Δ with Δ = 2 / (M − 1), from 1 down to −1. A score s belongs to bin m
    with the weight δ(s, m) = max(0, 1 − |s − b_m| / Δ), so mostly to two bins. If the weights in bin m add up to n_m
    for all photos and to p_m for the P positives, AP = Σ_m (p_1 + … + p_m) / (n_1 + … + n_m) · p_m / P.

    Revaud et al., arXiv:1906.07589, equations 4 to 8.

    Args:
        scores: From −1 to 1, (Q, N).
        positives: 1 for the right answers of each query, else 0, (Q, N).
        listed: 1 for the photos of each query's list, else 0, (Q, N).
        bins: M.

    Returns:
        The AP of each query, (Q,). It is 0 for a query without a positive.
    """
    centres = ops.linspace(1.0, -1.0, bins, dtype=scores.dtype)
    weights = ops.relu(1 - ops.abs(scores[:, :, None] - centres) * (bins - 1) / 2)
    right = ops.einsum("qn,qnm->qm", positives, weights)
    found = ops.einsum("qn,qnm->qm", listed, weights)
    precisions = ops.divide_no_nan(ops.cumsum(right, axis=1), ops.cumsum(found, axis=1))
    return ops.divide_no_nan(ops.sum(precisions * right, axis=1), ops.sum(positives, axis=1))


def multi_similarity_loss(
    descriptors: Any,
    labels: Any,
    most_similar: Any = ANY,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    slack: float = 0.1,
) -> Any:
    """The multi-similarity loss log(1 + Σ_p exp(−α(s_p − λ))) / α + log(1 + Σ_n exp(β(s_n − λ))) / β of each photo.

    The sums go over the photo's hard pairs: the negatives that are more similar than its least similar positive less
    ε, and the positives that are less similar than its most similar negative plus ε.

    Wang et al. (Multi-Similarity Loss, arXiv:1904.06627, equations 11, 12 and 15). The values of the constants are
    those of the authors' code.

    Args:
        descriptors: L2-normalised, (N, D). The similarities s are their inner products.
        labels: Whole numbers, (N,). The positives of a photo are the other photos with its label.
        most_similar: The greatest cosine of a negative. A more similar photo with another label is left out.
        alpha: α, how much the least similar positives outweigh the others.
        beta: β, how much the most similar negatives outweigh the others.
        base: λ, the similarity that separates positives from negatives.
        slack: ε.

    Returns:
        The loss of each photo, (N,). It is 0 for a photo without a hard pair, such as one without a positive.
    """
    scores, positives, negatives = _pairs(descriptors, labels, most_similar)
    least = ops.min(ops.where(positives > 0, scores, 2.0), axis=1, keepdims=True)  # no score is above 1
    most = ops.max(ops.where(negatives > 0, scores, -2.0), axis=1, keepdims=True)
    hard_positives = positives * ops.cast(scores < most + slack, scores.dtype)
    hard_negatives = negatives * ops.cast(scores > least - slack, scores.dtype)
    of_positives = ops.sum(hard_positives * ops.exp(-alpha * (scores - base)), axis=1)
    of_negatives = ops.sum(hard_negatives * ops.exp(beta * (scores - base)), axis=1)
    return ops.log1p(of_positives) / alpha + ops.log1p(of_negatives) / beta


def _pairs(descriptors: Any, labels: Any, most_similar: Any) -> tuple[Any, Any, Any]:
    """The scores of all pairs, and which pairs are positives and negatives: 1 or 0; each (N, N)."""
    scores = ops.matmul(descriptors, ops.transpose(descriptors))
    same = ops.cast(labels[:, None] == labels[None, :], scores.dtype)
    negatives = (1 - same) * ops.cast(scores <= most_similar, scores.dtype)
    return scores, same - ops.eye(ops.shape(labels)[0], dtype=scores.dtype), negatives


@dataclass(frozen=True)
class Loss:
    """A value of `--loss`.

    `function` makes the loss from the flags. If `listwise`, the loss takes the descriptors and labels of all photos of
    a batch, (N, D) and (N,), and the greatest cosine of a negative, and returns the loss of each photo. Otherwise, it
    takes the descriptors of the anchors, positives and negatives, each (B, D), and returns the loss of each triplet.
    """

    listwise: bool
    function: Callable[[TrainConfig], Callable[..., Any]]


LOSSES = {
    "triplet": Loss(False, lambda config: partial(triplet_loss, margin=config.margin)),
    "contrastive": Loss(False, lambda config: partial(contrastive_loss, margin=config.contrastive_margin)),
    "ap": Loss(True, lambda config: partial(ap_loss, bins=config.ap_bins)),
    "multi-similarity": Loss(True, lambda _: multi_similarity_loss),
}
