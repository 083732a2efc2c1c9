"""The triplet loss, which the training minimises."""

from typing import Any

from dim.model.backend import ops


def triplet_loss(anchors: Any, positives: Any, negatives: Any, margin: float) -> Any:
    """The triplet loss max(0, m + ‖a − p‖² − ‖a − n‖²), without the factor ½ of Gordo et al.

    The factor only scales the learning rate. (Deep Image Retrieval, arXiv:1604.01325, section 3.2.)

    Args:
        anchors: L2-normalised descriptors, (B, D).
        positives: Descriptors of photos with the anchor's label, (B, D).
        negatives: Descriptors of photos with another label, (B, D).
        margin: How much farther, in squared distance, a negative must be than the positive to cost nothing.

    Returns:
        The loss of each triplet, (B,).
    """
    distance_ap = ops.sum(ops.square(anchors - positives), axis=-1)
    distance_an = ops.sum(ops.square(anchors - negatives), axis=-1)
    return ops.relu(margin + distance_ap - distance_an)
