"""Sums of values from known places with known weights: bilinear resizing, and other steps that gathers go through.

y[p] = Σ_k w_k[p] · x[places_k[p]]

q_y(y)  ->  clamp(roundeven(f32(Σ_k W_k·(x[places_k] − z_x)) · m) + z_y, lo, hi)     W_k = roundeven(w_k·2**e)
m = s_x / (s_y·2**e)      e: so that the weights of a place sum up to at most 2**15, and the sum stays below 2**24
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, tensor

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.build import channel_map, constant, elementwise, loop_index
from mlir_passes.ir.evaluate import evaluate, open_grid, placed
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import Tap
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader, Site
from mlir_passes.ops.requantize import i32

_MOST = 16
_STEPS = ("arith.addf", "arith.subf", "arith.mulf")
_Outer = dict[ir.Value, tuple[ir.Value, ir.AffineMap]]


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """The sum or difference of two such tensors, or the product of one and a constant."""
    inner = next((step for name in _STEPS if (step := match.only_step(op, name)) is not None), None)
    if inner is None or not match.is_f32(op.results[0]):
        return False
    outer = match.outer_of(op)
    sites = [_site(value, outer, reader) for value in inner.operands]
    known = [site for site in sites if site is not None]
    if not known:
        return False
    first, *others = known
    if inner.name == "arith.mulf":
        factors = [value for value, site in zip(inner.operands, sites, strict=True) if site is None]
        found = _weighted(first, _weight(factors[0], outer, op)) if len(factors) == 1 else None
    else:
        found = _summed(first, others, -1.0 if inner.name == "arith.subf" else 1.0)
    if found is None or not 0 < len(found) <= _MOST:
        return False
    return reader.add(op, "blend", (first.sources[0],), taps=found)


def _site(value: ir.Value, outer: _Outer, reader: Reader) -> Site | None:
    """The gather or blend behind an operand that has the result's shape."""
    source, affine_map = outer.get(value, (None, None))
    if source is None or affine_map is None or not match.is_identity(affine_map):
        return None
    site = reader.site_of(source)
    return site if site is not None and site.node.kind in ("gather", "blend") else None


def _taps(site: Site) -> tuple[Tap, ...]:
    node = site.node
    return node.taps or (Tap(node.places, np.ones((1,) * len(node.shape))),)


def _weight(value: ir.Value, outer: _Outer, op: ir.Operation) -> np.ndarray | None:
    """A constant factor with the result's dimensions, of extent 1 where it does not depend on them."""
    source, affine_map = outer.get(value, (value, None))
    number, shape = match.scalar(source), match.shape_of(op.results[0])
    if number is not None:
        return np.full((1,) * len(shape), number)
    numbers = None if affine_map is None else evaluate(source)
    if numbers is None or affine_map is None:
        return None
    return np.asarray(placed(numbers, affine_map, open_grid(shape)), np.float64)


def _weighted(site: Site, weight: np.ndarray | None) -> tuple[Tap, ...] | None:
    return None if weight is None else tuple(Tap(tap.places, tap.weight * weight) for tap in _taps(site))


def _summed(site: Site, others: list[Site], sign: float) -> tuple[Tap, ...] | None:
    if len(others) != 1 or others[0].node.inputs != site.node.inputs:
        return None
    sums = {tap.places: tap.weight for tap in _taps(site)}
    for tap in _taps(others[0]):
        sums[tap.places] = sums.get(tap.places, 0.0) + sign * tap.weight
    return tuple(Tap(places, weight) for places, weight in sums.items())


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The weighted sums in i32, requantized as a layer's are."""
    (x,), node = inputs, emit.node
    rank = len(node.shape)
    largest = np.max(sum((np.abs(tap.weight) for tap in node.taps), np.zeros(())))
    exponent = 15 - int(np.frexp(largest)[1])
    moved = {
        (dim, places): constant(np.array(places, np.int32))
        for tap in node.taps for dim, places in enumerate(tap.places) if places != tuple(range(node.shape[dim]))
    }  # fmt: skip
    weights = [np.rint(np.ldexp(tap.weight, exponent)).astype(np.int32) for tap in node.taps]
    operands = [*moved.values(), *(constant(weight.squeeze()) for weight in weights)]
    maps = [channel_map(rank, dim) for dim, _ in moved]
    maps += [_dims(rank, (dim for dim, size in enumerate(weight.shape) if size > 1)) for weight in weights]
    zero = emit.scalar("zero", np.int32(x.zero_point_array))

    def body(*numbers: ir.Value) -> ir.Value:
        index = ir.IndexType.get()
        casts = {key: arith.index_cast(index, number) for key, number in zip(moved, numbers, strict=False)}
        total: ir.Value | None = None
        for tap, weight in zip(node.taps, numbers[len(moved) :], strict=False):
            places = [casts.get((dim, each)) or loop_index(dim) for dim, each in enumerate(tap.places)]
            value = arith.subi(arith.extsi(i32(), tensor.extract(emit.inputs[0], places)), numbers[-1])
            product = arith.muli(value, weight)
            total = product if total is None else arith.addi(total, product)
        assert total is not None
        return total

    total = elementwise([*operands, zero], emit.type(np.int32), body, maps=[*maps, None], layer=node.layer)
    bias = np.zeros(node.shape[1], np.int32)
    ratio = float(x.scale_array) / (float(y.scale_array) * 2.0**exponent)
    return emit.requantize(total, bias, np.full(bias.shape, ratio), y, bounds, shift=False)


def _dims(rank: int, dims: Iterable[int]) -> ir.AffineMap:
    return ir.AffineMap.get(rank, 0, [ir.AffineExpr.get_dim(dim) for dim in dims])
