"""Exports the network as an ONNX graph. ONNX Runtime runs it without Keras, TensorFlow or dim.

The graph is written node by node. `LAYERS` translates the layers of the backbones, and `POOLINGS` the formulas of
`dim.model.pooling`. Maps are (N, K, H, W) here, as ONNX expects them.

Keras's own export is no replacement. `model.export(format="onnx")` with tf2onnx gives the same descriptors. But for a
ResNet50 it takes 10 GB of memory (12 GB for a ResNet101) and 20 s, whereas this module takes about 1 GB and 2 s.
Keras's JAX exporter fails unless the size of the photos is fixed, and its torch exporter traces the network with a
photo of one pixel. No exporter of Keras translates ConvNeXt; this module does not, either.
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
from dim.model.pooling import GEM_EPSILON, MOST_EXTRA
from dim.model.spec import Source, Spec

OPSET, IR_VERSION = 18, 10  # the versions that came with ONNX 1.13 and 1.16
SPATIAL = (2, 3)  # the axes of maps (N, K, H, W)
FLOAT = TensorProto.FLOAT
PADDING = {"same": "SAME_UPPER", "valid": "VALID"}  # Keras's names → ONNX's


class Graph:
    """Collects the nodes and constants of a graph. Each node has one output, whose name identifies the node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: Any, name: str | None = None, **attributes: Any) -> str:
        """Adds a node, and returns its name. Inputs other than names become constants, int64 or float32."""
        output = name or f"{operator.lower()}{len(self.nodes)}"
        names = [one if isinstance(one, str) else self._constant(np.asarray(one)) for one in inputs]
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        array = np.array(value, np.int64 if value.dtype.kind == "i" else np.float32, order="C")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def reduce(self, operator: str, x: str, axes: tuple[int, ...], keep: bool = False) -> str:
        """Adds a node that reduces `x` over `axes` by `operator`, such as ReduceMax."""
        return self.add(operator, x, axes, keepdims=int(keep))

    def side(self, x: str, axis: int) -> str:
        """Adds nodes that find the length of `x` along `axis` at run time."""
        return self.add("Gather", self.add("Shape", x), axis)

    def l2(self, x: str) -> str:
        """Adds nodes that compute x / max(‖x‖₂, 1e-6) along the last axis."""
        return self.add("Div", x, self.add("Max", self.reduce("ReduceL2", x, (-1,), keep=True), EPSILON))


