"""The network as an ONNX graph, written node by node: what runs it needs neither Keras nor TensorFlow, nor dim.

(The converters that Keras calls want versions of TensorFlow and protobuf that dim can't have.) Maps are (N, K, H, W)
here, as ONNX has them. The layers of the backbone are translated one by one by `LAYERS`; the head is what
`dim.model.pooling` defines.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dim.errors import UserError
from dim.model import network
from dim.model.backend import keras
from dim.model.normalisation import EPSILON as SHORTEST
from dim.model.pooling import EPSILON
from dim.model.preprocessing import PREPROCESSINGS
from dim.model.regions import regions
from dim.model.spec import Source, Spec

OPSET, IR_VERSION = 18, 10  # of ONNX 1.14 and 1.16
SPATIAL = (2, 3)


class Graph:
    """Nodes and constants as they are added; each is known by the name of its one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant array."""
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node."""
        output = name or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def reduce(self, operator: str, x: str, axes: tuple[int, ...], keep: bool = False) -> str:
        """A reduction of `x` over `axes`, such as ReduceMax."""
        return self.add(operator, x, self.constant(axes, np.int64), keepdims=int(keep))

    def l2(self, x: str) -> str:
        """x / max(‖x‖₂, 1e-6) along the last axis."""
        length = self.reduce("ReduceL2", x, (-1,), keep=True)
        return self.add("Div", x, self.add("Max", length, self.constant(SHORTEST)))


