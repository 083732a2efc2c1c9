"""The nodes and constants of an ONNX graph that is being written."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dim.model.normalisation import EPSILON

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
