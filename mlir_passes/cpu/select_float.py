"""f32 convolutions and matrix products become kernels with what follows: clamps, and the sum with a residual."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch_mlir import ir

from mlir_passes import match
from mlir_passes.build import constant, relaid_constant
from mlir_passes.cpu import patterns
from mlir_passes.cpu.emit import Calls, image_shape
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.conv import Conv, Window
from mlir_passes.cpu.kernels.epilogue import FloatForm
from mlir_passes.cpu.kernels.text import Layout
from mlir_passes.cpu.tiles import choose_tile

_CONV, _MATMUL = "linalg.conv_2d_nhwc_hwcf", "linalg.matmul"


@dataclass(frozen=True)
class _Tail:
    """What follows a layer and goes into its kernel: the last operation's result, and the kernel's end."""

    result: ir.Value
    inner: tuple[float, float]
    outer: tuple[float, float]
    residual: ir.Value | None


class FloatSelection:
    """Visits the operations of a function in order and calls a kernel for each f32 layer."""

    def __init__(self, calls: Calls, isa: Isa) -> None:
        self.calls, self.isa = calls, isa
        self.fused: set[ir.Value] = set()

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel for ``op``, or do nothing."""
        if op.name not in (_CONV, _MATMUL) or not _is_float_image(op.results[0]) or not _is_float_image(op.operands[0]):
            return
        weight, channels = relaid_constant(op.operands[1]), match.shape_of(op.results[0])[-1]
        bias = _bias(match.init_of(op), channels)
        if weight is None or bias is None or channels < self.isa.lanes:
            return
        window = Window()
        if op.name == _MATMUL:
            weight = weight[None, None]
        else:
            kernel = (weight.shape[0], weight.shape[1])
            window = patterns.window_of(op, kernel, patterns.Padded(op.operands[0]))
        tail = self._tail(op.results[0])
        x, y = _layout(op.operands[0]), _layout(tail.result)
        form = FloatForm(tail.inner, tail.outer, None if tail.residual is None else y)
        spec = Conv(x, y, window, form, choose_tile(x, y, window, self.isa, group=1), self.isa)
        last = match.owner(tail.result)
        assert last is not None
        with ir.InsertionPoint(last), op.location:
            numbers = [spec.pack(weight.astype(np.float32)), spec.pack_channels(bias.astype(np.float32))]
            operands = [op.operands[0], *map(constant, numbers)]
            if tail.residual is not None:
                operands.append(tail.residual)
            made = self.calls.call(spec, operands, tail.result.type, op)
        tail.result.replace_all_uses_with(made)

    def _tail(self, value: ir.Value) -> _Tail:
        value, inner = _clamps(value)
        reader = _only_reader(value)
        terms = None if reader is None else match.match_add(reader)
        if reader is None or terms is None or terms[0] == terms[1] or reader.results[0] in self.fused:
            return _Tail(value, inner, (-math.inf, math.inf), None)
        self.fused.add(reader.results[0])
        result, outer = _clamps(reader.results[0])
        return _Tail(result, inner, outer, terms[1] if terms[0] == value else terms[0])


def _clamps(value: ir.Value) -> tuple[ir.Value, tuple[float, float]]:
    """Follow the clamps that alone read ``value``; the last one's result and the bounds of all."""
    low, high = -math.inf, math.inf
    while (reader := _only_reader(value)) is not None and (clamp := match.match_clamp(reader)) is not None:
        _, lower, upper = clamp
        if max(low, lower) > min(high, upper):
            break
        low, high, value = max(low, lower), min(high, upper), reader.results[0]
    return value, (low, high)


def _only_reader(value: ir.Value) -> ir.Operation | None:
    uses = list(value.uses)
    return uses[0].owner.operation if len(uses) == 1 and uses[0].owner.operation.name == "linalg.generic" else None


def _bias(init: ir.Value, channels: int) -> np.ndarray | None:
    """What each channel's accumulators start with: one number, or constants broadcast over the image."""
    number, op = match.scalar(init), match.owner(init)
    if number is not None:
        return np.full(channels, number, np.float32)
    if op is None or op.name != "linalg.broadcast":
        return None
    numbers = relaid_constant(op.operands[0])
    return numbers if numbers is not None and numbers.shape == (channels,) else None


def _is_float_image(value: ir.Value) -> bool:
    kind = ir.RankedTensorType(value.type)
    return isinstance(kind.element_type, ir.F32Type) and kind.rank in (2, 4) and kind.shape[0] == 1


def _layout(value: ir.Value) -> Layout:
    return Layout(*image_shape(value), floating=True)