def model_of(source: Source) -> onnx.ModelProto:
    """The network of `source`, float32: "images", uint8 RGB (N, H, W, 3), → "descriptors" (N, D), L2-normalised.

    H and W are the image size where photos are squashed to it, else any. Raises UserError where a layer of the backbone
    has no translation, or the pooling must know the size but photos keep their aspect.
    """
    spec, graph = source.spec, Graph()
    size = spec.image_size if spec.resize == "squash" else None
    if size is None and spec.pooling in ("rmac", "spoc-prior"):
        raise UserError(f"pooling {spec.pooling} is exported for one size of photos; use --resize squash")
    model = network.load(source)
    x = _backbone(graph, model, spec)
    x = POOLINGS[spec.pooling](graph, x, model.get_layer("pooling"), _map_size(model, spec, size))
    x = graph.l2(x)
    if spec.dimension is not None:
        kernel, bias = model.get_layer("pca").get_weights()
        x = graph.l2(graph.add("Gemm", x, graph.constant(kernel), graph.constant(bias)))
    graph.add("Identity", x, name="descriptors")
    side = ["height", "width"] if size is None else [size, size]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["photos", *side, 3])
    found = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["photos", model.output_shape[-1]])
    made = helper.make_model(
        helper.make_graph(graph.nodes, "descriptor", [images], [found], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dim",
    )
    onnx.checker.check_model(made)
    return made


def _map_size(model: keras.Model, spec: Spec, size: int | None) -> tuple[int, int]:
    """Height and width of the map that is pooled; zeros where they aren't known."""
    if size is None:
        return 0, 0
    part = network.part(model, None, spec.layer)
    _, height, width, _ = part.compute_output_shape((None, size, size, 3))
    return height, width


def _backbone(graph: Graph, model: keras.Model, spec: Spec) -> str:
    """From the images to the layer that is pooled."""
    outputs = {id(model.input): "images"}
    for layer in model.layers[1:]:
        translate = LAYERS.get(type(layer).__name__)
        if translate is None:
            raise UserError(
                f"backbone {spec.backbone} is not exported to ONNX: its layer {layer.name!r} ({type(layer).__name__}) "
                "has no translation; use --format keras"
            )
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        output = translate(graph, layer, *(outputs[id(tensor)] for tensor in given))
        outputs[id(layer.output)] = output
        if layer.name == spec.layer:
            return output
    raise AssertionError(f"no layer {spec.layer}")


def _preprocess(graph: Graph, layer: Any, images: str) -> str:
    how = PREPROCESSINGS[layer.mode]
    x = graph.add("Transpose", graph.add("Cast", images, to=TensorProto.FLOAT), perm=(0, 3, 1, 2))
    if how.order == "bgr":
        x = graph.add("Gather", x, graph.constant((2, 1, 0), np.int64), axis=1)
    mean, scale = (graph.constant(np.reshape(values, (1, 3, 1, 1))) for values in (how.mean, how.scale))
    return graph.add("Div", graph.add("Sub", x, mean), scale)


def _activated(graph: Graph, layer: Any, x: str) -> str:
    name = layer.activation.__name__
    if name == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    operators = {"relu": "Relu", "sigmoid": "Sigmoid", "linear": "Identity"}
    return graph.add(operators[name], x)


def _padding(layer: Any) -> dict[str, str]:
    return {"auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID"}


def _convolution(graph: Graph, layer: Any, x: str) -> str:
    kernel, *bias = layer.get_weights()
    groups = 1
    if type(layer).__name__ == "DepthwiseConv2D":  # (H, W, K, 1)
        groups, kernel = kernel.shape[2], np.transpose(kernel, (0, 1, 3, 2))
    constants = [graph.constant(np.transpose(kernel, (3, 2, 0, 1))), *map(graph.constant, bias)]
    x = graph.add(
        "Conv", x, *constants, strides=layer.strides, dilations=layer.dilation_rate, group=groups, **_padding(layer)
    )
    return _activated(graph, layer, x)


def _normalisation(graph: Graph, layer: Any, x: str) -> str:
    constants = map(graph.constant, (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance))
    return graph.add("BatchNormalization", x, *constants, epsilon=layer.epsilon)


def _zeros(graph: Graph, layer: Any, x: str) -> str:
    (top, bottom), (left, right) = layer.padding
    return graph.add("Pad", x, graph.constant((0, 0, top, left, 0, 0, bottom, right), np.int64))


def _reshape(graph: Graph, layer: Any, x: str) -> str:
    height, width, channels = layer.target_shape  # of a vector that is spread over a map: (1, 1, K)
    return graph.add("Reshape", x, graph.constant((-1, channels, height, width), np.int64))


LAYERS: dict[str, Callable[..., str]] = {
    "Preprocess": _preprocess,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "BatchNormalization": _normalisation,
    "ZeroPadding2D": _zeros,
    "Reshape": _reshape,
    "Activation": _activated,
    "MaxPooling2D": lambda graph, layer, x: graph.add(
        "MaxPool", x, kernel_shape=layer.pool_size, strides=layer.strides, **_padding(layer)
    ),
    "GlobalAveragePooling2D": lambda graph, layer, x: graph.reduce("ReduceMean", x, SPATIAL, layer.keepdims),
    "Add": lambda graph, _, *inputs: graph.add("Sum", *inputs),
    "Multiply": lambda graph, _, one, other: graph.add("Mul", one, other),
    "Dropout": lambda _, __, x: x,
}


def _spoc_prior(graph: Graph, maps: str, _: Any, size: tuple[int, int]) -> str:
    sigma = min(size) / 6
    down, across = (np.exp(-np.square((np.arange(side) - (side - 1) / 2) / sigma) / 2) for side in size)
    return graph.reduce("ReduceSum", graph.add("Mul", maps, graph.constant(np.outer(down, across))), SPATIAL)


def _gem(graph: Graph, maps: str, layer: Any, _: tuple[int, int]) -> str:
    maps = graph.add("Max", maps, graph.constant(EPSILON))
    largest = graph.reduce("ReduceMax", maps, SPATIAL, keep=True)
    exponent = float(layer.get_weights()[0])
    powers = graph.add("Pow", graph.add("Div", maps, largest), graph.constant(exponent))
    mean = graph.add("Pow", graph.reduce("ReduceMean", powers, SPATIAL), graph.constant(1 / exponent))
    return graph.add("Mul", graph.reduce("ReduceMax", maps, SPATIAL), mean)


def _crow(graph: Graph, maps: str, *_: Any) -> str:
    zero, one = graph.constant(0), graph.constant(1)
    total = graph.reduce("ReduceSum", maps, (1,), keep=True)
    length = graph.reduce("ReduceL2", total, (1, *SPATIAL), keep=True)
    length = graph.add("Where", graph.add("Greater", length, zero), length, one)
    spatial = graph.add("Sqrt", graph.add("Div", total, length))
    active = graph.add("Cast", graph.add("Greater", maps, zero), to=TensorProto.FLOAT)
    share = graph.reduce("ReduceMean", active, SPATIAL)
    there = graph.add("Greater", share, zero)
    ratio = graph.add("Div", graph.reduce("ReduceSum", share, (1,), keep=True), graph.add("Where", there, share, one))
    channel = graph.add("Where", there, graph.add("Log", graph.add("Where", there, ratio, one)), zero)
    return graph.add("Mul", channel, graph.reduce("ReduceSum", graph.add("Mul", spatial, maps), SPATIAL))


def _rmac(graph: Graph, maps: str, layer: Any, size: tuple[int, int]) -> str:
    axes, found = graph.constant(SPATIAL, np.int64), []
    for top, left, side in regions(*size, layer.levels):
        corners = [graph.constant(values, np.int64) for values in ((top, left), (top + side, left + side))]
        maxima = graph.reduce("ReduceMax", graph.add("Slice", maps, *corners, axes), SPATIAL)
        found.append(graph.add("Unsqueeze", maxima, graph.constant((1,), np.int64)))
    vectors = graph.l2(graph.add("Concat", *found, axis=1))
    if layer.dimension is not None:
        kernel, bias = map(graph.constant, layer.get_weights())
        vectors = graph.l2(graph.add("Add", graph.add("MatMul", vectors, kernel), bias))
    return graph.reduce("ReduceSum", vectors, (1,))


POOLINGS: dict[str, Callable[..., str]] = {
    "mac": lambda graph, maps, *_: graph.reduce("ReduceMax", maps, SPATIAL),
    "spoc": lambda graph, maps, *_: graph.reduce("ReduceSum", maps, SPATIAL),
    "spoc-prior": _spoc_prior,
    "gem": _gem,
    "crow": _crow,
    "rmac": _rmac,
}
