"""Recognizers for steps with constants along channels, and for reductions; pure, and None on a miss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.ir import match
from mlir_passes.ir.evaluate import constant_numbers
from mlir_passes.ir.same_body import PARALLEL, REDUCTION, arithmetic, emitted, iterators


@dataclass(frozen=True, eq=False)
class ChannelStep:
    """``source * factor + shift`` with numbers f64[channels] along dimension 1, or with the same ones everywhere."""

    source: ir.Value
    factor: np.ndarray
    shift: np.ndarray
    is_one_number: bool


def match_channel_step(op: ir.Operation) -> ChannelStep | None:
    """A tensor plus, minus, times or over a constant, or a constant minus a tensor."""
    names = ("arith.addf", "arith.subf", "arith.mulf", "arith.divf")
    inner = next((step for name in names if (step := match.only_step(op, name)) is not None), None)
    shape = match.shape_of(op.results[0])
    if inner is None or len(shape) < 2 or not match.is_f32(op.results[0]):
        return None
    outer, (left, right) = match.outer_of(op), inner.operands
    numbers = [_channel_numbers(value, outer, shape) for value in (left, right)]
    x, c = (left, numbers[1]) if numbers[0] is None else (right, numbers[0])
    if c is None or not np.isfinite(c).all() or all(each is not None for each in numbers) or x not in outer:
        return None
    source, affine_map = outer[x]
    one, zero = np.ones_like(c), np.zeros_like(c)
    forms = {"arith.addf": (one, c), "arith.mulf": (c, zero), "arith.subf": (one, -c) if x == left else (-one, c)}
    if inner.name == "arith.divf" and (x != left or not c.all()):
        return None
    factor, shift = forms.get(inner.name) or (one / c, zero)
    same_place = match.is_identity(affine_map) and match.shape_of(source) == shape
    return (
        ChannelStep(source, factor, shift, _is_number(left, outer) or _is_number(right, outer)) if same_place else None
    )


def _is_number(value: ir.Value, outer: dict) -> bool:
    return match.scalar(outer[value][0] if value in outer else value) is not None


def _channel_numbers(value: ir.Value, outer: dict, shape: tuple[int, ...]) -> np.ndarray | None:
    """A constant f64[channels] along dimension 1 of ``shape``."""
    number = match.scalar(outer[value][0] if value in outer else value)
    if number is not None:
        return np.full(shape[1], number)
    array = constant_numbers(outer[value][0]) if value in outer else None
    if array is None or not match.is_broadcast(outer[value][1], array.shape):
        return None
    full = (1,) * (len(shape) - array.ndim) + array.shape
    return array.reshape(-1).astype(np.float64) if full == (1, shape[1], *[1] * (len(shape) - 2)) else None


@dataclass(frozen=True, eq=False)
class Reduction:
    """A tensor's elements along some dimensions combined; kind: sum or maximum."""

    kind: str
    source: ir.Value
    axes: tuple[int, ...]


def match_reduction(op: ir.Operation) -> Reduction | None:
    """A sum or maximum over dimensions, which the result lacks or has with an extent of 1."""
    if op.name != "linalg.generic" or len(op.results) != 1 or len(match.inputs_of(op)) != 1:
        return None
    loops, maps = iterators(op), match.maps_of(op)
    if not set(loops) <= {PARALLEL, REDUCTION} or not match.is_identity(maps[0]):
        return None
    axes = tuple(i for i, loop in enumerate(loops) if loop == REDUCTION)
    dims = [ir.AffineExpr.get_dim(i, op.context) for i in range(len(loops))]
    zero = ir.AffineExpr.get_constant(0, op.context)
    dropped = [dim for i, dim in enumerate(dims) if i not in axes]
    kept = [zero if i in axes else dim for i, dim in enumerate(dims)]
    if not axes or list(maps[1].results) not in (dropped, kept):
        return None
    start = match.scalar(match.init_of(op))
    if start == 0.0 and match.adds_up(op):
        return Reduction("sum", match.inputs_of(op)[0], axes)
    if start == -math.inf and _takes_larger(op):
        return Reduction("maximum", match.inputs_of(op)[0], axes)
    return None


def _takes_larger(op: ir.Operation) -> bool:
    found = arithmetic(op.regions[0].blocks[0])
    return found in (emitted(arith.maximumf, "f32", "f32"), emitted(_larger_first, "f32", "f32"))


def _larger_first(x: ir.Value, acc: ir.Value) -> ir.Value:
    return arith.maximumf(acc, x)
