"""Where the pixels of a map are, as values: a graph of Keras's operations has no way to ask for a size that is unknown
until run time, but it can count.
"""

from typing import Any

from dim.model.backend import ops


def positions(maps: Any, axis: int) -> Any:
    """0, 1, … along the height (axis 1) or width (axis 2) of maps (N, H, W, K), for each image: (N, H) or (N, W)."""
    line = maps[:, :, 0, 0] if axis == 1 else maps[:, 0, :, 0]
    return ops.cumsum(ops.ones_like(line), axis=1) - 1
