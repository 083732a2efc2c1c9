"""The network as a plain Keras model, which loads where there is no dim, on any of Keras's backends."""

from typing import Any

from dim.errors import UserError
from dim.model import network
from dim.model.backend import keras
from dim.model.pooling import GeM, gem
from dim.model.spec import Source

_FIXED_SIZE = ("rmac", "spoc-prior")  # what they compute depends on the map's size


def portable(source: Source) -> keras.Model:
    """The network of `source`: uint8 (N, H, W, 3), RGB → float32 (N, D), L2-normalised, of Keras's own layers alone.

    H and W are the image size where photos are squashed to it, else any. Raises UserError where the pooling must know
    the size but photos keep their aspect.
    """
    size = source.spec.image_size if source.spec.resize == "squash" else None
    if size is None and source.spec.pooling in _FIXED_SIZE:
        raise UserError(
            f"pooling {source.spec.pooling} is exported to Keras for one size of photos; "
            "use --resize squash, or --format onnx"
        )
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.models.clone_model(
        network.load(source), input_tensors=images, clone_function=lambda layer: layer, call_function=_call
    )


def _call(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
    # What a layer of dim's computes is made of Keras's operations: called by itself, it leaves these in the graph.
    # A weight of its own is none of the graph's, so it becomes a constant.
    if isinstance(layer, GeM):
        return gem(arguments[0], layer.get_weights()[0].item())
    if type(layer).__module__.startswith("dim."):
        return layer.call(*arguments)
    return layer(*arguments, **options)
