"""R-MAC of maps whose size is unknown until run time, as a graph of Keras's operations that loads without dim.

`regions` cuts regions out by indices. How many there are depends on the size, and no operation of Keras makes indices
of a number that is not known. Here each level has as many regions as it could have at most, each a mask over the map.
That is more work, though little beside a backbone's: what knows the size, or needs the regions alone, cuts them out.

The network as a plain Keras model, which loads where there is no dim, on any of Keras's backends.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dim.model import network
from dim.model.backend import keras, ops
from dim.model.layers import l2_normalise, positions
from dim.model.pooling import RMAC, STEPS, GeM, gem, more
from dim.model.spec import Source

LOWEST = float(np.finfo(np.float32).min)


def rmac(maps: Any, levels: int, whiten: Callable[[Any], Any] | None) -> Any:
    """`regions.rmac`: maps (N, H, W, K) → (N, D); `whiten` takes vectors (…, K) to (…, D)."""
    down, across = (ops.cast(positions(maps, axis), "int32") for axis in (1, 2))
    height, width = (ops.max(line, axis=1, keepdims=True) + 1 for line in (down, across))
    short = ops.minimum(height, width)
    total = 0
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        (rows, top), (columns, left) = (
            _spans(line, length, short, side, level) for line, length in ((down, height), (across, width))
        )
        vectors = l2_normalise(_maxima(_maxima(maps, columns), rows))
        if whiten is not None:
            vectors = l2_normalise(whiten(vectors))
        # A region of side 0 (on a map one pixel wide, above level 1) is none.
        exists = ops.cast(ops.minimum(side, 1), maps.dtype) * left
        total += ops.einsum("nrck,nr,nc->nk", vectors, ops.cast(top, maps.dtype), exists)
    return total


def _spans(line: Any, length: Any, short: Any, side: Any, level: int) -> tuple[Any, Any]:
    """The regions of a level along a side of the map, of which `line` (N, L) has the positions: whether each position
    is in each region, (N, R, L), and whether that is a region (1) or stands for one that this size doesn't have (0).
    """
    last = level - 1 + more(length, short, ops)[:, None]
    number = np.arange(level + len(STEPS), dtype=np.int32)
    starts = (ops.minimum(last, number) * (length - side) // ops.maximum(last, 1))[:, :, None]
    line = line[:, None]
    inside = ops.logical_and(line >= starts, line < starts + ops.maximum(side, 1)[:, :, None])
    return inside, ops.cast(ops.greater_equal(last, number), "float32")


def _maxima(maps: Any, inside: Any) -> Any:
    """Maps (N, A, B, K) and masks (N, R, B) → the maxima along B in each of the masks, (N, R, A, K)."""
    one_by_one = (inside[:, number, :, None][:, None] for number in range(inside.shape[1]))
    return ops.stack([ops.max(ops.where(mask, maps, LOWEST), axis=2) for mask in one_by_one], axis=1)


def portable(source: Source) -> keras.Model:
    """The network of `source`: uint8 (N, H, W, 3), RGB → float32 (N, D), L2-normalised, of Keras's own layers alone.

    H and W are the image size where photos are squashed to it, else any.
    """
    size = source.spec.image_size if source.spec.resize == "squash" else None
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.models.clone_model(
        network.load(source), input_tensors=images, clone_function=lambda layer: layer, call_function=_call
    )


def _call(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
    # What a layer of dim's computes is made of Keras's operations: called by itself, it leaves these in the graph.
    # A weight of its own is none of the graph's, so it becomes a constant or a layer.
    if isinstance(layer, GeM):
        return gem(arguments[0], layer.get_weights()[0].item())
    if isinstance(layer, RMAC):
        return rmac(arguments[0], layer.levels, _whitening(layer))
    if type(layer).__module__.startswith("dim."):
        return layer.call(*arguments)
    return layer(*arguments, **options)


def _whitening(layer: RMAC) -> keras.layers.Layer | None:
    """The whitening of R-MAC's regions, or None where there is none."""
    if layer.dimension is None:
        return None
    dense = keras.layers.Dense(layer.dimension, name="whitening", dtype="float32")
    kernel, bias = layer.get_weights()
    dense.build(kernel.shape[:1])
    dense.set_weights([kernel, bias])
    return dense
