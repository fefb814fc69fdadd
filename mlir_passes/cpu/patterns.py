"""Recognizers for the integer stage with channels innermost; each is pure and returns None on a miss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu.kernels.epilogue import MULTIPLIER, REAL, SHIFT
from mlir_passes.ir import match
from mlir_passes.ir.build import constant_array, parameter_name
from mlir_passes.ir.moves import SPLIT_LAST, is_reshape
from mlir_passes.ir.same_body import PARALLEL, REDUCTION, arithmetic, emitted, is_plain, iterators
from mlir_passes.kernels.text import Layout
from mlir_passes.kernels.windows import Window
from mlir_passes.ops import requantize
from mlir_passes.ops.add import ADD
from mlir_passes.ops.pool import sum_body
from mlir_passes.passes.lower_quant import QUANTIZE

DENSE, GROUPED = "linalg.conv_2d_nhwc_hwcf", "linalg.conv_2d_nhwgc_gfhwc"
DEPTHWISE, MATMUL = "linalg.depthwise_conv_2d_nhwc_hwc", "linalg.matmul"
LAYERS = (DENSE, GROUPED, DEPTHWISE, MATMUL)
SUM_POOL, MAX_POOL = "linalg.pooling_nhwc_sum", "linalg.pooling_nhwc_max"

_FORMS = {MULTIPLIER: requantize.MULTIPLIER, REAL: requantize.REAL, SHIFT: requantize.SHIFT}


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
    """A residual addition: its two operands, and its result.

    parameters: m_a, m_b, offset, shift, zero point, lo, hi; of f32 none. bounds: to which an f32 sum is clamped.
    """

    op: ir.Operation
    a: ir.Value
    b: ir.Value
    result: ir.Value
    parameters: tuple[Parameter, ...] = ()
    bounds: tuple[float, float] = (-math.inf, math.inf)


def parameter_of(value: ir.Value) -> Parameter | None:
    """The numbers of a constant."""
    numbers, op = constant_array(value), match.owner(value)
    return None if numbers is None or op is None else Parameter(numbers, parameter_name(op))


def requantized(op: ir.Operation) -> Requantized | Missed | None:
    """A layer's or an average's epilogue on its i32 sums, which begin at 0; None for anything else."""
    form = next((kind for kind, form in _FORMS.items() if form.matches(op)), None)
    if form is None:
        return None
    acc, *others = match.inputs_of(op)
    sums, parameters = match.owner(acc), _parameters(others)
    if sums is not None and regroups_last(sums) and (grouped := match.owner(sums.operands[0])) is not None:
        sums = grouped if grouped.name == GROUPED else sums
    if parameters is None:
        return Missed("the numbers that requantize it are not constant")
    if sums is None or not sums.name.startswith("linalg."):
        return Missed("what it requantizes is no sum")
    if match.scalar(match.init_of(sums)) != 0:
        return Missed("its sums do not begin at 0")
    return Requantized(op, sums, form, parameters)


def _parameters(values: Sequence[ir.Value]) -> tuple[Parameter, ...] | None:
    """The numbers of constants; None where one of the values is none."""
    found = tuple(p for p in map(parameter_of, values) if p is not None)
    return found if len(found) == len(values) else None


def regroups_last(op: ir.Operation | None) -> TypeGuard[ir.Operation]:
    """Whether a reshape splits or joins the last dimension of [n, h, w, c] and nothing else."""
    return is_reshape(op, SPLIT_LAST)


def added(op: ir.Operation) -> Sum | Missed | None:
    """A residual addition in fixed point; None for anything else."""
    if not ADD.matches(op):
        return None
    a, b, *others = match.inputs_of(op)
    parameters = _parameters(others)
    if parameters is None:
        return Missed("the numbers of the addition are not constant")
    return Sum(op, a, b, op.results[0], parameters)


def float_added(op: ir.Operation) -> Sum | None:
    """A residual addition in f32, with the clamps behind it; None for anything else."""
    terms = match.match_add(op)
    if terms is None or terms[0] == terms[1]:
        return None
    result, bounds = clamps(op.results[0])
    return Sum(op, *terms, result, bounds=bounds)


def clamps(value: ir.Value) -> tuple[ir.Value, tuple[float, float]]:
    """Follow the clamps that alone read ``value``: the last one's result, and the bounds of all."""
    low, high = -math.inf, math.inf
    while match.is_read_once(value):
        reader = next(iter(value.uses)).owner.operation
        clamp = match.match_clamp(reader)
        if clamp is None or max(low, clamp[1]) > min(high, clamp[2]):
            break
        low, high, value = max(low, clamp[1]), min(high, clamp[2]), reader.results[0]
    return value, (low, high)


