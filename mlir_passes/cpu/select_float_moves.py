"""f32 operations without weights that become kernels, or none: some are views of a buffer."""

from __future__ import annotations

from dataclasses import replace

from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.emit import Buffer, image_layout, makes_tensor
from mlir_passes.cpu.float_tensors import FloatTensors, is_float_image, padded
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.image_float import (
    FloatAverage,
    FloatConcat,
    FloatInterleave,
    FloatMaxPool,
    FloatTranspose,
)
from mlir_passes.cpu.kernels.pool import overlaps_everywhere
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, MAX_POOL
from mlir_passes.ir import match
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.windows import Window

_LOWEST = -3.4028234663852886e38


class FloatMoveSelection:
    """Visits the operations of a function in order: pools, joins and shuffles of channels, the input image."""

    def __init__(self, tensors: FloatTensors, isa: Isa) -> None:
        self.tensors, self.isa = tensors, isa

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel for ``op``, or find the buffer that it is a view of, or do nothing."""
        if not makes_tensor(op) or not is_float_image(op.results[0]):
            return
        missed = None
        if op.name == MAX_POOL:
            missed = self._max_pool(op)
        elif op.name == "linalg.generic":
            missed = self._average(op)
        elif op.name == "linalg.transpose":
            missed = self._transpose(op)
        elif op.name == "tensor.concat":
            missed = self._concat(op)
        elif op.name == "tensor.extract_slice":
            missed = self._slice(op)
        elif op.name in ("tensor.collapse_shape", "tensor.expand_shape") and not self._view(op):
            missed = self._shuffle(op)
        if missed is not None and op not in self.tensors.calls.missed:
            self.tensors.calls.miss(op, missed)

    def _max_pool(self, op: ir.Operation) -> Missed | None:
        lowest = match.scalar(match.init_of(op))
        if lowest is None or lowest > _LOWEST or not is_plain(op):
            return Missed("it does not begin at the lowest number, or is no plain maximum")
        source, shape = padded(op.operands[0], lowest), match.shape_of(op.operands[1])
        window = patterns.window_of(op, (shape[0], shape[1]), source)
        y = self.tensors.layout(op.results[0])
        if window.dilations != (1, 1):
            return Missed("its window is dilated")
        if not overlaps_everywhere(window, image_layout(source.value), y):
            return Missed("one of its windows lies in the padding altogether")
        x = self.tensors.buffer(source.value)
        self.tensors.call(FloatMaxPool(x.layout, y, window, self.isa), [x.value], op.results[0], y, op)
        return None

    def _average(self, op: ir.Operation) -> Missed | None:
        found = match.match_divide(op)
        sums = None if found is None else match.owner(found[0])
        if found is None or sums is None or not sums.operands or not is_float_image(sums.operands[0]):
            return None
        if match.scalar(match.init_of(sums)) != 0.0:
            return Missed("its sums do not begin at 0")
        if patterns.sums_windows(sums):
            source, shape = padded(sums.operands[0]), match.shape_of(sums.operands[1])
            window = patterns.window_of(sums, (shape[0], shape[1]), source)
        elif patterns.float_image_sum(sums):
            source, shape = patterns.Padded(sums.operands[0]), match.shape_of(sums.operands[0])
            window = Window((shape[1], shape[2]))
        else:
            return Missed("what it divides is no sum over windows or whole images")
        x, y = self.tensors.buffer(source.value), self.tensors.layout(op.results[0])
        spec = FloatAverage(x.layout, y, window, found[1], self.isa)
        self.tensors.call(spec, [x.value], op.results[0], y, sums)
        return None

    def _transpose(self, op: ir.Operation) -> Missed | None:
        y = self.tensors.layout(op.results[0]) if len(match.shape_of(op.results[0])) == 4 else None
        if y is None or y.c > 4 or match.ints(op, "permutation") != (0, 2, 3, 1):
            return Missed("it does not bring one to four channels innermost")
        if not all(_read_by_window(use) for use in op.results[0].uses):
            return Missed("others than convolutions read it")
        self.tensors.call(FloatTranspose(y, self.isa), [op.operands[0]], op.results[0], y, op)
        return None

    def _concat(self, op: ir.Operation) -> Missed | None:
        if not patterns.joins_channels(op):
            return Missed("it does not join channels")
        self._join(op, [self.tensors.buffer(value) for value in op.operands])
        return None

    def _join(self, op: ir.Operation, inputs: list[Buffer]) -> None:
        y = self.tensors.layout(op.results[0])
        spec = FloatConcat(tuple(each.layout for each in inputs), y, self.isa)
        self.tensors.call(spec, [each.value for each in inputs], op.results[0], y, op)

    def _shuffle(self, op: ir.Operation) -> Missed | None:
        found = patterns.shuffled(op)
        if found is None or len(found) != 2 or match.shape_of(found[0])[-1] < 2:
            return Missed("it is no shuffle of the channels of two tensors")
        a, b = (self.tensors.buffer(value) for value in found)
        y = self.tensors.layout(op.results[0])
        spec = FloatInterleave(a.layout, b.layout, y, self.isa)
        self.tensors.call(spec, [a.value, b.value], op.results[0], y, op)
        return None

    def _slice(self, op: ir.Operation) -> Missed | None:
        """Some channels of a buffer are the same buffer, or copied where a reader wants a border."""
        source, result, first = op.operands[0], op.results[0], patterns.first_channel(op)
        buffers = self.tensors.calls.buffers
        if first is None:
            return Missed("it does not take neighbouring channels of all pixels")
        if source not in buffers:
            return Missed("no kernel makes what it takes channels of")
        buffer, layout = buffers[source], buffers[source].layout
        part = replace(layout, c=match.shape_of(result)[-1], first=layout.first + first, pixel=layout.stride)
        if self.tensors.layout(result).has_border:
            self._join(op, [Buffer(buffer.value, part)])
        else:
            buffers[result] = Buffer(buffer.value, part)
        return None

    def _view(self, op: ir.Operation) -> bool:
        """[n, 1, 1, c] and [n, c] are the same buffer: whether ``op`` is such a view."""
        buffers, source, result = self.tensors.calls.buffers, op.operands[0], op.results[0]
        if source not in buffers or self.tensors.layout(result).has_border:
            return False
        if not patterns.is_one_pixel(match.shape_of(result), buffers[source].layout):
            return False
        buffers[result] = buffers[source]
        return True


def _read_by_window(use: ir.OpOperand) -> bool:
    reader = use.owner.operation
    if reader.name != "tensor.pad":
        return reader.name in (DENSE, DEPTHWISE)
    plain = padded(reader.results[0]).value != reader.results[0]
    return plain and all(each.owner.operation.name in (DENSE, DEPTHWISE) for each in reader.results[0].uses)
