"""Exports the network as a plain Keras model, which any backend of Keras loads without dim.

Each layer of dim is replaced by the Keras operations that it consists of. For this, R-MAC needs a second algorithm:
`dim.model.pooling` gathers each region by index, and no operation of Keras makes an index of a length that is unknown
until run time. Here each region is a mask over the map. The number of masks is fixed: it allows for the most regions
that a level can have on a map of any size. The masks cost little compared with the backbone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dim.model import network
from dim.model.backend import keras, ops
from dim.model.layers import l2_normalise, positions
from dim.model.pooling import MOST_EXTRA, RMAC, GeM, extra_regions, gem
from dim.model.spec import Source

LOWEST = float(np.finfo(np.float32).min)  # replaces the activations outside a mask


def model_of(source: Source) -> keras.Model:
    """Builds the network of `source` from Keras's own layers and operations alone.

    Returns:
        A model from uint8 RGB (N, H, W, 3) to L2-normalised float32 descriptors (N, D). If the spec squashes photos, H
        and W must be the spec's image size; otherwise they may have any value.
    """
    size = source.spec.image_size if source.spec.resize == "squash" else None
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.models.clone_model(
        network.load(source), input_tensors=images, clone_function=lambda layer: layer, call_function=_call
    )


def _call(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
    """Applies a layer. If it is a layer of dim, the graph gets only the Keras operations of its `call`."""
    # The weights of a layer of dim would not be saved. So GeM's become a constant, and R-MAC's a Dense layer.
    if isinstance(layer, GeM):
        return gem(arguments[0], layer.get_weights()[0].item())
    if isinstance(layer, RMAC):
        return masked_rmac(arguments[0], layer.levels, _whitening(layer))
    if type(layer).__module__.startswith("dim."):
        return layer.call(*arguments)
    return layer(*arguments, **options)


def _whitening(layer: RMAC) -> keras.layers.Layer | None:
    """Returns the whitening of R-MAC's regions as a Dense layer, or None if the regions are not whitened."""
    if layer.dimension is None:
        return None
    dense = keras.layers.Dense(layer.dimension, name="whitening", dtype="float32")
    kernel, bias = layer.get_weights()
    dense.build(kernel.shape[:1])
    dense.set_weights([kernel, bias])
    return dense


def masked_rmac(maps: Any, levels: int, whiten: Callable[[Any], Any] | None) -> Any:
    """Computes `dim.model.pooling.rmac` with masks: maps (N, H, W, K) → (N, D).

    `whiten` maps vectors (..., K) to (..., D). If it is None, the regions are only normalised.
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
    """Places the R regions of a level along one side of the map. `line` (N, L) holds the positions along this side.

    Returns whether each position is in each region, bool (N, R, L), and whether each region exists, 1 or 0, (N, R).
    """
    last = level - 1 + extra_regions(length, short, ops)[:, None]
    number = np.arange(level + MOST_EXTRA, dtype=np.int32)
    starts = (ops.minimum(last, number) * (length - side) // ops.maximum(last, 1))[:, :, None]
    line = line[:, None]
    inside = ops.logical_and(line >= starts, line < starts + ops.maximum(side, 1)[:, :, None])
    return inside, ops.cast(ops.greater_equal(last, number), "float32")


def _maxima(maps: Any, inside: Any) -> Any:
    """Returns the maximum of maps (N, A, B, K) along B within each of the masks `inside` (N, R, B): (N, R, A, K)."""
    one_by_one = (inside[:, number, :, None][:, None] for number in range(inside.shape[1]))
    return ops.stack([ops.max(ops.where(mask, maps, LOWEST), axis=2) for mask in one_by_one], axis=1)