def quantized_input(op: ir.Operation) -> tuple[ir.Operation, ir.Value, tuple[Parameter, ...]] | Missed | None:
    """A transpose to channels-last of quantized f32: the quantizing operation, its f32 input, scale, z, lo, hi.

    None for anything else.
    """
    if op.name != "linalg.transpose" or match.ints(op, "permutation") != (0, 2, 3, 1):
        return None
    quantize = match.owner(op.operands[0])
    if quantize is None or not QUANTIZE.matches(quantize):
        return None
    real, *others = match.inputs_of(quantize)
    parameters = _parameters(others)
    if parameters is None:
        return Missed("the numbers that quantize it are not constant")
    return quantize, real, parameters


def padded(value: ir.Value) -> Padded | Missed:
    """What a reader reads: a tensor, or a tensor.pad of its rows and columns with one number."""
    op = match.owner(value)
    if op is None or op.name != "tensor.pad":
        return Padded(value)
    if len(op.operands) != 1:
        return Missed(f"its padding is not by a fixed width: {value.type}")
    low, high = match.ints(op, "static_low"), match.ints(op, "static_high")
    *others, yielded = match.body_of(op)
    number = _padding_number(yielded.operands[0])
    if others or number is None:
        return Missed("its padding does not hold one constant number")
    if len(low) != 4 or any((low[0], low[3], high[0], high[3])):
        return Missed("its padding is not of rows and columns alone")
    return Padded(op.operands[0], low[1], low[2], high[1], high[2], number)


def _padding_number(value: ir.Value) -> Parameter | None:
    op = match.owner(value)
    if op is None:
        return None
    if op.name == "tensor.extract":
        found = parameter_of(op.operands[0])
        return found if found is not None and found.numbers.ndim == 0 else None
    number = match.scalar(value)
    return None if number is None else Parameter(np.asarray(number), None)


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
    if not regroups_last(op) or not regroups_last(split):
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


def image_sum(op: ir.Operation, element: str) -> bool:
    """Whether a generic sums an image's rows and columns, one of i8 in i32 or one of f32."""
    if not _reduces_image(op) or element == "f32":
        return _reduces_image(op) and match.adds_up(op)
    return arithmetic(op.regions[0].blocks[0]) == emitted(sum_body, "i8", "i32")


def sums_windows(op: ir.Operation) -> bool:
    """Whether an operation is a sum over windows, as its name says."""
    return op.name == SUM_POOL and is_plain(op)


def _reduces_image(op: ir.Operation) -> bool:
    """Whether a generic goes over the rows and columns of [n, h, w, c], into [n, c] or [n, 1, 1, c]."""
    if op.name != "linalg.generic" or len(op.operands) != 2:
        return False
    if iterators(op) != [PARALLEL, REDUCTION, REDUCTION, PARALLEL]:
        return False
    read, written = match.maps_of(op)
    n, c = (ir.AffineExpr.get_dim(i, op.context) for i in (0, 3))
    zero = ir.AffineExpr.get_constant(0, op.context)
    return match.is_identity(read) and list(written.results) in ([n, c], [n, zero, zero, c])
