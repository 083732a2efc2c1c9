"""The nodes and constants of an ONNX graph that is being written.

The network as an ONNX graph, written node by node: what runs it needs neither Keras nor TensorFlow, nor dim.

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
from dim.model.layers import EPSILON, PREPROCESSINGS
from dim.model.pooling import GEM_EPSILON, STEPS
from dim.model.spec import Source, Spec

SPATIAL = (2, 3)  # the axes of maps (N, K, H, W)


class Graph:
    """Nodes and constants as they are added; each is known by the name of its one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant array."""
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def whole(self, value: Any) -> str:
        """A constant of whole numbers."""
        return self.constant(value, np.int64)

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node."""
        output = name or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def reduce(self, operator: str, x: str, axes: tuple[int, ...], keep: bool = False) -> str:
        """A reduction of `x` over `axes`, such as ReduceMax."""
        return self.add(operator, x, self.whole(axes), keepdims=int(keep))

    def side(self, x: str, axis: int) -> str:
        """How long `x` is along `axis`, a whole number that is known once there are photos."""
        return self.add("Gather", self.add("Shape", x), self.whole(axis))

    def range(self, count: str) -> str:
        """0, 1, … below `count`."""
        return self.add("Range", self.whole(0), count, self.whole(1))

    def real(self, x: str) -> str:
        """`x` as float32."""
        return self.add("Cast", x, to=TensorProto.FLOAT)

    def column(self, x: str) -> str:
        """`x` (n,) as (n, 1)."""
        return self.add("Unsqueeze", x, self.whole((1,)))

    def l2(self, x: str) -> str:
        """x / max(‖x‖₂, 1e-6) along the last axis."""
        length = self.reduce("ReduceL2", x, (-1,), keep=True)
        return self.add("Div", x, self.add("Max", length, self.constant(EPSILON)))


OPSET, IR_VERSION = 18, 10  # of ONNX 1.14 and 1.16


def model_of(source: Source) -> onnx.ModelProto:
    """The network of `source`, float32: "images", uint8 RGB (N, H, W, 3), → "descriptors" (N, D), L2-normalised.

    H and W are the image size where photos are squashed to it, else any. Raises UserError where a layer of the backbone
    has no translation.
    """
    spec, graph = source.spec, Graph()
    size = spec.image_size if spec.resize == "squash" else None
    model = network.load(source)
    x = _backbone(graph, model, spec)
    x = POOLINGS[spec.pooling](graph, x, model.get_layer("pooling"))
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
        x = graph.add("Gather", x, graph.whole((2, 1, 0)), axis=1)
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
    return graph.add("Pad", x, graph.whole((0, 0, top, left, 0, 0, bottom, right)))


def _reshape(graph: Graph, layer: Any, x: str) -> str:
    height, width, channels = layer.target_shape  # of a vector that is spread over a map: (1, 1, K)
    return graph.add("Reshape", x, graph.whole((-1, channels, height, width)))


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


def _spoc_prior(graph: Graph, maps: str, _: Any) -> str:
    sides = [graph.side(maps, axis) for axis in SPATIAL]
    sigma = graph.add("Div", graph.real(graph.add("Min", *sides)), graph.constant(6))
    down, across = (_prior(graph, side, sigma) for side in sides)
    weighed = graph.add("Mul", maps, graph.add("Mul", graph.column(down), across))
    return graph.reduce("ReduceSum", weighed, SPATIAL)


def _prior(graph: Graph, side: str, sigma: str) -> str:
    centre = graph.add("Div", graph.add("Sub", graph.real(side), graph.constant(1)), graph.constant(2))
    distance = graph.add("Div", graph.add("Sub", graph.real(graph.range(side)), centre), sigma)
    return graph.add("Exp", graph.add("Div", graph.add("Mul", distance, distance), graph.constant(-2)))


def _gem(graph: Graph, maps: str, layer: Any) -> str:
    maps = graph.add("Max", maps, graph.constant(GEM_EPSILON))
    largest = graph.reduce("ReduceMax", maps, SPATIAL, keep=True)
    exponent = float(layer.get_weights()[0])
    powers = graph.add("Pow", graph.add("Div", maps, largest), graph.constant(exponent))
    mean = graph.add("Pow", graph.reduce("ReduceMean", powers, SPATIAL), graph.constant(1 / exponent))
    return graph.add("Mul", graph.reduce("ReduceMax", maps, SPATIAL), mean)


def _crow(graph: Graph, maps: str, _: Any) -> str:
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


def _rmac(graph: Graph, maps: str, layer: Any) -> str:
    maxima = [_level_maxima(graph, maps, level) for level in range(1, layer.levels + 1)]
    vectors = graph.l2(graph.add("Transpose", graph.add("Concat", *maxima, axis=2), perm=(0, 2, 1)))
    if layer.dimension is not None:
        kernel, bias = map(graph.constant, layer.get_weights())
        vectors = graph.l2(graph.add("Add", graph.add("MatMul", vectors, kernel), bias))
    return graph.reduce("ReduceSum", vectors, (1,))


def _level_maxima(graph: Graph, maps: str, level: int) -> str:
    """Maps (N, K, H, W) → the maxima of the regions of a level (N, K, R), as `regions.region_maxima` has them."""
    height, width = sides = [graph.side(maps, axis) for axis in SPATIAL]
    short = graph.add("Min", *sides)
    side = graph.add("Div", graph.add("Mul", short, graph.whole(2)), graph.whole(level + 1))
    exists, side = (graph.add(operator, side, graph.whole(1)) for operator in ("Min", "Max"))
    down, across = (_spans(graph, length, short, side, level) for length in (height, width))
    strips = graph.reduce("ReduceMax", graph.add("Gather", maps, across, axis=3), (4,))
    maxima = graph.reduce("ReduceMax", graph.add("Gather", strips, down, axis=2), (3,))
    flat = graph.add("Reshape", maxima, graph.whole((0, 0, -1)))
    end = graph.add("Mul", graph.add("Reshape", exists, graph.whole((1,))), graph.side(flat, 2))
    return graph.add("Slice", flat, graph.whole((0,)), end, graph.whole((2,)))


def _spans(graph: Graph, length: str, short: str, side: str, level: int) -> str:
    """The positions that each region of a level has along a map's side of `length`, (regions, `side`)."""
    excess = graph.add("Mul", graph.add("Sub", length, short), graph.whole(5 * (2 * STEPS + 1)))
    larger = graph.add("Greater", excess, graph.add("Mul", short, graph.whole(6 * STEPS * (STEPS + 1))))
    more = graph.reduce("ReduceSum", graph.add("Cast", larger, to=TensorProto.INT64), (0,))
    count = graph.add("Add", more, graph.whole(level))
    gaps = graph.add("Max", graph.add("Sub", count, graph.whole(1)), graph.whole(1))
    starts = graph.add("Div", graph.add("Mul", graph.range(count), graph.add("Sub", length, side)), gaps)
    return graph.add("Add", graph.column(starts), graph.range(side))


POOLINGS: dict[str, Callable[..., str]] = {
    "mac": lambda graph, maps, _: graph.reduce("ReduceMax", maps, SPATIAL),
    "spoc": lambda graph, maps, _: graph.reduce("ReduceSum", maps, SPATIAL),
    "spoc-prior": _spoc_prior,
    "gem": _gem,
    "crow": _crow,
    "rmac": _rmac,
}
