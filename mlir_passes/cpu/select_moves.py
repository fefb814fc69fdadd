"""Which operations that only move or select numbers become which kernel, or none: some are views of a buffer.

The number type is an argument: what differs is asked of its `Tensors`, but for the image that comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.calls import Buffer, border_byte, makes_tensor, numbers_as, tag_like
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.image_float import FloatAverage, FloatTranspose
from mlir_passes.cpu.kernels.pointwise import Quantize
from mlir_passes.cpu.kernels.pool import overlaps_everywhere
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, MAX_POOL, Parameter
from mlir_passes.cpu.tensors import FloatTensors, StoredTensors, Tensors, float_padded, image_layout
from mlir_passes.ir import match
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.windows import Window

Attempt = Callable[[ir.Operation], Missed | None]


class MoveSelection:
    """Visits the operations of a function in order: maximum pools, joins, shuffles and slices of channels."""

    def __init__(self, tensors: Tensors, isa: Isa) -> None:
        self.tensors, self.isa = tensors, isa
        self.buffers = tensors.calls.buffers
        self.attempts: dict[str, Attempt] = {
            MAX_POOL: self._max_pool, "tensor.concat": self._concat, "tensor.extract_slice": self._slice,
            "tensor.collapse_shape": self._reshape, "tensor.expand_shape": self._reshape,
        }  # fmt: skip

    def visit(self, op: ir.Operation) -> None:
        """Emit the kernel for ``op``, or find the buffer that it is a view of, or remember why not."""
        attempt = self.attempts.get(op.name)
        if attempt is None or not makes_tensor(op) or not self.tensors.holds(op.results[0]):
            return
        missed = attempt(op)
        if missed is not None:
            self.tensors.calls.miss(op, missed)

    def _max_pool(self, op: ir.Operation) -> Missed | None:
        lowest, tensors = match.scalar(match.init_of(op)), self.tensors
        if lowest is None or lowest > tensors.lowest or not is_plain(op):
            return Missed("it does not begin at the lowest number, or is no plain maximum")
        source, shape = tensors.read(op.operands[0], lowest), match.shape_of(op.operands[1])
        if isinstance(source, Missed):
            return source
        if not tensors.holds(source.value):
            return Missed(f"it reads {source.value.type}, which are no images of {tensors.element}")
        window = patterns.window_of(op, (shape[0], shape[1]), source)
        y = tensors.layout(op.results[0])
        if tensors.element == "f32" and window.dilations != (1, 1):
            return Missed("its window is dilated")
        if not overlaps_everywhere(window, image_layout(source.value), y):
            return Missed("one of its windows lies in the padding altogether")
        x = tensors.buffer(source.value)
        operands = [x.value, *tensors.border(op.results[0])]
        tensors.call(tensors.max_pool(x.layout, y, window, self.isa), operands, op.results[0], y, op)
        return None

    def _concat(self, op: ir.Operation) -> Missed | None:
        if not patterns.joins_channels(op):
            return Missed("it does not join channels")
        self._join(op, [self.tensors.buffer(value) for value in op.operands])
        return None

    def _join(self, op: ir.Operation, inputs: list[Buffer]) -> None:
        tensors, result = self.tensors, op.results[0]
        y = tensors.layout(result)
        spec = tensors.concat(tuple(each.layout for each in inputs), y, self.isa)
        tensors.call(spec, [*(each.value for each in inputs), *tensors.border(result)], result, y, op)

    def _reshape(self, op: ir.Operation) -> Missed | None:
        return None if self._is_view(op) else self._shuffle(op)

    def _is_view(self, op: ir.Operation) -> bool:
        """[n, 1, 1, c] and [n, c] are the same buffer: whether ``op`` is such a view."""
        source, result = op.operands[0], op.results[0]
        if source not in self.buffers or self.tensors.layout(result).has_border:
            return False
        if not patterns.is_one_pixel(match.shape_of(result), self.buffers[source].layout):
            return False
        self.buffers[result] = self.buffers[source]
        return True

    def _shuffle(self, op: ir.Operation) -> Missed | None:
        found, tensors = patterns.shuffled(op), self.tensors
        if found is None:
            return Missed("it is no shuffle of two groups of channels")
        if len(found) == 2 and match.shape_of(found[0])[-1] > (1 if tensors.element == "f32" else 0):
            a, b = (tensors.buffer(value) for value in found)
        elif len(found) == 1 and tensors.element == "i8":
            half = match.shape_of(found[0])[-1] // 2
            layouts = [tensors.channels(tensors.held_layout(found[0]), first, half) for first in (0, half)]
            if layouts[0] is None or layouts[1] is None:
                return Missed("half of its channels are not whole vectors")
            whole = tensors.buffer(found[0])
            a, b = (Buffer(whole.value, layout) for layout in layouts if layout is not None)
        else:
            return Missed("it is no shuffle of the channels of two tensors")
        y = tensors.layout(op.results[0])
        if tensors.element == "i8":
            # The halves are read as slices, the second one in groups of four that may reach beyond it.
            y = replace(y, pixel=max(32, -(-(y.c + 3) // 16) * 16))
        operands = [a.value, b.value, *tensors.border(op.results[0])]
        tensors.call(tensors.interleave(a.layout, b.layout, y, self.isa), operands, op.results[0], y, op)
        return None

    def _slice(self, op: ir.Operation) -> Missed | None:
        """Some channels of a buffer are the same buffer, or copied where a reader wants a border or whole vectors."""
        source, result, first = op.operands[0], op.results[0], patterns.first_channel(op)
        if first is None:
            return Missed("it does not take neighbouring channels of all pixels")
        if source not in self.buffers:
            return Missed("no kernel makes what it takes channels of")
        buffer, c = self.buffers[source], match.shape_of(result)[-1]
        layout = self.tensors.channels(buffer.layout, first, c)
        if layout is not None and not self.tensors.layout(result).has_border:
            self.buffers[result] = Buffer(buffer.value, layout)
            return None
        part = replace(buffer.layout, c=c, first=buffer.layout.first + first, pixel=buffer.layout.stride)
        self._join(op, [Buffer(buffer.value, part)])
        return None


class StoredMoveSelection(MoveSelection):
    """Of stored integers; quantizes the image that comes in."""

    tensors: StoredTensors

    def __init__(self, tensors: StoredTensors, isa: Isa) -> None:
        super().__init__(tensors, isa)
        self.attempts["linalg.transpose"] = self._quantize

    def _quantize(self, op: ir.Operation) -> Missed | None:
        found = patterns.quantized_input(op)
        if found is None or isinstance(found, Missed):
            return found
        quantize, real, numbers = found
        y, number = self.tensors.layout(op.results[0]), self.tensors.number(op.results[0])
        # A dense convolution reads four bytes at a time, up to three beyond its window; everything else whole vectors.
        if y.c <= 4 and all(_read_by(use, (DENSE,)) for use in op.results[0].uses):
            y = replace(y, packed=True, right=y.right + 4 - y.c)
        table = numbers_as(tag_like(numbers[0], "table"), _table(numbers, number))
        self.tensors.call(Quantize(y, self.isa), [real, table], op.results[0], y, quantize)
        return None


class FloatMoveSelection(MoveSelection):
    """Of f32; averages, which have no requantization to go into, and the image that comes in."""

    def __init__(self, tensors: FloatTensors, isa: Isa) -> None:
        super().__init__(tensors, isa)
        self.attempts |= {"linalg.generic": self._average, "linalg.transpose": self._transpose}

    def _average(self, op: ir.Operation) -> Missed | None:
        found = match.match_divide(op)
        sums = None if found is None else match.owner(found[0])
        if found is None or sums is None or not sums.operands or not self.tensors.holds(sums.operands[0]):
            return None
        if match.scalar(match.init_of(sums)) != 0.0:
            return Missed("its sums do not begin at 0")
        if patterns.sums_windows(sums):
            source, shape = float_padded(sums.operands[0]), match.shape_of(sums.operands[1])
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
        if not all(_read_by(use, (DENSE, DEPTHWISE), spatial=True) for use in op.results[0].uses):
            return Missed("others than convolutions read it")
        self.tensors.call(FloatTranspose(y, self.isa), [op.operands[0]], op.results[0], y, op)
        return None


def _table(numbers: tuple[Parameter, ...], border: Parameter | None) -> np.ndarray:
    """What the quantizing kernel reads: scale, lo − z, hi − z, z and the border, of u8."""
    scale, zero, low, high = (float(each.numbers.reshape(())) for each in numbers)
    return np.array([scale, low - zero, high - zero, zero + 128, border_byte(border)], np.float32)


def _read_by(use: ir.OpOperand, names: tuple[str, ...], *, spatial: bool = False) -> bool:
    """Whether a use is one of these operations', or a padding's that only they read; ``spatial``: with zeros."""
    reader = use.owner.operation
    if reader.name != "tensor.pad":
        return reader.name in names
    plain = not spatial or float_padded(reader.results[0]).value != reader.results[0]
    return plain and all(each.owner.operation.name in names for each in reader.results[0].uses)
