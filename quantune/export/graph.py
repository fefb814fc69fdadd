"""An ONNX graph while it is being written: nodes, constants, and names that are there once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Collects what ``model`` puts together. Every method that adds something returns the name of its tensor."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._names: set[str] = set()

    def unique(self, stem: str) -> str:
        """A name that nothing has yet."""
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}#{count}"
        self._names.add(name)
        return name

    def add(self, kind: str, inputs: Sequence[str], stem: str, **attributes: Any) -> str:
        """A node with one result."""
        name = self.unique(stem)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: NDArray[Any], stem: str) -> str:
        """A constant tensor."""
        name = self.unique(stem)
        self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def constant_int4(self, array: NDArray[np.integer], stem: str) -> str:
        """A constant of integers in [-8, 7], two in a byte, the earlier one in its lower half."""
        name = self.unique(stem)
        flat = array.astype(np.uint8).reshape(-1) & 15
        flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
        packed = (flat[::2] | flat[1::2] << 4).tobytes()
        self.constants[name] = helper.make_tensor(name, TensorProto.INT4, array.shape, packed, raw=True)
        return name

    def model(
        self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]], title: str
    ) -> onnx.ModelProto:
        """Everything as a model of f32 inputs and outputs, for ONNX operators of version 21."""

        def described(each: Mapping[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in each.items()]

        graph = helper.make_graph(
            self.nodes, title, described(inputs), described(outputs), initializer=list(self.constants.values())
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="quantune"
        )
