"""Exports the network as an ONNX graph. ONNX Runtime runs it without Keras, TensorFlow or dim.

Keras's own export makes the graph, through tf2onnx. This module then gives the graph's input and output the names and
shapes that the README documents.
"""

import logging
import tempfile
import warnings

import onnx
from onnx import TensorProto, helper

from dim.errors import UserError
from dim.model import network
from dim.model.backend import keras
from dim.model.spec import Source

OPSET = 18  # of ONNX 1.13


def model_of(source: Source) -> onnx.ModelProto:
    """Converts the network of `source`, in float32.

    Args:
        source: The network, as `dim.model.spec.resolve` returns it.

    Returns:
        A model with the input "images", uint8 RGB (N, H, W, 3), and the output "descriptors", L2-normalised (N, D).
        H and W are the image size if the spec squashes photos, else any.

    Raises:
        UserError: tf2onnx cannot translate an operation of the backbone.
    """
    spec = source.spec
    size = spec.image_size if spec.resize == "squash" else None
    model = network.load(source)
    made = _converted(model, size)
    graph = made.graph
    graph.node.append(helper.make_node("Identity", [graph.output[0].name], ["descriptors"]))
    side = ["height", "width"] if size is None else [size, size]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["photos", *side, 3])
    descriptors = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["photos", model.output_shape[-1]])
    graph.input[0].CopyFrom(images)
    graph.output[0].CopyFrom(descriptors)
    try:
        onnx.checker.check_model(made)
    except onnx.checker.ValidationError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"backbone {spec.backbone} is not exported to ONNX: {reason}; use --format keras") from error
    return made


def _converted(model: keras.Model, size: int | None) -> onnx.ModelProto:
    """The graph that Keras's export makes of `model`, for photos of `size` × `size` pixels or of any size."""
    images = keras.InputSpec(shape=(None, size, size, 3), dtype="uint8", name="images")
    # tf2onnx logs the operations that it cannot translate. The checker finds them, too, and they become one error.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Keras patches tf2onnx for NumPy 2 and thereby triggers this warning.
        warnings.filterwarnings("ignore", r"In the future `np\.object`", FutureWarning)
        path = f"{folder}/model.onnx"
        model.export(path, format="onnx", verbose=False, input_signature=[images], opset_version=OPSET)
        return onnx.load(path)
