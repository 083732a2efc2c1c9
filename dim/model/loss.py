"""The triplet loss.

L = max(0, m + ‖a − p‖² − ‖a − n‖²) over L2-normalised descriptors; m = 0.1 by default. (Gordo et al., 1604.01325,
section 3.2, has a factor ½, which only scales the learning rate.)
"""

from typing import Any

from dim.model.backend import ops


def triplet_loss(anchors: Any, positives: Any, negatives: Any, margin: float) -> Any:
    """The loss of each triplet, (B,), from its descriptors, each (B, D)."""
    distance_ap = ops.sum(ops.square(anchors - positives), axis=-1)
    distance_an = ops.sum(ops.square(anchors - negatives), axis=-1)
    return ops.relu(margin + distance_ap - distance_an)
