"""Which operations that only move or select numbers become which kernel, or none: some are views of a buffer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.emit import (
    Buffer,
    Calls,
    KernelSpec,
    border_byte,
    image_layout,
    is_stored,
    makes_tensor,
    tag_like,
)
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.pointwise import Concat, Interleave, Quantize
from mlir_passes.cpu.kernels.pool import MaxPool, overlaps_everywhere
from mlir_passes.cpu.patterns import DENSE, MAX_POOL, Parameter
from mlir_passes.ir import match
from mlir_passes.ir.build import tensor_type
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.text import Layout


class MoveSelection:
    """Visits the operations of a function in order; maximum pools, joins and shuffles of channels, the input image."""

    def __init__(self, calls: Calls, isa: Isa) -> None:
        self.calls, self.isa = calls, isa

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel for ``op``, or find the buffer that it is a view of, or do nothing."""
        if not makes_tensor(op) or not is_stored(op.results[0]):
            return
        image = patterns.quantized_input(op)
        missed = image if isinstance(image, Missed) else None
        if isinstance(image, tuple):
            self._quantize(op, *image)
        elif op.name == MAX_POOL:
            missed = self._max_pool(op)
        elif op.name == "tensor.concat":
            missed = self._concat(op)
        elif op.name == "tensor.extract_slice":
            missed = self._slice(op)
        elif op.name in ("tensor.collapse_shape", "tensor.expand_shape") and not self._view(op):
            missed = self._shuffle(op)
        if missed is not None:
            self.calls.miss(op, missed)

    def _quantize(
        self, op: ir.Operation, quantize: ir.Operation, real: ir.Value, numbers: tuple[Parameter, ...]
    ) -> None:
        y, number = self.calls.layout(op.results[0])
        # A dense convolution reads four bytes at a time, up to three beyond its window; everything else whole vectors.
        if y.c <= 4 and all(_read_by_dense(use) for use in op.results[0].uses):
            y = replace(y, packed=True, right=y.right + 4 - y.c)
        scale, zero, low, high = (float(each.numbers.reshape(())) for each in numbers)
        values = np.array([scale, low - zero, high - zero, zero + 128, border_byte(number)], np.float32)
        table = self.calls.constant(tag_like(numbers[0], "table"), values)
        made = self.calls.call(Quantize(y, self.isa), [real, table], tensor_type(y.shape, np.int8), quantize)
        self.calls.buffers[op.results[0]] = Buffer(made, y)

    def _max_pool(self, op: ir.Operation) -> Missed | None:
        source = patterns.padded(op.operands[0])
        shape = match.shape_of(op.operands[1])
        if isinstance(source, Missed):
            return source
        if not is_stored(source.value) or not is_plain(op):
            return Missed("it is no maximum of signed 8-bit integers")
        if match.scalar(match.init_of(op)) != -128 or (
            source.number is not None and int(source.number.numbers) != -128
        ):
            return Missed("it does not begin at, or is not padded with, the lowest integer")
        window = patterns.window_of(op, (shape[0], shape[1]), source)
        y, number = self.calls.layout(op.results[0])
        if not overlaps_everywhere(window, image_layout(source.value), y):
            return Missed("one of its windows lies in the padding altogether")
        x = self.calls.buffer(source.value)
        operands = [x.value, self.calls.border(number, (16,))]
        self._call(MaxPool(x.layout, y, window, self.isa), operands, op, y)
        return None

    def _concat(self, op: ir.Operation) -> Missed | None:
        if not patterns.joins_channels(op):
            return Missed("it does not join channels")
        self._join(op, [self.calls.buffer(value) for value in op.operands])
        return None

    def _join(self, op: ir.Operation, inputs: list[Buffer]) -> None:
        y, number = self.calls.layout(op.results[0])
        operands = [*(each.value for each in inputs), self.calls.border(number, (16,))]
        self._call(Concat(tuple(each.layout for each in inputs), y, self.isa), operands, op, y)

    def _shuffle(self, op: ir.Operation) -> Missed | None:
        found = patterns.shuffled(op)
        if found is None:
            return Missed("it is no shuffle of two groups of channels")
        if len(found) == 2:
            a, b = (self.calls.buffer(value) for value in found)
        else:
            half = match.shape_of(found[0])[-1] // 2
            layouts = [_channels(self.calls.held_layout(found[0]), first, half) for first in (0, half)]
            if layouts[0] is None or layouts[1] is None:
                return Missed("half of its channels are not whole vectors")
            whole = self.calls.buffer(found[0])
            a, b = (Buffer(whole.value, layout) for layout in layouts if layout is not None)
        y, number = self.calls.layout(op.results[0])
        # The halves are read as slices, the second one in groups of four that may reach beyond it.
        y = replace(y, pixel=max(32, -(-(y.c + 3) // 16) * 16))
        operands = [a.value, b.value, self.calls.border(number, (16,))]
        self._call(Interleave(a.layout, b.layout, y, self.isa), operands, op, y)
        return None

    def _slice(self, op: ir.Operation) -> Missed | None:
        """Some channels of a buffer are the same buffer, or copied where a reader wants a border or whole vectors."""
        source, result, first = op.operands[0], op.results[0], patterns.first_channel(op)
        if first is None:
            return Missed("it does not take neighbouring channels of all pixels")
        if source not in self.calls.buffers:
            return Missed("no kernel makes what it takes channels of")
        buffer, c = self.calls.buffers[source], match.shape_of(result)[-1]
        layout = _channels(buffer.layout, first, c)
        if layout is not None and not self.calls.layout(result)[0].has_border:
            self.calls.buffers[result] = Buffer(buffer.value, layout)
            return None
        part = replace(buffer.layout, c=c, first=buffer.layout.first + first, pixel=buffer.layout.stride)
        self._join(op, [Buffer(buffer.value, part)])
        return None

    def _view(self, op: ir.Operation) -> bool:
        """[n, 1, 1, c] and [n, c] are the same buffer: whether ``op`` is such a view."""
        source, result = op.operands[0], op.results[0]
        if source not in self.calls.buffers or self.calls.layout(result)[0].has_border:
            return False
        if not patterns.is_one_pixel(match.shape_of(result), self.calls.buffers[source].layout):
            return False
        self.calls.buffers[result] = self.calls.buffers[source]
        return True

    def _call(self, spec: KernelSpec, operands: list[ir.Value], op: ir.Operation, y: Layout) -> None:
        made = self.calls.call(spec, operands, tensor_type(y.shape, np.int8), op)
        self.calls.buffers[op.results[0]] = Buffer(made, y)


def _channels(layout: Layout, first: int, count: int) -> Layout | None:
    """Some channels of an image, if readers of whole vectors stay within its pixels."""
    first += layout.first
    if first + max(16, -(-count // 4) * 4) > layout.stride:
        return None
    return replace(layout, c=count, first=first, pixel=layout.stride)


def _read_by_dense(use: ir.OpOperand) -> bool:
    reader = use.owner.operation
    if reader.name != "tensor.pad":
        return reader.name == DENSE
    return all(each.owner.operation.name == DENSE for each in reader.results[0].uses)
