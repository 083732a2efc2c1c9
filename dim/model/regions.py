"""R-MAC (Tolias et al., 1511.05879, section 3.2): the sum of the maxima of square regions at several scales.

Level l has regions of side ⌊2w / (l + 1)⌋, with w the map's shorter side: l of them along that side, and along the
longer side as many more as bring the overlap of neighbours on level 1 closest to 40 %.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dim.model.backend import ops
from dim.model.normalisation import l2_normalise

STEPS = np.arange(6)


def more(length: Any, short: Any, xp: Any) -> Any:
    """How many regions a level has along a side of `length` beyond those it has along the shorter one, up to
    len(STEPS): of numbers, or of tensors (…, 1) one for each.
    """
    # s + 1 more regions overlap closer to 40 % than s do if the excess / short > 6/5 s(s + 1) / (2s + 1).
    return xp.sum((length - short) * (5 * (2 * STEPS + 1)) > short * (6 * STEPS * (STEPS + 1)), axis=-1)


def _starts(length: Any, short: Any, side: Any, level: int, xp: Any) -> Any:
    """Where the regions of a level start along a map's side of `length`, in whole numbers throughout, so that the same
    map has the same regions everywhere. (The original's float rounding differs at 9:5, 11:3 and a few sizes above 60.)
    """
    count = level + more(length, short, xp)
    return xp.arange(count) * (length - side) // xp.maximum(count - 1, 1)


def regions(height: int, width: int, levels: int = 3) -> Iterator[tuple[int, int, int]]:
    """The regions of a map (top, left, side), in the order of `region_maxima`."""
    short = min(height, width)
    for level in range(1, levels + 1):
        if side := 2 * short // (level + 1):
            down, across = (_starts(length, short, side, level, np).tolist() for length in (height, width))
            yield from ((top, left, side) for top in down for left in across)


def region_maxima(maps: Any, levels: int = 3) -> Any:
    """The maximum of each channel in each region: maps (N, H, W, K) → (N, R, K), level by level.

    A maximum over a rectangle is the maximum down of the maxima across, so that no region is ever cut out: beside the
    maps there is at any time about twice their size.
    """
    _, height, width, channels = ops.shape(maps)
    # Sizes that are known are worked out here, others in the graph.
    xp: Any = np if isinstance(height, int) and isinstance(width, int) else ops
    short = xp.minimum(height, width)
    found = []
    for level in range(1, levels + 1):
        # A region of side 0 (on a map one pixel wide, above level 1) is none; it is left out once it has a shape.
        exists = xp.minimum(2 * short // (level + 1), 1)
        side = xp.maximum(2 * short // (level + 1), 1)
        down, across = (
            _starts(length, short, side, level, xp)[:, None] + xp.arange(side) for length in (height, width)
        )
        strips = ops.max(ops.take(maps, across, axis=2), axis=3)
        maxima = ops.max(ops.take(strips, down, axis=1), axis=2)
        count = ops.shape(down)[0] * ops.shape(across)[0]
        found.append(ops.reshape(maxima, (-1, count, channels))[:, : count * exists])
    return ops.concatenate(found, axis=1)


def rmac(maps: Any, levels: int = 3, kernel: Any = None, bias: Any = None) -> Any:
    """R-MAC: Σ over regions of L2(L2(maxima) · kernel + bias), maps (N, H, W, K) → (N, D).

    `kernel` (K, D) and `bias` (D,) whiten the regions, as `Whitening.as_dense` gives them; without them D = K and the
    regions are only normalised.
    """
    vectors = l2_normalise(region_maxima(maps, levels))
    if kernel is not None:
        vectors = l2_normalise(ops.matmul(vectors, kernel) + bias)
    return ops.sum(vectors, axis=1)
