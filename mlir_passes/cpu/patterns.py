"""Recognizers for the integer stage with channels innermost; each is pure and returns None on a miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch_mlir import ir

from mlir_passes import match
from mlir_passes.build import constant_array, parameter_name
from mlir_passes.cpu.kernels.conv import Window
from mlir_passes.cpu.kernels.epilogue import MULTIPLIER, REAL, SHIFT
from mlir_passes.cpu.kernels.text import Layout

DENSE, GROUPED = "linalg.conv_2d_nhwc_hwcf", "linalg.conv_2d_nhwgc_gfhwc"
DEPTHWISE, MATMUL = "linalg.depthwise_conv_2d_nhwc_hwc", "linalg.matmul"
SUM_POOL, MAX_POOL = "linalg.pooling_nhwc_sum", "linalg.pooling_nhwc_max"

_MULTIPLIER = "addi sitofp mulf roundeven addf maximumf minimumf fptosi"
_REAL = "addi sitofp mulf"
_SHIFT = (
    "addi maxsi subi maxsi shli shrsi maxsi shrsi subi andi andi addi cmpi extui addi maxsi minsi shli addi "
    "maxsi minsi trunci"
)
_BODIES = {_MULTIPLIER: MULTIPLIER, _REAL: REAL, _SHIFT: SHIFT}
_ADD = "extsi muli extsi muli addi addi shrsi addi maxsi minsi trunci"
_ADD_ORDERS = (_ADD, "extsi extsi muli muli addi addi shrsi addi maxsi minsi trunci")
_QUANTIZE = "divf roundeven addf maxnumf minnumf fptosi"


@dataclass(frozen=True)
class Parameter:
    """A constant's numbers and its tag, which is None for an untagged one."""

    numbers: np.ndarray
    tag: str | None


@dataclass(frozen=True)
class Padded:
    """A value and the border that a reader wants around it. number: what the border holds."""

    value: ir.Value
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    number: Parameter | None = None


@dataclass(frozen=True)
class Requantized:
    """Sums and what follows them: form MULTIPLIER, SHIFT or REAL; the parameters after the accumulator, in order."""

    op: ir.Operation
    sums: ir.Operation
    form: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Sum:
    """A residual addition: its two operands, and m_a, m_b, offset, shift, zero point, lo, hi."""

    op: ir.Operation
    a: ir.Value
    b: ir.Value
    parameters: tuple[Parameter, ...]


def parameter_of(value: ir.Value) -> Parameter | None:
    """The numbers of a constant."""
    numbers, op = constant_array(value), match.owner(value)
    return None if numbers is None or op is None else Parameter(numbers, parameter_name(op))


def signature(op: ir.Operation) -> str:
    """The arithmetic in a linalg.generic's body, without constants and the yield."""
    names = [inner.name for inner in match.body_of(op)]
    return " ".join(n.split(".")[1] for n in names if n not in ("linalg.yield", "arith.constant"))


def requantized(op: ir.Operation) -> Requantized | None:
    """A layer's or an average's epilogue on its i32 sums."""
    if not match.is_elementwise(op) or signature(op) not in _BODIES:
        return None
    form = _BODIES[signature(op)]
    acc, *others = match.inputs_of(op)
    parameters = [parameter_of(value) for value in others]
    sums = match.owner(acc)
    if sums is not None and sums.name == "tensor.collapse_shape":
        sums = match.owner(sums.operands[0])
    complete = [p for p in parameters if p is not None]
    if sums is None or len(complete) != len(parameters) or len(complete) != (2 if form == REAL else 5):
        return None
    if not match.is_identity(match.maps_of(op)[0]) or match.scalar(match.init_of(sums)) not in (0, None):
        return None
    return Requantized(op, sums, form, tuple(complete))


def added(op: ir.Operation) -> Sum | None:
    """A residual addition in fixed point."""
    if not match.is_elementwise(op) or signature(op) not in _ADD_ORDERS:
        return None
    a, b, *others = match.inputs_of(op)
    complete = [p for p in map(parameter_of, others) if p is not None]
    if len(complete) != 7 or not all(match.is_identity(m) for m in match.maps_of(op)[:2]):
        return None
    return Sum(op, a, b, tuple(complete))


def quantized_input(op: ir.Operation) -> tuple[ir.Operation, ir.Value, tuple[Parameter, ...]] | None:
    """A transpose to channels-last of quantized f32: the quantizing operation, its f32 input, scale, z, lo, hi."""
    if op.name != "linalg.transpose" or match.ints(op, "permutation") != (0, 2, 3, 1):
        return None
    quantize = match.owner(op.operands[0])
    if quantize is None or not match.is_elementwise(quantize) or signature(quantize) != _QUANTIZE:
        return None
    real, *others = match.inputs_of(quantize)
    complete = [p for p in map(parameter_of, others) if p is not None]
    if len(complete) != 4 or any(p.numbers.size != 1 for p in complete):
        return None
    return quantize, real, tuple(complete)


