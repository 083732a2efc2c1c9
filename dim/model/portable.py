"""The network as a plain Keras model, which loads where there is no dim, on any of Keras's backends."""

from typing import Any

from dim.model import network, region_masks
from dim.model.backend import keras
from dim.model.pooling import RMAC, GeM, gem
from dim.model.spec import Source


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
        return region_masks.rmac(arguments[0], layer.levels, _whitening(layer))
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
