"""What the rooms emit integer forms with: parameters, windows, and the end that turns sums into a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

from mlir_passes.ir import match
from mlir_passes.ir.build import element_type, parameter, set_layer, tensor_type
from mlir_passes.ir.moves import pad
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import Node
from mlir_passes.ops.reader import Site
from mlir_passes.ops.requantize import MULTIPLIER, REAL, SHIFT, i8, shifts, to_f32


class Emitter:
    """Emits one node's integer operations at the current insertion point.

    name: prefix of the parameters' names. inputs: the i8 tensors that the node reads. shared: whether each of them is
    to be handed on as it is, by an operation that could requantize it.
    """

    def __init__(self, name: str, site: Site, inputs: Sequence[ir.Value], shared: Sequence[bool] = ()) -> None:
        self.name, self.site, self.node, self.inputs, self.shared = name, site, site.node, list(inputs), list(shared)

    @property
    def op(self) -> ir.Operation:
        """The operation that does the node's work in the f32 network."""
        assert self.site.op is not None
        return self.site.op

    def requantize(
        self,
        total: ir.Value,
        bias: np.ndarray,
        ratio: np.ndarray,
        y: QuantSpec,
        bounds: tuple[int, int],
        *,
        shift: bool,
    ) -> ir.Value:
        """The i32 sums plus ``bias``, times ``ratio``, as the integers of ``y``; with shifts if the ratio allows it."""
        dtype, form = (np.int32, SHIFT) if shift else (np.float32, MULTIPLIER)
        factor = ("shift", shifts(ratio)) if shift else ("multiplier", to_f32(ratio))
        operands = [total, parameter(f"{self.name}.bias", bias)]
        scalars = [self.scalar("zero_point", dtype(y.zero_point_array)), *self.bounds(bounds, dtype)]
        operands += [parameter(f"{self.name}.{factor[0]}", factor[1]), *scalars]
        return form.build(operands, self.node.shape, self.node.layer)

    def real(self, total: ir.Value, bias: np.ndarray, scale: np.ndarray) -> ir.Value:
        """The i32 sums plus ``bias``, times ``scale``, in f32."""
        operands = [total, parameter(f"{self.name}.bias", bias), parameter(f"{self.name}.scale", to_f32(scale))]
        return REAL.build(operands, self.node.shape, self.node.layer)

    def pool(self, build: Callable[..., Any], padded: ir.Value, init: ir.Value) -> ir.Value:
        """A pooling operation over the node's window."""
        window = tensor.empty(list(self.node.kernel), i8())
        strides, dilations = list(self.node.strides), list(self.node.dilations)
        return self.named(build(padded, window, outs=[init], strides=strides, dilations=dilations))

    def zero_padded(self, x: QuantSpec) -> ir.Value:
        """The first input with the node's padding, which holds the zero point."""
        if not any(self.node.pads):
            return self.inputs[0]
        return self.padded(tensor.extract(self.scalar("padding", np.int8(x.zero_point_array)), []))

    def padded(self, value: ir.Value) -> ir.Value:
        """The first input with the node's padding, which holds ``value``."""
        top, left, bottom, right = self.node.pads
        if not any(self.node.pads):
            return self.inputs[0]
        return self.named(pad(self.inputs[0], [0, 0, top, left], [0, 0, bottom, right], value))

    def filled(self, dtype: type, value: int, shape: Sequence[int] | None = None) -> ir.Value:
        """A tensor of one number, of the result's shape if no other is given."""
        element = element_type(dtype)
        number = arith.ConstantOp(element, ir.IntegerAttr.get(element, value)).result
        return linalg.fill(number, outs=[tensor.empty(list(shape or self.node.shape), element)])

    def bounds(self, bounds: tuple[int, int], dtype: type) -> list[ir.Value]:
        """The two bounds of the result as parameters."""
        return [self.scalar(role, dtype(value)) for role, value in zip(("min", "max"), bounds, strict=True)]

    def scalar(self, role: str, value: np.generic) -> ir.Value:
        """One number as a parameter."""
        return parameter(f"{self.name}.{role}", np.asarray(value))

    def type(self, dtype: type) -> ir.RankedTensorType:
        """The result's type with other elements."""
        return tensor_type(self.node.shape, dtype)

    def broadcasts(self) -> list[ir.AffineMap]:
        """How the inputs are read where they are broadcast to the result's shape, as numpy would."""
        return [match.broadcast_map(match.shape_of(value), self.node.shape) for value in self.inputs]

    def named(self, value: ir.Value) -> ir.Value:
        """``value``, whose operation is named for the node's layer."""
        set_layer(value.owner, self.node.layer)
        return value

    def same(self) -> ir.Value:
        """The node's own operation with its attributes, on the integers."""
        attributes = {name: self.op.attributes[name] for name in self.op.attributes}
        return ir.Operation.create(self.op.name, [self.type(np.int8)], self.inputs, attributes).result


def limits(y: QuantSpec, node: Node) -> tuple[int, int]:
    """The i8 bounds of a result: the storage range, cut by the bounds of ``node``, which only a clamp has."""
    scale, zero_point = np.float32(y.scale_array), int(y.zero_point_array)

    def bound(value: float, fallback: int) -> int:
        if not math.isfinite(value):
            return fallback
        with np.errstate(over="ignore"):  # an overflow is an infinity, which saturates
            steps = np.rint(np.float32(value) / scale)
        return int(np.clip(steps + zero_point, y.storage_min, y.storage_max))

    return bound(node.lo, y.storage_min), bound(node.hi, y.storage_max)


def wrap(values: Any) -> np.ndarray:
    """An integer as i32 in two's complement, as the hardware's own sums wrap."""
    return np.asarray(values, np.int64).astype(np.int32)


def window_of(node: Node) -> dict[str, list[int]]:
    """Strides and dilations as linalg's builders take them."""
    return {"strides": list(node.strides), "dilations": list(node.dilations)}


def whole_image(node: Node, source: ir.Value) -> bool:
    """Whether a node's window is all of ``source``'s rows and columns."""
    return node.kernel == match.shape_of(source)[2:] and not any(node.pads)
