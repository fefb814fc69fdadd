"""What the table of the operations lacks, from linalg to ONNX: elementwise and reducing loops, products, pads, slices.

A ``linalg.generic`` becomes one ONNX node for each operation of its body; its indexing maps become transposes and
reshapes of what it reads, which ONNX then broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch_mlir import ir

from mlir_passes.functions import COMPARE
from mlir_passes.ir import match
from mlir_passes.ir.build import defining_op, relaid_constant
from mlir_passes.ir.same_body import iterators
from mlir_passes.network import Node
from mlir_passes.ops.reader import Site
from quantune.export import steps as steps_of
from quantune.export.graph import Graph

_REDUCED = {"arith.addf": ("ReduceSum", 0.0), "arith.maximumf": ("ReduceMax", -math.inf)}
_REFUSED = {"affine", "blend", "gather"}  # single operations that one node stands for need not compute what it does
_PRODUCTS = {"linalg.matmul", "linalg.batch_matmul"}


class NotExported(Exception):
    """The operation that has no ONNX form here, and its layer."""


class FloatOps:
    """Writes operations into a graph. names: value of the module -> the tensor that holds it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[ir.Value, str] = {}

    def write(self, site: Site, node: Node) -> str:
        """What makes a node's tensor; returns its name. Raises NotExported."""
        assert site.op is not None
        if node.kind in _REFUSED:
            raise _refusal(node, f"the operation '{node.kind}'")
        if node.function is None and site.result not in list(site.op.results):
            raise _refusal(node, f"{node.kind} of several operations")
        if node.function is None:
            return self._one(site.op, node)
        made = steps_of.function(
            self.graph, node.function, self._value(site.sources[0], node), node.name, len(node.shape)
        )
        if made is None:
            raise _refusal(node, "a function of its elements")
        return made

    def _one(self, op: ir.Operation, node: Node) -> str:
        if op.name == "linalg.generic":
            return self._generic(op, node)
        if op.name in _PRODUCTS and relaid_constant(op.operands[2]) is None and match.scalar(op.operands[2]) == 0:
            return self.graph.add("MatMul", [self._value(value, node) for value in match.inputs_of(op)], node.name)
        if op.name == "tensor.concat":
            axis = ir.IntegerAttr(op.attributes["dim"]).value
            return self.graph.add("Concat", [self._value(value, node) for value in op.operands], node.name, axis=axis)
        if op.name == "tensor.extract_slice" and len(op.operands) == 1:
            return self._slice(op, node)
        if (pad := match.match_pad(op)) is not None:
            return self._pad(pad, node)
        raise _refusal(node, node.detail or op.name)

    def _value(self, value: ir.Value, node: Node) -> str:
        if value in self.names:
            return self.names[value]
        numbers = relaid_constant(value)
        if numbers is None and (number := match.scalar(value)) is not None:
            numbers = np.array(number, np.float32)
        if numbers is None or numbers.dtype not in (np.float32, np.float64):
            maker = defining_op(value)
            raise _refusal(node, "an argument" if maker is None else maker.name)
        return self.graph.constant(numbers.astype(np.float32), f"{node.name}/constant")

    def _slice(self, op: ir.Operation, node: Node) -> str:
        starts, sizes, steps = (np.array(match.ints(op, f"static_{what}")) for what in ("offsets", "sizes", "strides"))
        if len(sizes) != len(node.shape):
            raise _refusal(node, "tensor.extract_slice that drops dimensions")
        numbers = {
            "starts": starts,
            "ends": starts + (sizes - 1) * steps + 1,
            "axes": np.arange(len(sizes)),
            "steps": steps,
        }
        operands = [self.graph.constant(v, f"{node.name}/{k}") for k, v in numbers.items()]
        return self.graph.add("Slice", [self._value(op.operands[0], node), *operands], node.name)

    def _pad(self, pad: match.Pad, node: Node) -> str:
        amounts = self.graph.constant(np.array([*pad.low, *pad.high]), f"{node.name}/pads")
        value = self.graph.constant(np.array(pad.value, np.float32), f"{node.name}/value")
        return self.graph.add("Pad", [self._value(pad.source, node), amounts, value], node.name)

    def _generic(self, op: ir.Operation, node: Node) -> str:
        loops, inputs, maps = iterators(op), match.inputs_of(op), match.maps_of(op)
        result = maps[len(inputs)]  # of several results the first alone: a maximum, and not where it is
        inner = list(op.regions[0].blocks[0].arguments)
        places = {
            argument: self._aligned(value, affine_map, node)
            for argument, value, affine_map in zip(inner, inputs, maps, strict=False)
        }
        reduced = [i for i, loop in enumerate(loops) if "reduction" in loop]
        *steps, end = match.body_of(op)
        if len(op.results) > 1 and not reduced:
            raise _refusal(node, "linalg.generic with several results")
        if not reduced:
            made = self._body(steps, end.operands[0], places, node)
            return self._relaid(self._full(made, op, result, node), _dims(result, node), node)
        return self._reduction(op, steps, places, reduced, node)

    def _reduction(
        self, op: ir.Operation, steps: list[ir.Operation], places: dict[ir.Value, str], reduced: list[int], node: Node
    ) -> str:
        count = len(match.inputs_of(op))
        accumulator, dims = list(op.regions[0].blocks[0].arguments)[count], _dims(match.maps_of(op)[count], node)
        last = defining_op(match.body_of(op)[-1].operands[0])
        if last is None or last.name not in _REDUCED or accumulator not in list(last.operands):
            raise _refusal(node, f"a reduction by {'nothing' if last is None else last.name}")
        kind, neutral = _REDUCED[last.name]
        if match.scalar(op.operands[count]) != neutral:
            raise _refusal(node, f"a reduction that starts at another number than {neutral:g}")
        operand = next(value for value in last.operands if value != accumulator)
        made = self._body(steps[: steps.index(last)], operand, places, node)
        axes = self.graph.constant(np.array(reduced), f"{node.name}/axes")
        made = self.graph.add(kind, [made, axes], node.name, keepdims=0)
        kept = [dim for dim in range(len(iterators(op))) if dim not in reduced]
        shape = match.shape_of(op.results[0])
        dims = [dim for dim in dims if dim is not None]
        if sorted(dims) == kept and dims != kept:
            made = self.graph.add("Transpose", [made], node.name, perm=[kept.index(dim) for dim in dims])
        return self._reshaped(made, shape, node) if len(shape) != len(kept) else made

    def _full(self, made: str, op: ir.Operation, result: ir.AffineMap, node: Node) -> str:
        """A result that may have been made of smaller tensors alone, in the size of the loops."""
        shape = [1] * len(iterators(op))
        for dim, size in zip(_dims(result, node), match.shape_of(op.results[0]), strict=True):
            if dim is not None:
                shape[dim] = size
        if any(
            match.shape_of(value) == match.shape_of(op.results[0]) and match.is_identity(each)
            for value, each in zip(match.inputs_of(op), match.maps_of(op), strict=False)
        ):
            return made
        return self.graph.add("Expand", [made, self.graph.constant(np.array(shape), f"{node.name}/shape")], node.name)

    def _relaid(self, made: str, dims: Sequence[int | None], node: Node) -> str:
        order = [dim for dim in dims if dim is not None]
        if order == sorted(order):
            return made
        return self.graph.add("Transpose", [made], node.name, perm=order)

    def _aligned(self, value: ir.Value, affine_map: ir.AffineMap, node: Node) -> str:
        """A tensor with one dimension for each loop, of size 1 where the loop does not move in it."""
        name = self._value(value, node) if isinstance(value.type, ir.RankedTensorType) else self._scalar(value, node)
        if match.scalar(value) is not None or match.is_identity(affine_map):
            return name
        dims, shape = _dims(affine_map, node), match.shape_of(value)
        order = [dim for dim in dims if dim is not None]
        if len(set(order)) != len(order):
            raise _refusal(node, "a diagonal")
        if None in dims:
            name = self._reshaped(name, [size for dim, size in zip(dims, shape, strict=True) if dim is not None], node)
        if order != sorted(order):
            name = self.graph.add("Transpose", [name], node.name, perm=[order.index(dim) for dim in sorted(order)])
        full = [1] * affine_map.n_dims
        for dim, size in zip(dims, shape, strict=True):
            if dim is not None:
                full[dim] = size
        return self._reshaped(name, full, node)

    def _reshaped(self, name: str, shape: Sequence[int], node: Node) -> str:
        return self.graph.add(
            "Reshape", [name, self.graph.constant(np.array(shape, np.int64), f"{node.name}/shape")], node.name
        )

    def _scalar(self, value: ir.Value, node: Node) -> str:
        number = match.scalar(value)
        if number is None:
            maker = defining_op(value)
            raise _refusal(node, "an argument" if maker is None else maker.name)
        return self.graph.constant(np.array(number, np.float32), f"{node.name}/constant")

    def _body(self, steps: list[ir.Operation], wanted: ir.Value, places: dict[ir.Value, str], node: Node) -> str:
        """What a body computes as ``wanted``, and nothing else of it. places: its arguments."""
        places, makers = dict(places), {result: step for step in steps for result in step.results}

        def place(value: ir.Value) -> str:
            if value not in places:
                step = makers.get(value)
                places[value] = self._scalar(value, node) if step is None else computed(step)
            return places[value]

        def computed(step: ir.Operation) -> str:
            if step.name == "arith.constant":
                return self._scalar(step.results[0], node)
            predicate = ir.IntegerAttr(step.attributes["predicate"]).value if step.name == COMPARE else 0
            operands = [] if step.name == "linalg.index" else [place(each) for each in step.operands]
            made = steps_of.step(self.graph, step.name, operands, predicate, node.name)
            if made is None:
                raise _refusal(node, step.name)
            return made

        return place(wanted)


def _dims(affine_map: ir.AffineMap, node: Node) -> list[int | None]:
    """Which loop each dimension of a tensor follows; None for one that stays at 0."""
    zero = ir.AffineExpr.get_constant(0, affine_map.context)
    known = {ir.AffineExpr.get_dim(i, affine_map.context): i for i in range(affine_map.n_dims)}
    dims: list[int | None] = []
    for result in affine_map.results:
        if result != zero and result not in known:
            raise _refusal(node, f"an access {result}")
        dims.append(None if result == zero else known[result])
    return dims


def _refusal(node: Node, what: str) -> NotExported:
    return NotExported(f"layer '{node.layer or node.name}' has {what}, which has no ONNX form here")
