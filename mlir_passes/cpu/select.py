"""Which operations become which kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch_mlir import ir

from mlir_passes import match
from mlir_passes.build import tensor_type
from mlir_passes.cpu import patterns
from mlir_passes.cpu.emit import Buffer, Calls, border_byte, image_shape, tag_like, unbordered
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.conv import Conv, Window
from mlir_passes.cpu.kernels.depthwise import Depthwise
from mlir_passes.cpu.kernels.epilogue import MULTIPLIER, REAL, Form
from mlir_passes.cpu.kernels.pointwise import Add, Concat, Interleave, Quantize
from mlir_passes.cpu.kernels.pool import MaxPool, SumPool
from mlir_passes.cpu.kernels.text import Layout
from mlir_passes.cpu.patterns import Padded, Parameter, Requantized, Sum
from mlir_passes.cpu.tiles import choose_tile

_DENSE, _DEPTHWISE, _MATMUL = "linalg.conv_2d_nhwc_hwcf", "linalg.depthwise_conv_2d_nhwc_hwc", "linalg.matmul"


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix product to be emitted: what it reads, its weight as [kh, kw, ci, co], its window."""

    found: Requantized
    source: Padded
    weight: Parameter
    window: Window


class Selection:
    """Visits the operations of a function in order and calls a kernel for each that one covers."""

    def __init__(self, calls: Calls, isa: Isa) -> None:
        self.calls, self.isa = calls, isa
        self.waiting: dict[ir.Value, _Layer] = {}

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel for ``op``, or let it wait for the addition that follows it, or do nothing."""
        if len(op.results) != 1 or not isinstance(op.results[0].type, ir.RankedTensorType):
            return
        if (found := patterns.requantized(op)) is not None and _is_image(op.results[0]):
            self._requantized(found)
        elif (total := patterns.added(op)) is not None and _is_image(op.results[0]):
            self._add(total)
        elif (image := patterns.quantized_input(op)) is not None and _is_image(op.results[0]):
            self._quantize(op, *image)
        elif op.name == "linalg.pooling_nhwc_max" and _is_stored(op.results[0]):
            self._max_pool(op)
        elif op.name == "tensor.concat" and _is_stored(op.results[0]):
            self._concat(op)
        elif op.name == "tensor.extract_slice":
            self._slice(op)
        elif op.name in ("tensor.collapse_shape", "tensor.expand_shape"):
            self._view(op)
            self._shuffle(op)

    # Layers

    def _requantized(self, found: Requantized) -> None:
        if found.sums.name in (_DENSE, _DEPTHWISE, _MATMUL):
            layer = self._layer(found)
            if layer is None:
                return
            if self._is_added(found):
                self.waiting[found.op.results[0]] = layer
            else:
                self._emit_layer(layer, None, None)
        elif found.sums.name == "linalg.pooling_nhwc_sum" or patterns.image_sum(found.sums):
            self._average(found)

    def _layer(self, found: Requantized) -> _Layer | None:
        sums = found.sums
        weight, source = patterns.parameter_of(sums.operands[1]), patterns.padded(sums.operands[0])
        if weight is None or source is None or not _is_stored(source.value) or not self._fits(source):
            return None
        if sums.name == _MATMUL:
            return _Layer(found, source, Parameter(weight.numbers[None, None], weight.tag), Window())
        kernel = (weight.numbers.shape[0], weight.numbers.shape[1])
        return _Layer(found, source, weight, patterns.window_of(sums, kernel, source))

    def _fits(self, source: Padded) -> bool:
        """Whether the border that ``source`` asks for is the one that its tensor has or will have."""
        if source.number is None:
            return True
        _, number = self.calls.layout(source.value)
        return number is not None and np.array_equal(number.numbers, source.number.numbers)

    def _is_added(self, found: Requantized) -> bool:
        if found.form == REAL or found.sums.name != _DENSE:
            return False
        uses = list(found.op.results[0].uses)
        total = patterns.added(uses[0].owner.operation) if len(uses) == 1 else None
        return total is not None and _is_image(total.op.results[0])

    def _emit_layer(self, layer: _Layer, total: Sum | None, residual: ir.Value | None) -> None:
        found = layer.found
        result = (total.op if total is not None else found.op).results[0]
        source = self.calls.buffer(layer.source.value)
        y, number = self._result_layout(found, result)
        other = None if residual is None else self.calls.buffer(residual)
        form = Form(found.form, None if other is None else other.layout)
        spec: Conv | Depthwise
        if found.sums.name == _DEPTHWISE:
            spec = Depthwise(source.layout, y, layer.window, form, self.isa)
        else:
            spec = Conv(
                source.layout, y, layer.window, form, choose_tile(source.layout, y, layer.window, self.isa), self.isa
            )
        weight = layer.weight.numbers
        packed = self.calls.constant(layer.weight.tag, spec.pack(weight))
        over = (0, 1) if found.sums.name == _DEPTHWISE else (0, 1, 2)
        offset = weight.astype(np.int64).sum(axis=over) * (128 - self.isa.zero)
        operands = [source.value, packed, *self._numbers(found, spec, offset, None if total else number)]
        if total is not None and other is not None:
            swapped = total.b == found.op.results[0]
            operands += [self._sum_numbers(total, number, swapped=swapped), other.value]
        self._call(spec, operands, result, y, found)

    def _numbers(
        self, found: Requantized, spec: Conv | Depthwise | SumPool, offset: np.ndarray | int, number: Parameter | None
    ) -> list[ir.Value]:
        """Bias, multipliers and range as the kernel reads them; ``offset``: what reading u8 for i8 adds to the sums."""
        bias, multiplier, *others = found.parameters
        shifted = (bias.numbers.astype(np.int64) - offset).astype(np.int32)
        values = [
            self.calls.constant(bias.tag, spec.pack_channels(shifted)),
            self.calls.constant(multiplier.tag, spec.pack_channels(multiplier.numbers)),
        ]
        if found.form == REAL:
            return values
        zero, low, high = (each.numbers.reshape(()) for each in others)
        border = border_byte(number)
        if found.form == MULTIPLIER:
            limits = np.array([low - zero, high - zero, zero + 128, border], np.float32)
        else:
            limits = np.array([low + 128, high + 128, zero + 128, border], np.int32)
        return [*values, self.calls.constant(tag_like(bias, "range"), limits)]

    def _sum_numbers(self, total: Sum, number: Parameter | None, *, swapped: bool) -> ir.Value:
        m_a, m_b, offset, shift, zero, low, high = (int(each.numbers.reshape(())) for each in total.parameters)
        # The sum is of u8 now, 128 above the i8 on both sides; it wraps as the hardware's does.
        offset -= 128 * (m_a + m_b)
        if swapped:
            m_a, m_b = m_b, m_a
        values = [m_a, m_b, offset, shift, zero + 128, low + 128, high + 128, border_byte(number)]
        return self.calls.constant(tag_like(total.parameters[0], "sum"), np.array(values, np.int64).astype(np.int32))

    def _average(self, found: Requantized) -> None:
        sums = found.sums
        source = patterns.padded(sums.operands[0])
        if source is None or not _is_stored(source.value) or not self._fits(source):
            return
        if sums.name == "linalg.generic":
            if source.number is not None:
                return
            h, w, _ = image_shape(source.value)
            window = Window((h, w))
        else:
            shape = match.shape_of(sums.operands[1])
            window = patterns.window_of(sums, (shape[0], shape[1]), source)
        x = self.calls.buffer(source.value)
        y, number = self._result_layout(found, found.op.results[0])
        spec = SumPool(x.layout, y, window, Form(found.form), self.isa)
        count = window.kernel[0] * window.kernel[1]
        self._call(spec, [x.value, *self._numbers(found, spec, 128 * count, number)], found.op.results[0], y, found)

    def _result_layout(self, found: Requantized, result: ir.Value) -> tuple[Layout, Parameter | None]:
        if found.form == REAL:
            return Layout(*image_shape(result)), None
        return self.calls.layout(result)

    def _call(
        self,
        spec: Conv | Depthwise | SumPool,
        operands: list[ir.Value],
        result: ir.Value,
        y: Layout,
        found: Requantized,
    ) -> None:
        if found.form != REAL:
            made = self.calls.call(spec, operands, tensor_type(y.shape, np.int8), found.sums)
            self.calls.buffers[result] = Buffer(made, y)
            return
        kind = ir.RankedTensorType(result.type)
        made = self.calls.call(spec, operands, tensor_type(y.shape, np.float32), found.sums)
        result.replace_all_uses_with(unbordered(made, y, kind))

    # The others

    def _add(self, total: Sum) -> None:
        result = total.op.results[0]
        # The later of two waiting layers takes the sum along; the other one's result is then there.
        waiting = [value for value in self.waiting if value in (total.a, total.b)]
        for value in waiting[:-1]:
            self._emit_layer(self.waiting.pop(value), None, None)
        if waiting and total.a != total.b:
            layer = self.waiting.pop(waiting[-1])
            self._emit_layer(layer, total, total.a if total.b == waiting[-1] else total.b)
            return
        y, number = self.calls.layout(result)
        a, b = self.calls.buffer(total.a), self.calls.buffer(total.b)
        if not a.layout.stride == b.layout.stride == y.stride:
            return
        spec = Add(a.layout, b.layout, y, self.isa)
        operands = [self._sum_numbers(total, number, swapped=False), a.value, b.value]
        self.calls.buffers[result] = Buffer(self.calls.call(spec, operands, tensor_type(y.shape, np.int8), total.op), y)

    def _quantize(
        self, op: ir.Operation, quantize: ir.Operation, real: ir.Value, numbers: tuple[Parameter, ...]
    ) -> None:
        y, number = self.calls.layout(op.results[0])
        if y.c > 4 or not all(_read_by_dense(use) for use in op.results[0].uses):
            return
        y = Layout(y.h, y.w, y.c, y.top, y.left, y.bottom, y.right, packed=True)
        scale, zero, low, high = (float(each.numbers.reshape(())) for each in numbers)
        values = np.array([scale, low - zero, high - zero, zero + 128, border_byte(number)], np.float32)
        table = self.calls.constant(tag_like(numbers[0], "table"), values)
        spec = Quantize(y, self.isa)
        made = self.calls.call(spec, [real, table], tensor_type(y.shape, np.int8), quantize)
        self.calls.buffers[op.results[0]] = Buffer(made, y)

    def _max_pool(self, op: ir.Operation) -> None:
        source = patterns.padded(op.operands[0])
        shape = match.shape_of(op.operands[1])
        if source is None or not _is_stored(source.value) or match.scalar(match.init_of(op)) != -128:
            return
        if source.number is not None and int(source.number.numbers) != -128:
            return
        window = patterns.window_of(op, (shape[0], shape[1]), source)
        x = self.calls.buffer(source.value)
        y, number = self.calls.layout(op.results[0])
        if not _overlaps_everywhere(window, x.layout, y):
            return
        spec = MaxPool(x.layout, y, window, self.isa)
        operands = [x.value, self.calls.border(number, (16,))]
        self.calls.buffers[op.results[0]] = Buffer(
            self.calls.call(spec, operands, tensor_type(y.shape, np.int8), op), y
        )

    def _concat(self, op: ir.Operation) -> None:
        if ir.IntegerAttr(op.attributes["dim"]).value != 3 or any(image_shape(v)[2] < 16 for v in op.operands):
            return
        if all(use.owner.operation.name == "tensor.expand_shape" for use in op.results[0].uses):
            return  # a channel shuffle, which takes the two tensors themselves
        inputs = [self.calls.buffer(value) for value in op.operands]
        y, number = self.calls.layout(op.results[0])
        spec = Concat(tuple(each.layout for each in inputs), y, self.isa)
        operands = [*(each.value for each in inputs), self.calls.border(number, (16,))]
        self.calls.buffers[op.results[0]] = Buffer(
            self.calls.call(spec, operands, tensor_type(y.shape, np.int8), op), y
        )

    def _shuffle(self, op: ir.Operation) -> None:
        found = patterns.shuffled(op)
        if found is None or not _is_stored(op.results[0]) or image_shape(found[0])[2] < 16:
            return
        a, b = (self.calls.buffer(value) for value in found)
        y, number = self.calls.layout(op.results[0])
        # The halves are read as slices, the second one in groups of four that may reach beyond it.
        y = replace(y, pixel=-(-(y.c + 3) // 16) * 16)
        spec = Interleave(a.layout, b.layout, y, self.isa)
        operands = [a.value, b.value, self.calls.border(number, (16,))]
        self.calls.buffers[op.results[0]] = Buffer(
            self.calls.call(spec, operands, tensor_type(y.shape, np.int8), op), y
        )

    def _slice(self, op: ir.Operation) -> None:
        """Some channels of a buffer are the same buffer."""
        source = op.operands[0]
        if source not in self.calls.buffers or len(op.operands) != 1 or not _is_stored(op.results[0]):
            return
        buffer, (h, w, c) = self.calls.buffers[source], image_shape(op.results[0])
        offsets = match.ints(op, "static_offsets")
        first, (own, _) = buffer.layout.first + offsets[-1], self.calls.layout(op.results[0])
        if any(offsets[:-1]) or (h, w) != (buffer.layout.h, buffer.layout.w) or own.has_border:
            return
        if first + max(16, -(-c // 4) * 4) > buffer.layout.stride or set(match.ints(op, "static_strides")) != {1}:
            return
        layout = replace(buffer.layout, c=c, first=first, pixel=buffer.layout.stride)
        self.calls.buffers[op.results[0]] = Buffer(buffer.value, layout)

    def _view(self, op: ir.Operation) -> None:
        """[1, 1, 1, c] and [1, c] are the same buffer."""
        source, result = op.operands[0], op.results[0]
        if source not in self.calls.buffers or not _is_image(result) or self.calls.layout(result)[0].has_border:
            return
        h, w, c = image_shape(result)
        layout = self.calls.buffers[source].layout
        if (h, w, c) == (1, 1, layout.c) and layout.h == layout.w == 1:
            self.calls.buffers[result] = self.calls.buffers[source]


def _is_image(value: ir.Value) -> bool:
    shape = match.shape_of(value)
    return len(shape) in (2, 4) and shape[0] == 1


def _is_stored(value: ir.Value) -> bool:
    """Whether a value is an image of stored integers."""
    return _is_image(value) and str(ir.RankedTensorType(value.type).element_type) == "i8"


def _read_by_dense(use: ir.OpOperand) -> bool:
    reader = use.owner.operation
    if reader.name != "tensor.pad":
        return reader.name == _DENSE
    return all(each.owner.operation.name == _DENSE for each in reader.results[0].uses)


def _overlaps_everywhere(window: Window, x: Layout, y: Layout) -> bool:
    """Whether every window of a pool without gaps holds at least one position of the image."""
    for axis, (size, before, count) in enumerate(((x.h, window.top, y.h), (x.w, window.left, y.w))):
        last = (count - 1) * window.strides[axis] - before
        if window.dilations[axis] != 1 or last >= size or before >= window.kernel[axis]:
            return False
    return True