def padded(value: ir.Value) -> Padded | None:
    """What a reader of i8 reads: a tensor, or a tensor.pad of it; None for a pad of another kind."""
    op = match.owner(value)
    if op is None or op.name != "tensor.pad":
        return Padded(value)
    if len(op.operands) != 1 or str(ir.RankedTensorType(value.type).element_type) != "i8":
        return None
    low, high = match.ints(op, "static_low"), match.ints(op, "static_high")
    (yielded,) = match.body_of(op)
    number = _padding_number(yielded.operands[0])
    if len(low) != 4 or low[0] or low[3] or high[0] or high[3] or number is None:
        return None
    return Padded(op.operands[0], low[1], low[2], high[1], high[2], number)


def _padding_number(value: ir.Value) -> Parameter | None:
    op = match.owner(value)
    if op is None:
        return None
    if op.name == "tensor.extract":
        return parameter_of(op.operands[0])
    number = match.scalar(value)
    return None if number is None else Parameter(np.asarray(number, np.int8), None)


def window_of(op: ir.Operation, kernel: tuple[int, int], pad: Padded) -> Window:
    """The window of a convolution or pool that reads ``pad``."""
    strides, dilations = match.ints(op, "strides"), match.ints(op, "dilations")
    return Window(kernel, (strides[0], strides[1]), (dilations[0], dilations[1]), pad.top, pad.left)


def shuffled(op: ir.Operation) -> tuple[ir.Value, ...] | None:
    """The two tensors, or the one whose two halves, collapse(transpose(expand(…))) takes channels of in turn."""
    turned = match.owner(op.operands[0])
    if op.name != "tensor.collapse_shape" or turned is None or turned.name != "linalg.transpose":
        return None
    split = match.owner(turned.operands[0])
    if match.ints(turned, "permutation") != (0, 1, 2, 4, 3) or split is None or split.name != "tensor.expand_shape":
        return None
    whole, groups = split.operands[0], match.shape_of(split.results[0])
    if groups[3] != 2 or match.shape_of(op.results[0]) != match.shape_of(whole):
        return None
    joined = match.owner(whole)
    if joined is None or joined.name != "tensor.concat" or len(joined.operands) != 2:
        return (whole,)
    a, b = joined.operands
    same = match.shape_of(a) == match.shape_of(b) and ir.IntegerAttr(joined.attributes["dim"]).value == 3
    return (a, b) if same else (whole,)


def joins_channels(op: ir.Operation) -> bool:
    """Whether a concat joins channels, other than for a shuffle, which takes the two tensors themselves."""
    if ir.IntegerAttr(op.attributes["dim"]).value != len(match.shape_of(op.results[0])) - 1:
        return False
    return not all(_joins_for_shuffle(use) for use in op.results[0].uses)


def first_channel(op: ir.Operation) -> int | None:
    """Where a slice begins that takes neighbouring channels of all pixels."""
    if len(op.operands) != 1 or set(match.ints(op, "static_strides")) != {1}:
        return None
    *others, first = match.ints(op, "static_offsets")
    whole = match.shape_of(op.operands[0])[:-1] == match.shape_of(op.results[0])[:-1]
    return first if whole and not any(others) else None


def is_one_pixel(shape: Sequence[int], layout: Layout) -> bool:
    """Whether a shape is the [n, 1, 1, c] or the [n, c] of the images in a layout."""
    pixel = tuple(shape) in ((layout.images, layout.c), (layout.images, 1, 1, layout.c))
    return pixel and layout.h == layout.w == 1


def ungrouped(weight: np.ndarray) -> np.ndarray:
    """The weight [g, f, kh, kw, c] of a grouped convolution as [kh, kw, c, g * f]."""
    g, f, kh, kw, c = weight.shape
    return weight.transpose(2, 3, 4, 0, 1).reshape(kh, kw, c, g * f)


def _joins_for_shuffle(use: ir.OpOperand) -> bool:
    """Whether a use of joined channels is a shuffle of the two tensors."""
    reader = use.owner.operation
    for _ in range(2):
        following = list(reader.results[0].uses) if len(reader.results) == 1 else []
        if len(following) != 1:
            return False
        reader = following[0].owner.operation
    found = shuffled(reader) if reader.name == "tensor.collapse_shape" else None
    return found is not None and len(found) == 2


def image_sum(op: ir.Operation) -> bool:
    """Whether a generic sums an image's rows and columns."""
    if op.name != "linalg.generic" or signature(op) != "extsi addi":
        return False
    kinds = ["reduction" in str(kind) for kind in op.attributes["iterator_types"]]
    return kinds == [False, True, True, False] and match.is_identity(match.maps_of(op)[0])
