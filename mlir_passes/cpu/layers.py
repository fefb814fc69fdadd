"""Layers of both number types: convolutions and matrix products, the additions behind them, and averages.

The number type is an argument. What it changes is in what a layer ends in: integer sums are requantized
(`Requantizing`), f32 sums begin at a bias and are clamped (`Clamping`) or are divided (`Dividing`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.calls import border_byte, numbers_as, tag_like
from mlir_passes.cpu.kernels.conv import Conv
from mlir_passes.cpu.kernels.depthwise import Depthwise, FloatDepthwise
from mlir_passes.cpu.kernels.epilogue import MULTIPLIER, REAL, FloatForm, Form, Quotient
from mlir_passes.cpu.kernels.pointwise import Add
from mlir_passes.cpu.kernels.pool import SumPool
from mlir_passes.cpu.kernels.windowed import Windowed
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, GROUPED, LAYERS, MATMUL, Padded, Parameter, Requantized, Sum
from mlir_passes.cpu.tensors import Tensors
from mlir_passes.cpu.tiles import choose_tile
from mlir_passes.ir import match
from mlir_passes.ir.same_body import is_plain
from mlir_passes.kernels.text import joined_images
from mlir_passes.kernels.windows import Window

Excess = np.ndarray | int
_WIDEST = 11  # columns of a depthwise window in f32 that are worth writing out


@dataclass(frozen=True)
class End:
    """What sums end in. result: the last value of it."""

    result: ir.Value

    @property
    def joins(self) -> tuple[str, ...]:
        """The layers that an addition behind them goes into."""
        return ()

    def form(self, total: Sum | None) -> Form | FloatForm:
        """The kernel's end, before its residual is known."""
        raise NotImplementedError

    def numbers(self, spec: Windowed, excess: Excess, border: Parameter | None, total: Sum | None) -> list[ir.Value]:
        """The operands that hold it, but for a residual. excess: see Tensors. border: what that of the result holds."""
        return []


@dataclass(frozen=True)
class Requantizing(End):
    """Integer sums that are requantized, or scaled to f32."""

    found: Requantized

    @property
    def joins(self) -> tuple[str, ...]:
        """See End."""
        return () if self.found.form == REAL else (DENSE, GROUPED)

    def form(self, total: Sum | None) -> Form:
        """See End."""
        return Form(self.found.form)

    def numbers(self, spec: Windowed, excess: Excess, border: Parameter | None, total: Sum | None) -> list[ir.Value]:
        """Bias, multipliers, range, and the numbers of an addition."""
        bias, multiplier, *others = self.found.parameters
        shifted = (bias.numbers.astype(np.int64) - excess).astype(np.int32)
        values = [
            numbers_as(bias.tag, spec.pack_channels(shifted)),
            numbers_as(multiplier.tag, spec.pack_channels(multiplier.numbers)),
        ]
        if self.found.form == REAL:
            return values
        zero, low, high = (each.numbers.reshape(()) for each in others)
        around = border_byte(border if total is None else None)
        if self.found.form == MULTIPLIER:
            limits = np.array([low - zero, high - zero, zero + 128, around], np.float32)
        else:
            limits = np.array([low + 128, high + 128, zero + 128, around], np.int32)
        values.append(numbers_as(tag_like(bias, "range"), limits))
        return values if total is None else [*values, _sum_numbers(total, border, swapped=total.b == self.result)]


@dataclass(frozen=True)
class Clamping(End):
    """f32 sums that begin at a bias and are clamped."""

    bias: np.ndarray
    bounds: tuple[float, float]

    @property
    def joins(self) -> tuple[str, ...]:
        """See End."""
        return DENSE, GROUPED, MATMUL

    def form(self, total: Sum | None) -> FloatForm:
        """See End."""
        return FloatForm(self.bounds) if total is None else FloatForm(self.bounds, total.bounds)

    def numbers(self, spec: Windowed, excess: Excess, border: Parameter | None, total: Sum | None) -> list[ir.Value]:
        """The bias."""
        return [numbers_as(None, spec.pack_channels(self.bias))]


