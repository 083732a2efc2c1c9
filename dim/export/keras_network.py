"""Exports the network as a plain Keras model, which loads without dim on any backend of Keras.

Layers of dim become the Keras operations that they consist of. R-MAC needs a second algorithm for this:
`dim.model.pooling` gathers regions by index, and no operation of Keras makes an index of a length that is unknown until
run time. Here each level has as many regions as a map of any size can have, each as a mask. The masks cost little
compared with the backbone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dim.model import network
from dim.model.backend import keras, ops
from dim.model.layers import l2_normalise, positions
from dim.model.pooling import MOST_EXTRA, RMAC, GeM, extra_regions, gem
from dim.model.spec import Source

LOWEST = float(np.finfo(np.float32).min)


def model_of(source: Source) -> keras.Model:
    """Builds the network of `source` from Keras's own layers and operations alone.

    Returns:
        A model from uint8 RGB (N, H, W, 3) to L2-normalised float32 descriptors (N, D). H and W are the image size if
        the spec squashes photos, else any.
    """
    size = source.spec.image_size if source.spec.resize == "squash" else None
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.models.clone_model(
        network.load(source), input_tensors=images, clone_function=lambda layer: layer, call_function=_call
    )


def _call(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
    """Applies a layer. A layer of dim leaves only the Keras operations of its `call` in the graph."""
    # Such a layer's weights would not be saved with the graph, so they become a constant or a Dense layer.
    if isinstance(layer, GeM):
        return gem(arguments[0], layer.get_weights()[0].item())
    if isinstance(layer, RMAC):
        return masked_rmac(arguments[0], layer.levels, _whitening(layer))
    if type(layer).__module__.startswith("dim."):
        return layer.call(*arguments)
    return layer(*arguments, **options)


def _whitening(layer: RMAC) -> keras.layers.Layer | None:
    """The whitening of R-MAC's regions as a Dense layer, or None if there is none."""
    if layer.dimension is None:
        return None
    dense = keras.layers.Dense(layer.dimension, name="whitening", dtype="float32")
    kernel, bias = layer.get_weights()
    dense.build(kernel.shape[:1])
    dense.set_weights([kernel, bias])
    return dense


def masked_rmac(maps: Any, levels: int, whiten: Callable[[Any], Any] | None) -> Any:
    """`dim.model.pooling.rmac` by masks: maps (N, H, W, K) → (N, D).

    `whiten` maps vectors (..., K) to (..., D); None only normalises the regions.
    """
    down, across = (ops.cast(positions(maps, axis), "int32") for axis in (1, 2))
    height, width = (ops.max(line, axis=1, keepdims=True) + 1 for line in (down, across))
    short = ops.minimum(height, width)
    total = 0
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        (rows, top), (columns, left) = (
            _masks(line, length, short, side, level) for line, length in ((down, height), (across, width))
        )
        vectors = l2_normalise(_maxima(_maxima(maps, columns), rows))
        if whiten is not None:
            vectors = l2_normalise(whiten(vectors))
        # On a map one pixel wide, regions above level 1 have side 0 and do not count.
        exists = ops.cast(ops.minimum(side, 1), maps.dtype) * left
        total += ops.einsum("nrck,nr,nc->nk", vectors, ops.cast(top, maps.dtype), exists)
    return total


def _masks(line: Any, length: Any, short: Any, side: Any, level: int) -> tuple[Any, Any]:
    """The regions of a level along one side of the map; `line` (N, L) holds the positions along this side.

    Returns whether each position is in each region, (N, R, L), and whether a map of this size has that region, 1 or 0.
    """
    last = level - 1 + extra_regions(length, short, ops)[:, None]
    number = np.arange(level + MOST_EXTRA, dtype=np.int32)
    starts = (ops.minimum(last, number) * (length - side) // ops.maximum(last, 1))[:, :, None]
    line = line[:, None]
    inside = ops.logical_and(line >= starts, line < starts + ops.maximum(side, 1)[:, :, None])
    return inside, ops.cast(ops.greater_equal(last, number), "float32")


def _maxima(maps: Any, inside: Any) -> Any:
    """Maps (N, A, B, K) and masks (N, R, B) → the maximum along B within each mask, (N, R, A, K)."""
    one_by_one = (inside[:, number, :, None][:, None] for number in range(inside.shape[1]))
    return ops.stack([ops.max(ops.where(mask, maps, LOWEST), axis=2) for mask in one_by_one], axis=1)
