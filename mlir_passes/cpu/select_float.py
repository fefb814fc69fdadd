"""f32 convolutions and matrix products become kernels with what follows: clamps, and the sum with a residual."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.conv import Conv, one_unit
from mlir_passes.cpu.kernels.depthwise_float import FloatDepthwise
from mlir_passes.cpu.kernels.epilogue import FloatForm
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, GROUPED, MATMUL, Padded
from mlir_passes.cpu.tensors import FloatTensors, float_padded
from mlir_passes.cpu.tiles import choose_tile
from mlir_passes.ir import match
from mlir_passes.ir.build import constant, relaid_constant
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.text import Layout, joined_images
from mlir_passes.kernels.windows import Window

_WIDEST = 11  # columns of a depthwise window that are worth writing out


@dataclass(frozen=True)
class _Tail:
    """What follows a layer and goes into its kernel: the last operation's result, and the kernel's end."""

    result: ir.Value
    inner: tuple[float, float]
    outer: tuple[float, float]
    residual: ir.Value | None


@dataclass(frozen=True)
class _Layer:
    """A layer to be emitted where its tail ends.

    weight: [kh, kw, ci of a group, co], of a depthwise convolution [kh, kw, c].
    """

    op: ir.Operation
    source: Padded
    weight: np.ndarray
    bias: np.ndarray
    window: Window
    tail: _Tail
    groups: int = 1


class FloatSelection:
    """Visits the operations of a function in order and calls a kernel for each f32 layer."""

    def __init__(self, tensors: FloatTensors, isa: Isa) -> None:
        self.tensors, self.isa = tensors, isa
        self.fused: set[ir.Value] = set()
        self.waiting: dict[ir.Value, _Layer] = {}

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel that ends with ``op``, or let a layer wait for the operations behind it, or do nothing."""
        layer = self._layer(op)
        if isinstance(layer, Missed):
            self.tensors.calls.miss(op, layer)
        elif layer is not None:
            self.waiting[layer.tail.result] = layer
        if len(op.results) == 1 and op.results[0] in self.waiting:
            self._emit(self.waiting.pop(op.results[0]))

    def _layer(self, op: ir.Operation) -> _Layer | Missed | None:
        if op.name == "tensor.collapse_shape":
            return self._grouped(op)
        if op.name not in (DENSE, DEPTHWISE, MATMUL):
            return None
        if not self.tensors.holds(op.results[0]) or not self.tensors.holds(op.operands[0]):
            return None
        if not is_plain(op):
            return Missed(f"no kernel computes {op.name} as it stands")
        weight, channels = relaid_constant(op.operands[1]), match.shape_of(op.results[0])[-1]
        bias = _bias(match.init_of(op), channels)
        if weight is None or bias is None:
            return Missed("its weights or its bias are not constant")
        fewest = 4 if op.name == DEPTHWISE else self.isa.lanes
        if channels < fewest:
            return Missed(f"it has {channels} channels, fewer than the {fewest} of a vector")
        tail = self._tail(op.results[0], with_residual=op.name != DEPTHWISE)
        if op.name == MATMUL:
            return _Layer(op, Padded(op.operands[0]), weight[None, None], bias, Window(), tail)
        if op.name == DEPTHWISE and weight.shape[1] > _WIDEST:
            return Missed(f"its window is wider than {_WIDEST} columns")
        source = float_padded(op.operands[0])
        window = patterns.window_of(op, (weight.shape[0], weight.shape[1]), source)
        return _Layer(op, source, weight, bias, window, tail)

    def _grouped(self, joined: ir.Operation) -> _Layer | Missed | None:
        """The grouped convolution whose channels ``joined`` brings together."""
        op = match.owner(joined.operands[0])
        if (
            op is None
            or op.name != GROUPED
            or len(list(op.results[0].uses)) != 1
            or not self.tensors.holds(joined.results[0])
        ):
            return None
        split, init = match.owner(op.operands[0]), match.init_of(op)
        weight, channels = relaid_constant(op.operands[1]), match.shape_of(joined.results[0])[-1]
        started = match.owner(init)
        if patterns.regroups_last(started):
            init = started.operands[0]
        bias = _bias(init, channels)
        if not patterns.regroups_last(split) or not patterns.regroups_last(joined):
            return Missed("its groups are not neighbouring channels")
        if weight is None or bias is None or not is_plain(op):
            return Missed("its weights or its bias are not constant")
        if channels < self.isa.lanes:
            return Missed(f"it has {channels} channels, fewer than the {self.isa.lanes} of a vector")
        groups, weight = weight.shape[0], patterns.ungrouped(weight)
        source = float_padded(split.operands[0])
        window = patterns.window_of(op, (weight.shape[0], weight.shape[1]), source)
        tail = self._tail(joined.results[0], with_residual=True)
        return _Layer(op, source, weight, bias, window, tail, groups)

    def _emit(self, layer: _Layer) -> None:
        tail, tensors = layer.tail, self.tensors
        x, y = tensors.buffer(layer.source.value), tensors.layout(tail.result)
        residual = None if tail.residual is None else tensors.buffer(tail.residual)
        spec = self._spec(layer, x.layout, y, None if residual is None else residual.layout)
        numbers = [spec.pack(layer.weight.astype(np.float32)), spec.pack_channels(layer.bias.astype(np.float32))]
        operands = [x.value, *map(constant, numbers), *([] if residual is None else [residual.value])]
        tensors.call(spec, operands, tail.result, y, layer.op)

    def _spec(self, layer: _Layer, x: Layout, y: Layout, residual: Layout | None) -> Conv | FloatDepthwise:
        tail, window = layer.tail, layer.window
        if layer.op.name == DEPTHWISE:
            return FloatDepthwise(x, y, window, FloatForm(tail.inner, tail.outer), self.isa)
        if window.kernel == window.strides == (1, 1):
            x, y, *others = joined_images([x, y, *([] if residual is None else [residual])])
            residual = others[0] if others else None
        form = FloatForm(tail.inner, tail.outer, residual)
        tile = choose_tile(*one_unit(x, y, layer.groups, self.isa.lanes), window, self.isa, group=1)
        return Conv(x, y, window, form, tile, self.isa, layer.groups)

    def _tail(self, value: ir.Value, *, with_residual: bool) -> _Tail:
        value, inner = _clamps(value)
        reader = _only_reader(value)
        terms = None if reader is None or not with_residual else match.match_add(reader)
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
    leading = tuple(range(len(match.shape_of(init)) - 1))
    if op is None or op.name != "linalg.broadcast" or match.ints(op, "dimensions") != leading:
        return None
    numbers = relaid_constant(op.operands[0])
    return numbers if numbers is not None and numbers.shape == (channels,) else None
