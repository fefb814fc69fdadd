"""What only moves or selects numbers, of both number types: some operations become kernels, some views of a buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.calls import Buffer, border_byte, numbers_as, tag_like
from mlir_passes.cpu.kernels.image import Quantize, Transpose
from mlir_passes.cpu.kernels.join import Concat, Interleave
from mlir_passes.cpu.kernels.pool import MaxPool, overlaps_everywhere
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, Parameter
from mlir_passes.cpu.tensors import Tensors, float_padded, image_layout
from mlir_passes.ir import match
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.text import Layout
from mlir_passes.kernels.work import KernelSpec


@dataclass(frozen=True)
class Move:
    """A kernel for ``op``: what it reads, how it writes, and which it is, given the layouts of what it reads."""

    op: ir.Operation
    reads: tuple[ir.Value, ...]
    y: Layout
    kernel: Callable[..., KernelSpec]


@dataclass(frozen=True)
class View:
    """The result of ``op`` is a part of a buffer."""

    op: ir.Operation
    buffer: Buffer


@dataclass(frozen=True)
class Incoming:
    """An image that comes in, whose channels ``op`` brings innermost. numbers: how ``source`` quantizes it, if it does.

    numbers: scale, zero point, lo, hi.
    """

    op: ir.Operation
    source: ir.Operation
    image: ir.Value
    y: Layout
    numbers: tuple[Parameter, ...] = ()


# Recognition


def max_pool(op: ir.Operation, tensors: Tensors) -> Move | Missed:
    """A maximum over windows."""
    lowest = match.scalar(match.init_of(op))
    if lowest is None or lowest > tensors.lowest or not is_plain(op):
        return Missed("it does not begin at the lowest number, or is no plain maximum")
    source, shape = tensors.read(op.operands[0], lowest), match.shape_of(op.operands[1])
    if isinstance(source, Missed):
        return source
    window, y = patterns.window_of(op, (shape[0], shape[1]), source), tensors.layout(op.results[0])
    if not overlaps_everywhere(window, image_layout(source.value), y):
        return Missed("one of its windows lies in the padding altogether")
    return Move(op, (source.value,), y, lambda x: MaxPool(x, y, window, tensors.isa))


def joined(op: ir.Operation, tensors: Tensors) -> Move | Missed:
    """Tensors whose channels are joined."""
    if not patterns.joins_channels(op):
        return Missed("it does not join channels")
    y = tensors.layout(op.results[0])
    return Move(op, tuple(op.operands), y, lambda *inputs: Concat(inputs, y, tensors.isa))


def one_pixel(op: ir.Operation, tensors: Tensors) -> View | None:
    """A buffer as [n, 1, 1, c] and [n, c], which are the same."""
    buffer = tensors.calls.buffers.get(op.operands[0])
    if buffer is None or tensors.layout(op.results[0]).has_border:
        return None
    return View(op, buffer) if patterns.is_one_pixel(match.shape_of(op.results[0]), buffer.layout) else None


def shuffled(op: ir.Operation, tensors: Tensors) -> Move | Missed:
    """The channels of two tensors, or of the halves of one, in turn."""
    found, y = patterns.shuffled(op), tensors.layout(op.results[0])
    if found is None:
        return Missed("it is no shuffle of two groups of channels")
    if tensors.element == "i8":
        # The halves are read as slices, the second one in groups of four that may reach beyond it.
        y = replace(y, pixel=max(32, -(-(y.c + 3) // 16) * 16))
    if len(found) == 2:
        return Move(op, found, y, lambda a, b: Interleave(a, b, y, tensors.isa))
    half = match.shape_of(found[0])[-1] // 2
    a, b = (tensors.channels(tensors.held_layout(found[0]), first, half) for first in (0, half))
    if a is None or b is None:
        return Missed("half of its channels are not whole vectors")
    return Move(op, found * 2, y, lambda *_: Interleave(a, b, y, tensors.isa))


def sliced(op: ir.Operation, tensors: Tensors) -> View | Missed | None:
    """Some channels of a buffer, where readers can take them from there."""
    result, first = op.results[0], patterns.first_channel(op)
    if first is None:
        return Missed("it does not take neighbouring channels of all pixels")
    if op.operands[0] not in tensors.calls.buffers:
        return Missed("no kernel makes what it takes channels of")
    buffer = tensors.calls.buffers[op.operands[0]]
    layout = tensors.channels(buffer.layout, first, match.shape_of(result)[-1])
    return None if layout is None or tensors.layout(result).has_border else View(op, replace(buffer, layout=layout))


def copied(op: ir.Operation, tensors: Tensors) -> Move | None:
    """Some channels of a buffer, where a reader wants a border or whole vectors."""
    first, y = patterns.first_channel(op), tensors.layout(op.results[0])
    if first is None or op.operands[0] not in tensors.calls.buffers:
        return None

    def kernel(x: Layout) -> KernelSpec:
        part = replace(x, c=y.c, first=x.first + first, pixel=x.stride)
        return Concat((part,), y, tensors.isa)

    return Move(op, (op.operands[0],), y, kernel)


def quantized_image(op: ir.Operation, tensors: Tensors) -> Incoming | Missed | None:
    """The image that comes in, quantized."""
    found = patterns.quantized_input(op)
    if found is None or isinstance(found, Missed):
        return found
    y = tensors.layout(op.results[0])
    # A dense convolution reads four bytes at a time, up to three beyond its window; everything else whole vectors.
    if y.c <= 4 and all(_read_by(use, (DENSE,)) for use in op.results[0].uses):
        y = replace(y, packed=True, right=y.right + 4 - y.c)
    return Incoming(op, *found[:2], y, found[2])


def image(op: ir.Operation, tensors: Tensors) -> Incoming | Missed | None:
    """The image that comes in, in f32."""
    if not tensors.holds(op.results[0]):
        return None
    y = tensors.layout(op.results[0]) if len(match.shape_of(op.results[0])) == 4 else None
    if y is None or y.c > 4 or match.ints(op, "permutation") != (0, 2, 3, 1):
        return Missed("it does not bring one to four channels innermost")
    if not all(_read_by(use, (DENSE, DEPTHWISE), spatial=True) for use in op.results[0].uses):
        return Missed("others than convolutions read it")
    return Incoming(op, op, op.operands[0], y)


def _read_by(use: ir.OpOperand, names: tuple[str, ...], *, spatial: bool = False) -> bool:
    """Whether a use is one of these operations', or a padding's that only they read; ``spatial``: with zeros."""
    reader = use.owner.operation
    if reader.name != "tensor.pad":
        return reader.name in names
    plain = not spatial or float_padded(reader.results[0]).value != reader.results[0]
    return plain and all(each.owner.operation.name in names for each in reader.results[0].uses)


# Emission


def call_move(move: Move, tensors: Tensors) -> None:
    """Call a kernel that moves numbers."""
    inputs, result = [tensors.buffer(value) for value in move.reads], move.op.results[0]
    operands = [*(each.value for each in inputs), *tensors.border(result)]
    tensors.call(move.kernel(*(each.layout for each in inputs)), operands, result, move.y, move.op)


def share(view: View, tensors: Tensors) -> None:
    """Let readers take a value from a buffer that is there."""
    tensors.calls.buffers[view.op.results[0]] = view.buffer


def call_quantize(found: Incoming, tensors: Tensors) -> None:
    """Quantize an image, by scale, lo − z, hi − z, z and the border, of u8."""
    scale, zero, low, high = (float(each.numbers.reshape(())) for each in found.numbers)
    border = border_byte(tensors.number(found.op.results[0]))
    table = np.array([scale, low - zero, high - zero, zero + 128, border], np.float32)
    operands = [found.image, numbers_as(tag_like(found.numbers[0], "table"), table)]
    tensors.call(Quantize(found.y, tensors.isa), operands, found.op.results[0], found.y, found.source)


def call_transpose(found: Incoming, tensors: Tensors) -> None:
    """Bring the channels of an f32 image innermost."""
    tensors.call(Transpose(found.y, tensors.isa), [found.image], found.op.results[0], found.y, found.op)