@dataclass(frozen=True)
class Dividing(End):
    """f32 sums that are divided by a number."""

    divisor: float

    def form(self, total: Sum | None) -> Quotient:
        """See End."""
        return Quotient(divisor=self.divisor)


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product: what it reads, its weight, its window and its groups, and what it ends in.

    weight: [kh, kw, ci of a group, co], of a depthwise convolution [kh, kw, c].
    """

    op: ir.Operation
    source: Padded
    weight: Parameter
    window: Window
    groups: int
    end: End


@dataclass(frozen=True)
class Mean:
    """Sums over windows or over whole images, and what they end in."""

    op: ir.Operation
    source: Padded
    window: Window
    end: End


# Recognition


def requantized_layer(op: ir.Operation, tensors: Tensors) -> Layer | Missed | None:
    """An integer layer that ends with ``op``."""
    found = patterns.requantized(op)
    if not isinstance(found, Requantized):
        return found
    # An average is another rule's.
    return None if _adds_up(found.sums, tensors) else _layer(found.sums, Requantizing(op.results[0], found), tensors)


def clamped_layer(op: ir.Operation, tensors: Tensors) -> Layer | Missed | None:
    """An f32 layer: ``op`` is its product, or joins the channels of a grouped one."""
    joins = op.name == "tensor.collapse_shape"
    product = match.owner(op.operands[0]) if joins else op
    if product is None or (joins and product.name != GROUPED) or not tensors.holds(op.results[0]):
        return None
    if joins and not (match.is_read_once(product.results[0]) and patterns.regroups_last(op)):
        return Missed("its groups are not neighbouring channels of its result alone")
    channels = match.shape_of(op.results[0])[-1]
    fewest = 4 if op.name == DEPTHWISE else tensors.isa.lanes
    if channels < fewest:
        return Missed(f"it has {channels} channels, fewer than the {fewest} of a vector")
    bias = match.channel_bias(match.init_of(product), channels, last=True)
    if bias is None:
        return Missed("its bias is not constant")
    result, bounds = patterns.clamps(op.results[0])
    layer = _layer(product, Clamping(result, bias, bounds), tensors)
    if op.name == DEPTHWISE and isinstance(layer, Layer) and layer.window.kernel[1] > _WIDEST:
        return Missed(f"its window is wider than {_WIDEST} columns")
    return layer


def _layer(op: ir.Operation, end: End, tensors: Tensors) -> Layer | Missed:
    if op.name not in LAYERS or not is_plain(op):
        return Missed(f"no kernel computes {match.float_detail(op)} as it stands")
    read, groups = op.operands[0], 1
    if op.name == GROUPED:
        split = match.owner(read)
        if not patterns.regroups_last(split):
            return Missed("its groups are not neighbouring channels of its input")
        read, groups = split.operands[0], match.shape_of(read)[3]
    source, weight = tensors.read(read), tensors.weight(op.operands[1])
    if isinstance(source, Missed):
        return source
    if weight is None or weight.numbers.dtype != tensors.dtype:
        return Missed(f"its weights are not constant {tensors.element}")
    if op.name == MATMUL:
        return Layer(op, source, replace(weight, numbers=weight.numbers[None, None]), Window(), groups, end)
    if op.name == GROUPED:
        weight = replace(weight, numbers=patterns.ungrouped(weight.numbers))
    kernel = (weight.numbers.shape[0], weight.numbers.shape[1])
    return Layer(op, source, weight, patterns.window_of(op, kernel, source), groups, end)


def requantized_mean(op: ir.Operation, tensors: Tensors) -> Mean | Missed | None:
    """An integer average that ends with ``op``."""
    found = patterns.requantized(op)
    if not isinstance(found, Requantized):
        return found
    return _mean(found.sums, Requantizing(op.results[0], found), tensors) if _adds_up(found.sums, tensors) else None


def divided_mean(op: ir.Operation, tensors: Tensors) -> Mean | Missed | None:
    """An f32 average that ends with ``op``."""
    found = match.match_divide(op)
    sums = None if found is None else match.owner(found[0])
    if found is None or sums is None or not sums.operands or not tensors.holds(sums.operands[0]):
        return None
    if not _adds_up(sums, tensors):
        return Missed("what it divides is no sum over windows or whole images")
    if match.scalar(match.init_of(sums)) != 0.0:
        return Missed("its sums do not begin at 0")
    return _mean(sums, Dividing(op.results[0], found[1]), tensors)


def _adds_up(op: ir.Operation, tensors: Tensors) -> bool:
    return patterns.sums_windows(op) or patterns.image_sum(op, tensors.element)


def _mean(sums: ir.Operation, end: End, tensors: Tensors) -> Mean | Missed:
    source = tensors.read(sums.operands[0])
    if isinstance(source, Missed):
        return source
    if sums.name == "linalg.generic":
        shape = match.shape_of(source.value)
        if source.value != sums.operands[0]:
            return Missed("it sums a whole image with a border")
        return Mean(sums, source, Window((shape[1], shape[2])), end)
    shape = match.shape_of(sums.operands[1])
    return Mean(sums, source, patterns.window_of(sums, (shape[0], shape[1]), source), end)


# Emission


def call_layer(layer: Layer, tensors: Tensors) -> None:
    """Call the kernel of a layer, unless its result is read by an addition alone, which then goes into it."""
    result = layer.end.result
    reader = next(iter(result.uses)).owner.operation if match.is_read_once(result) else None
    if layer.op.name in layer.end.joins and reader is not None and isinstance(tensors.added(reader), Sum):
        tensors.waiting[result] = functools.partial(_call_layer, layer, tensors)
    else:
        _call_layer(layer, tensors, None)


def _call_layer(layer: Layer, tensors: Tensors, total: Sum | None) -> None:
    end, window, isa = layer.end, layer.window, tensors.isa
    result = end.result if total is None else total.result
    source, x = tensors.buffer(layer.source.value), tensors.buffer(layer.source.value).layout
    y = whole = tensors.layout(result)
    other = None if total is None else tensors.buffer(total.b if total.a == end.result else total.a)
    residual, form = None if other is None else other.layout, end.form(total)
    if layer.op.name == DEPTHWISE:
        spec = (FloatDepthwise if x.floating else Depthwise)(x, y, window, form, isa)
    else:
        if window.kernel == window.strides == (1, 1):
            x, y, *others = joined_images([x, y, *([] if residual is None else [residual])])
            residual = others[0] if others else None
        tile = choose_tile(x, y, window, isa, form.group, layer.groups)
        spec = Conv(x, y, window, replace(form, residual=residual), isa, tile, layer.groups)
    weight = layer.weight.numbers
    operands = [source.value, numbers_as(layer.weight.tag, spec.pack(weight))]
    operands += end.numbers(spec, tensors.excess(weight), tensors.number(result), total)
    operands += [] if other is None else [other.value]
    tensors.call(spec, operands, result, whole, layer.op)


def call_mean(mean: Mean, tensors: Tensors) -> None:
    """Call the kernel of an average."""
    x, y, window = tensors.buffer(mean.source.value), tensors.layout(mean.end.result), mean.window
    spec = SumPool(x.layout, y, window, mean.end.form(None), tensors.isa)
    numbers = mean.end.numbers(spec, 128 * math.prod(window.kernel), tensors.number(mean.end.result), None)
    tensors.call(spec, [x.value, *numbers], mean.end.result, y, mean.op)


def call_sum(total: Sum, tensors: Tensors) -> None:
    """Call the kernel of the layer that takes an addition along, the later of two; without one its own."""
    waiting = [value for value in tensors.waiting if value in (total.a, total.b)]
    for value in waiting[:-1]:
        tensors.waiting.pop(value)(None)
    if waiting:
        tensors.waiting.pop(waiting[-1])(total)
    elif total.parameters:  # in f32 no kernel adds alone
        y, a, b = tensors.layout(total.result), tensors.buffer(total.a), tensors.buffer(total.b)
        numbers = _sum_numbers(total, tensors.number(total.result), swapped=False)
        operands = [numbers, a.value, b.value]
        tensors.call(Add(a.layout, b.layout, y, tensors.isa), operands, total.result, y, total.op)


def _sum_numbers(total: Sum, border: Parameter | None, *, swapped: bool) -> ir.Value:
    m_a, m_b, offset, shift, zero, low, high = (int(each.numbers.reshape(())) for each in total.parameters)
    # The sum is of u8 now, 128 above the i8 on both sides; it wraps as the hardware's does.
    offset -= 128 * (m_a + m_b)
    if swapped:
        m_a, m_b = m_b, m_a
    values = [m_a, m_b, offset, shift, zero + 128, low + 128, high + 128, border_byte(border)]
    return numbers_as(tag_like(total.parameters[0], "sum"), np.array(values, np.int64).astype(np.int32))
