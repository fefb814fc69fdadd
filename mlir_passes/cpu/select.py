"""Which layers, averages and additions become which kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.calls import border_byte, makes_tensor, numbers_as, tag_like
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.conv import Conv, one_unit
from mlir_passes.cpu.kernels.depthwise import Depthwise
from mlir_passes.cpu.kernels.epilogue import MULTIPLIER, REAL, Form
from mlir_passes.cpu.kernels.pointwise import Add
from mlir_passes.cpu.kernels.pool import SumPool
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, GROUPED, MATMUL, Padded, Parameter, Requantized, Sum
from mlir_passes.cpu.tensors import StoredTensors, image_layout, is_image, unbordered
from mlir_passes.cpu.tiles import choose_tile
from mlir_passes.ir import match
from mlir_passes.ir.build import tensor_type
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.text import Layout, joined_images
from mlir_passes.kernels.windows import Window


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix product to be emitted: what it reads, its weight, its window and its groups.

    weight: [kh, kw, ci of a group, co], of a depthwise convolution [kh, kw, c].
    """

    found: Requantized
    source: Padded
    weight: Parameter
    window: Window
    groups: int = 1


class Selection:
    """Visits the operations of a function in order and calls a kernel for each with weights or sums that one covers."""

    def __init__(self, tensors: StoredTensors, isa: Isa) -> None:
        self.tensors, self.calls, self.isa = tensors, tensors.calls, isa
        self.waiting: dict[ir.Value, _Layer] = {}

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel for ``op``, or let it wait for the addition that follows it, or do nothing."""
        if not makes_tensor(op) or not is_image(op.results[0]):
            return
        found = patterns.requantized(op) or patterns.added(op)
        missed = found
        if isinstance(found, Requantized):
            missed = self._requantized(found)
        elif isinstance(found, Sum):
            missed = self._add(found)
        if isinstance(missed, Missed):
            self.calls.miss(op, missed)

    # Layers

    def _requantized(self, found: Requantized) -> Missed | None:
        if patterns.sums_windows(found.sums) or patterns.image_sum(found.sums):
            return self._average(found)
        layer = self._layer(found)
        if isinstance(layer, Missed):
            return layer
        if self._is_added(found):
            self.waiting[found.op.results[0]] = layer
        else:
            self._emit_layer(layer, None, None)
        return None

    def _layer(self, found: Requantized) -> _Layer | Missed:
        sums, groups = found.sums, 1
        if sums.name not in (DENSE, GROUPED, DEPTHWISE, MATMUL) or not is_plain(sums):
            return Missed(f"no kernel computes {match.float_detail(sums)} as it stands")
        read, weight = sums.operands[0], patterns.parameter_of(sums.operands[1])
        if sums.name == GROUPED:
            split = match.owner(read)
            if not patterns.regroups_last(split):
                return Missed("its groups are not neighbouring channels of its input")
            read, groups = split.operands[0], match.shape_of(read)[3]
        source = self._source(read)
        if isinstance(source, Missed):
            return source
        if weight is None or weight.numbers.dtype != np.int8:
            return Missed("its weights are not constant i8")
        if sums.name == MATMUL:
            return _Layer(found, source, Parameter(weight.numbers[None, None], weight.tag), Window())
        if sums.name == GROUPED:
            weight = Parameter(patterns.ungrouped(weight.numbers), weight.tag)
        kernel = (weight.numbers.shape[0], weight.numbers.shape[1])
        return _Layer(found, source, weight, patterns.window_of(sums, kernel, source), groups)

    def _source(self, read: ir.Value) -> Padded | Missed:
        """What a layer or an average reads, with the border that its tensor has or will have."""
        source = patterns.padded(read)
        if isinstance(source, Missed):
            return source
        if not self.tensors.holds(source.value):
            return Missed(f"it reads {source.value.type}, which are not images of stored integers")
        number = None if source.number is None else self.tensors.number(source.value)
        if source.number is not None and (number is None or not np.array_equal(number.numbers, source.number.numbers)):
            return Missed("another reader of its input wants another number in the border")
        return source

    def _is_added(self, found: Requantized) -> bool:
        if found.form == REAL or found.sums.name not in (DENSE, GROUPED):
            return False
        uses = list(found.op.results[0].uses)
        total = patterns.added(uses[0].owner.operation) if len(uses) == 1 else None
        return isinstance(total, Sum) and is_image(total.op.results[0])

    def _emit_layer(self, layer: _Layer, total: Sum | None, residual: ir.Value | None) -> None:
        found = layer.found
        result = (total.op if total is not None else found.op).results[0]
        source = self.tensors.buffer(layer.source.value)
        y, number = self._result_layout(found, result)
        other = None if residual is None else self.tensors.buffer(residual)
        if found.sums.name == DEPTHWISE:
            spec: Conv | Depthwise = Depthwise(source.layout, y, layer.window, Form(found.form), self.isa)
        else:
            spec = self._convolution(layer, source.layout, y, None if other is None else other.layout)
        weight = layer.weight.numbers
        packed = numbers_as(layer.weight.tag, spec.pack(weight))
        over = (0, 1) if found.sums.name == DEPTHWISE else (0, 1, 2)
        offset = weight.astype(np.int64).sum(axis=over) * (128 - self.isa.zero)
        operands = [source.value, packed, *self._numbers(found, spec, offset, None if total else number)]
        if total is not None and other is not None:
            swapped = total.b == found.op.results[0]
            operands += [self._sum_numbers(total, number, swapped=swapped), other.value]
        self._call(spec, operands, result, y, found)

    def _convolution(self, layer: _Layer, x: Layout, y: Layout, residual: Layout | None) -> Conv:
        window, groups = layer.window, layer.groups
        if window.kernel == window.strides == (1, 1):
            x, y, *others = joined_images([x, y, *([] if residual is None else [residual])])
            residual = others[0] if others else None
        tile = choose_tile(*one_unit(x, y, groups, self.isa.lanes), window, self.isa)
        return Conv(x, y, window, Form(layer.found.form, residual), tile, self.isa, groups)

    def _numbers(
        self, found: Requantized, spec: Conv | Depthwise | SumPool, offset: np.ndarray | int, number: Parameter | None
    ) -> list[ir.Value]:
        """Bias, multipliers and range as the kernel reads them; ``offset``: what reading u8 for i8 adds to the sums."""
        bias, multiplier, *others = found.parameters
        shifted = (bias.numbers.astype(np.int64) - offset).astype(np.int32)
        values = [
            numbers_as(bias.tag, spec.pack_channels(shifted)),
            numbers_as(multiplier.tag, spec.pack_channels(multiplier.numbers)),
        ]
        if found.form == REAL:
            return values
        zero, low, high = (each.numbers.reshape(()) for each in others)
        border = border_byte(number)
        if found.form == MULTIPLIER:
            limits = np.array([low - zero, high - zero, zero + 128, border], np.float32)
        else:
            limits = np.array([low + 128, high + 128, zero + 128, border], np.int32)
        return [*values, numbers_as(tag_like(bias, "range"), limits)]

    def _sum_numbers(self, total: Sum, number: Parameter | None, *, swapped: bool) -> ir.Value:
        m_a, m_b, offset, shift, zero, low, high = (int(each.numbers.reshape(())) for each in total.parameters)
        # The sum is of u8 now, 128 above the i8 on both sides; it wraps as the hardware's does.
        offset -= 128 * (m_a + m_b)
        if swapped:
            m_a, m_b = m_b, m_a
        values = [m_a, m_b, offset, shift, zero + 128, low + 128, high + 128, border_byte(number)]
        return numbers_as(tag_like(total.parameters[0], "sum"), np.array(values, np.int64).astype(np.int32))

    def _average(self, found: Requantized) -> Missed | None:
        sums = found.sums
        source = self._source(sums.operands[0])
        if isinstance(source, Missed):
            return source
        if sums.name == "linalg.generic":
            if source.number is not None:
                return Missed("it sums a whole image with a border")
            shape = match.shape_of(source.value)
            window = Window((shape[1], shape[2]))
        else:
            shape = match.shape_of(sums.operands[1])
            window = patterns.window_of(sums, (shape[0], shape[1]), source)
        x = self.tensors.buffer(source.value)
        y, number = self._result_layout(found, found.op.results[0])
        spec = SumPool(x.layout, y, window, Form(found.form), self.isa)
        count = window.kernel[0] * window.kernel[1]
        self._call(spec, [x.value, *self._numbers(found, spec, 128 * count, number)], found.op.results[0], y, found)
        return None

    def _result_layout(self, found: Requantized, result: ir.Value) -> tuple[Layout, Parameter | None]:
        if found.form == REAL:
            return image_layout(result), None
        return self.tensors.layout(result), self.tensors.number(result)

    def _call(
        self,
        spec: Conv | Depthwise | SumPool,
        operands: list[ir.Value],
        result: ir.Value,
        y: Layout,
        found: Requantized,
    ) -> None:
        if found.form != REAL:
            self.tensors.call(spec, operands, result, y, found.sums)
            return
        kind = ir.RankedTensorType(result.type)
        made = self.calls.call(spec, operands, tensor_type(y.shape, np.float32), found.sums)
        result.replace_all_uses_with(unbordered(made, y, kind))

    # Additions

    def _add(self, total: Sum) -> Missed | None:
        result = total.op.results[0]
        # The later of two waiting layers takes the sum along; the other one's result is then there.
        waiting = [value for value in self.waiting if value in (total.a, total.b)]
        for value in waiting[:-1]:
            self._emit_layer(self.waiting.pop(value), None, None)
        if waiting and total.a != total.b:
            layer = self.waiting.pop(waiting[-1])
            self._emit_layer(layer, total, total.a if total.b == waiting[-1] else total.b)
            return None
        y, number = self.tensors.layout(result), self.tensors.number(result)
        a, b = self.tensors.buffer(total.a), self.tensors.buffer(total.b)
        spec = Add(a.layout, b.layout, y, self.isa)
        operands = [self._sum_numbers(total, number, swapped=False), a.value, b.value]
        self.tensors.call(spec, operands, result, y, total.op)
        return None