def model_of(source: Source) -> onnx.ModelProto:
    """Converts the network of `source` to ONNX, in float32.

    Returns:
        A model with the input "images", uint8 RGB (N, H, W, 3), and the output "descriptors", L2-normalised (N, D).
        If the spec squashes photos, H and W must be the spec's image size; otherwise they may have any value.

    Raises:
        UserError: A layer of the backbone has no translation.
    """
    spec, graph = source.spec, Graph()
    model = network.load(source)
    x = _backbone(graph, model, spec)
    x = graph.l2(POOLINGS[spec.pooling](graph, x, model.get_layer("pooling")))
    if spec.dimension is not None:
        x = graph.l2(graph.add("Gemm", x, *model.get_layer("pca").get_weights()))
    graph.add("Identity", x, name="descriptors")
    sides = [spec.image_size, spec.image_size] if spec.resize == "squash" else ["height", "width"]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["photos", *sides, 3])
    found = helper.make_tensor_value_info("descriptors", FLOAT, ["photos", model.output_shape[-1]])
    made = helper.make_model(
        helper.make_graph(graph.nodes, "descriptor", [images], [found], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dim",
    )
    onnx.checker.check_model(made)
    return made


def _backbone(graph: Graph, model: keras.Model, spec: Spec) -> str:
    """Translates the layers up to the one that is pooled. Returns the name of the output of the pooled layer."""
    outputs = {id(model.input): "images"}
    for layer in model.layers[1:]:
        translate = LAYERS.get(type(layer).__name__)
        if translate is None:
            raise UserError(
                f"backbone {spec.backbone} is not exported to ONNX: its layer {layer.name!r} ({type(layer).__name__}) "
                "has no translation; use --format keras"
            )
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        x = outputs[id(layer.output)] = translate(graph, layer, *(outputs[id(tensor)] for tensor in given))
        if layer.name == spec.layer:
            return x
    raise AssertionError(f"no layer {spec.layer}")


def _preprocess(graph: Graph, layer: Any, images: str) -> str:
    how = PREPROCESSINGS[layer.mode]
    x = graph.add("Transpose", graph.add("Cast", images, to=FLOAT), perm=(0, 3, 1, 2))
    if how.order == "bgr":
        x = graph.add("Gather", x, (2, 1, 0), axis=1)
    mean, scale = (np.reshape(values, (1, 3, 1, 1)) for values in (how.mean, how.scale))
    return graph.add("Div", graph.add("Sub", x, mean), scale)


def _activation(graph: Graph, layer: Any, x: str) -> str:
    name = layer.activation.__name__
    if name == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    return graph.add({"relu": "Relu", "sigmoid": "Sigmoid", "linear": "Identity"}[name], x)


def _convolution(graph: Graph, layer: Any, x: str) -> str:
    kernel, *bias = layer.get_weights()
    groups = 1
    if type(layer).__name__ == "DepthwiseConv2D":  # the kernel is (H, W, K, 1)
        groups, kernel = kernel.shape[2], np.transpose(kernel, (0, 1, 3, 2))
    options = {"strides": layer.strides, "dilations": layer.dilation_rate, "auto_pad": PADDING[layer.padding]}
    x = graph.add("Conv", x, np.transpose(kernel, (3, 2, 0, 1)), *bias, group=groups, **options)
    return _activation(graph, layer, x)


def _normalisation(graph: Graph, layer: Any, x: str) -> str:
    weights = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    return graph.add("BatchNormalization", x, *weights, epsilon=layer.epsilon)


LAYERS: dict[str, Callable[..., str]] = {
    "Preprocess": _preprocess,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "BatchNormalization": _normalisation,
    # ONNX wants the padding before every axis first, then the padding after every axis.
    "ZeroPadding2D": lambda graph, layer, x: graph.add("Pad", x, np.ravel([(0, 0), (0, 0), *layer.padding], order="F")),
    # Backbones use this layer only to make a map of one pixel, (1, 1, K), from a vector.
    "Reshape": lambda graph, layer, x: graph.add("Reshape", x, (-1, layer.target_shape[2], *layer.target_shape[:2])),
    "Activation": _activation,
    "MaxPooling2D": lambda graph, layer, x: graph.add(
        "MaxPool", x, kernel_shape=layer.pool_size, strides=layer.strides, auto_pad=PADDING[layer.padding]
    ),
    "GlobalAveragePooling2D": lambda graph, layer, x: graph.reduce("ReduceMean", x, SPATIAL, layer.keepdims),
    "Add": lambda graph, _, *inputs: graph.add("Sum", *inputs),
    "Multiply": lambda graph, _, one, other: graph.add("Mul", one, other),
    "Dropout": lambda _, __, x: x,
}


def _spoc_prior(graph: Graph, maps: str, _: Any) -> str:
    sides = [graph.side(maps, axis) for axis in SPATIAL]
    sigma = graph.add("Div", graph.add("Cast", graph.add("Min", *sides), to=FLOAT), 6.0)
    down, across = (_prior(graph, side, sigma) for side in sides)
    prior = graph.add("Mul", graph.add("Unsqueeze", down, (1,)), across)
    return graph.reduce("ReduceSum", graph.add("Mul", maps, prior), SPATIAL)


def _prior(graph: Graph, side: str, sigma: str) -> str:
    centre = graph.add("Div", graph.add("Sub", graph.add("Cast", side, to=FLOAT), 1.0), 2.0)
    positions = graph.add("Cast", graph.add("Range", 0, side, 1), to=FLOAT)
    distance = graph.add("Div", graph.add("Sub", positions, centre), sigma)
    return graph.add("Exp", graph.add("Div", graph.add("Mul", distance, distance), -2.0))


def _gem(graph: Graph, maps: str, layer: Any) -> str:
    exponent = float(layer.get_weights()[0])
    maps = graph.add("Max", maps, GEM_EPSILON)
    largest = graph.reduce("ReduceMax", maps, SPATIAL, keep=True)
    powers = graph.add("Pow", graph.add("Div", maps, largest), exponent)
    mean = graph.add("Pow", graph.reduce("ReduceMean", powers, SPATIAL), 1 / exponent)
    return graph.add("Mul", graph.reduce("ReduceMax", maps, SPATIAL), mean)


def _crow(graph: Graph, maps: str, _: Any) -> str:
    total = graph.reduce("ReduceSum", maps, (1,), keep=True)
    length = graph.reduce("ReduceL2", total, (1, *SPATIAL), keep=True)
    length = graph.add("Where", graph.add("Greater", length, 0.0), length, 1.0)
    spatial = graph.add("Sqrt", graph.add("Div", total, length))
    active = graph.add("Cast", graph.add("Greater", maps, 0.0), to=FLOAT)
    share = graph.reduce("ReduceMean", active, SPATIAL)
    there = graph.add("Greater", share, 0.0)
    ratio = graph.add("Div", graph.reduce("ReduceSum", share, (1,), keep=True), graph.add("Where", there, share, 1.0))
    channel = graph.add("Where", there, graph.add("Log", graph.add("Where", there, ratio, 1.0)), 0.0)
    return graph.add("Mul", channel, graph.reduce("ReduceSum", graph.add("Mul", spatial, maps), SPATIAL))


def _rmac(graph: Graph, maps: str, layer: Any) -> str:
    maxima = [_level_maxima(graph, maps, level) for level in range(1, layer.levels + 1)]
    vectors = graph.l2(graph.add("Transpose", graph.add("Concat", *maxima, axis=2), perm=(0, 2, 1)))
    if layer.dimension is not None:
        kernel, bias = layer.get_weights()
        vectors = graph.l2(graph.add("Add", graph.add("MatMul", vectors, kernel), bias))
    return graph.reduce("ReduceSum", vectors, (1,))


def _level_maxima(graph: Graph, maps: str, level: int) -> str:
    """Adds nodes that compute what `region_maxima` does for one level: maps (N, K, H, W) → maxima (N, K, regions)."""
    sides = [graph.side(maps, axis) for axis in SPATIAL]
    short = graph.add("Min", *sides)
    side = graph.add("Div", graph.add("Mul", short, 2), level + 1)
    exists, side = (graph.add(operator, side, 1) for operator in ("Min", "Max"))
    down, across = (_spans(graph, length, short, side, level) for length in sides)
    strips = graph.reduce("ReduceMax", graph.add("Gather", maps, across, axis=3), (4,))
    maxima = graph.reduce("ReduceMax", graph.add("Gather", strips, down, axis=2), (3,))
    flat = graph.add("Reshape", maxima, (0, 0, -1))
    end = graph.add("Mul", graph.add("Reshape", exists, (1,)), graph.side(flat, 2))
    return graph.add("Slice", flat, (0,), end, (2,))


def _spans(graph: Graph, length: str, short: str, side: str, level: int) -> str:
    """Adds nodes for the positions of each region of a level along a map side of `length`: (regions, `side`)."""
    s = np.arange(MOST_EXTRA)  # see `dim.model.pooling.extra_regions`
    excess = graph.add("Mul", graph.add("Sub", length, short), 5 * (2 * s + 1))
    larger = graph.add("Greater", excess, graph.add("Mul", short, 6 * s * (s + 1)))
    extra = graph.reduce("ReduceSum", graph.add("Cast", larger, to=TensorProto.INT64), (0,))
    count = graph.add("Add", extra, level)
    gaps = graph.add("Max", graph.add("Sub", count, 1), 1)
    numbers = graph.add("Range", 0, count, 1)
    starts = graph.add("Div", graph.add("Mul", numbers, graph.add("Sub", length, side)), gaps)
    return graph.add("Add", graph.add("Unsqueeze", starts, (1,)), graph.add("Range", 0, side, 1))


POOLINGS: dict[str, Callable[..., str]] = {
    "mac": lambda graph, maps, _: graph.reduce("ReduceMax", maps, SPATIAL),
    "spoc": lambda graph, maps, _: graph.reduce("ReduceSum", maps, SPATIAL),
    "spoc-prior": _spoc_prior,
    "gem": _gem,
    "crow": _crow,
    "rmac": _rmac,
}
