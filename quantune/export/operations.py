"""The operations of the table as ONNX nodes: each gets the names of its operands and returns that of its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mlir_passes.network import Node
from quantune.export.graph import Graph


def _conv(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Conv", inputs, node.name, group=node.groups, dilations=node.dilations, **_window(node))


def _matmul(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Gemm", inputs, node.name, transB=1)


def _maxpool(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("MaxPool", inputs, node.name, dilations=node.dilations, **_window(node))


def _avgpool(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    area = math.prod(node.kernel)
    if len(node.shape) == 4:
        mean = graph.add("AveragePool", inputs, node.name, count_include_pad=1, **_dilated(node), **_window(node))
    else:
        axes = graph.constant(np.array([2, 3]), f"{node.name}/axes")
        mean = graph.add("ReduceMean", [*inputs, axes], node.name, keepdims=0)
    if node.divisor == area:
        return mean
    ratio = graph.constant(np.array(area / node.divisor, np.float32), f"{node.name}/ratio")
    return graph.add("Mul", [mean, ratio], f"{node.name}/scaled")


def _clamp(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    if (node.lo, node.hi) == (0, math.inf):
        return graph.add("Relu", inputs, node.name)
    low, high = (
        "" if math.isinf(end) else graph.constant(np.array(end, np.float32), f"{node.name}/{what}")
        for end, what in ((node.lo, "low"), (node.hi, "high"))
    )
    return graph.add("Clip", [*inputs, low, high], node.name)


def _add(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Add", inputs, node.name)


def _product(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Mul", inputs, node.name)


def _reduced(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    axes = graph.constant(np.array(node.axes), f"{node.name}/axes")
    kind = "ReduceMax" if node.kind == "maximum" else "ReduceSum"
    made = graph.add(kind, [*inputs, axes], f"{node.name}/reduced", keepdims=0)
    if node.kind == "sum" and node.divisor != 1:
        divisor = graph.constant(np.array(node.divisor, np.float32), f"{node.name}/divisor")
        made = graph.add("Div", [made, divisor], f"{node.name}/divided")
    return _reshape(graph, node, [made])


def _subtract(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Sub", inputs, node.name)


def _reshape(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Reshape", [*inputs, graph.constant(np.array(node.shape), f"{node.name}/shape")], node.name)


def _transpose(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Transpose", inputs, node.name, perm=node.permutation)


def _slice(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    starts, steps, axes = np.array(node.offsets), np.array(node.steps), np.arange(len(node.shape))
    ends = starts + (np.array(node.shape) - 1) * steps + 1
    numbers = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    return graph.add(
        "Slice", [*inputs, *(graph.constant(v, f"{node.name}/{k}") for k, v in numbers.items())], node.name
    )


def _concat(graph: Graph, node: Node, inputs: Sequence[str]) -> str:
    return graph.add("Concat", inputs, node.name, axis=node.axis)


def _window(node: Node) -> dict[str, Sequence[int]]:
    return {"kernel_shape": node.kernel, "strides": node.strides, "pads": node.pads}


def _dilated(node: Node) -> dict[str, Sequence[int]]:
    return {} if node.dilations == (1, 1) else {"dilations": node.dilations}


#: By the kind of the node that stands for it. What is not here is written from what it is made of (float_ops).
OPERATIONS: dict[str, Callable[[Graph, Node, Sequence[str]], str]] = {
    "conv": _conv,
    "matmul": _matmul,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "clamp": _clamp,
    "add": _add,
    "product": _product,
    "subtract": _subtract,
    "sum": _reduced,
    "maximum": _reduced,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concat": _concat,
}
