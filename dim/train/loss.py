"""The triplet loss, which the training minimises."""

from typing import Any

from dim.model.backend import ops


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
