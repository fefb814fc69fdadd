"""Recognizers for the forms in which torch-mlir writes CNN operations as linalg; pure, and None on a miss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.ir.build import defining_op as owner
from mlir_passes.ir.build import relaid_constant
from mlir_passes.ir.moves import SPLIT, is_reshape
from mlir_passes.ir.same_body import PARALLEL, REDUCTION, arithmetic, emitted, iterators

GROUPED_CONV = "linalg.conv_2d_ngchw_gfchw"
_GREATER = {2, 3, 9, 10}  # ogt oge ugt uge
_LESS = {4, 5, 11, 12}  # olt ole ult ule


@dataclass(frozen=True)
class Pad:
    """A tensor.pad with a constant value."""

    source: ir.Value
    low: tuple[int, ...]
    high: tuple[int, ...]
    value: float


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Static shape of a ranked tensor value."""
    return tuple(ir.RankedTensorType(value.type).shape)


def ints(op: ir.Operation, name: str) -> tuple[int, ...]:
    """An integer array attribute (dense elements, dense array or array attribute) as a tuple."""
    if name in ("strides", "dilations") and name not in op.attributes:
        return (1, 1)  # the default of linalg's windows
    attribute = op.attributes[name]
    if isinstance(attribute, ir.DenseElementsAttr):
        return tuple(int(i) for i in np.array(attribute).reshape(-1))
    return tuple(int(i.value) if isinstance(i, ir.IntegerAttr) else int(i) for i in attribute)


def inputs_of(op: ir.Operation) -> list[ir.Value]:
    """The ``ins`` operands of a destination-passing linalg operation."""
    outs = len(op.results)
    return list(op.operands)[: len(op.operands) - outs]


def init_of(op: ir.Operation) -> ir.Value:
    """The ``outs`` operand of a linalg operation with one result."""
    return op.operands[len(op.operands) - 1]


def body_of(op: ir.Operation) -> list[ir.Operation]:
    """The operations of a linalg.generic's body, the yield last."""
    return [inner.operation for inner in op.regions[0].blocks[0].operations]


def maps_of(op: ir.Operation) -> list[ir.AffineMap]:
    """The indexing maps of a linalg.generic."""
    return [ir.AffineMapAttr(a).value for a in op.attributes["indexing_maps"]]


def is_identity(affine_map: ir.AffineMap) -> bool:
    """Whether a map sends every dimension to itself."""
    return affine_map == ir.AffineMap.get_identity(affine_map.n_dims, context=affine_map.context)


def scalar(value: ir.Value) -> float | None:
    """The number behind a constant scalar, a splat constant tensor, or a fill of one."""
    op = owner(value)
    if op is None:
        return None
    if op.name == "linalg.fill":
        return scalar(op.operands[0])
    if op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
        return scalar(op.operands[0])
    if op.name == "arith.truncf" and isinstance(op.results[0].type, ir.F32Type):  # torch's numbers are f64
        number = scalar(op.operands[0])
        return None if number is None else float(np.float32(number))
    if op.name != "arith.constant":
        return None
    attribute = op.attributes["value"]
    if isinstance(attribute, ir.FloatAttr | ir.IntegerAttr):
        return float(attribute.value)
    if isinstance(attribute, ir.DenseElementsAttr) and attribute.is_splat:
        return float(attribute.get_splat_value().value)
    return None


def channel_bias(init: ir.Value, channels: int, *, last: bool = False) -> np.ndarray | None:
    """The start value f32[channels] of a convolution's accumulator: a constant broadcast, or one number.

    last: whether channels are innermost, else the second dimension.
    """
    number = scalar(init)
    if number is not None:
        return np.full(channels, number, np.float32)
    op = owner(init)
    if op is None:
        return None
    if op.name == "tensor.expand_shape":
        return channel_bias(op.operands[0], channels, last=last)
    rank = len(shape_of(init))
    others = tuple(range(rank - 1)) if last else (0, *range(2, rank))
    if op.name == "linalg.broadcast" and ints(op, "dimensions") == others:
        inner = relaid_constant(op.operands[0])
        return inner if inner is not None and inner.shape == (channels,) else None
    return None


def is_f32(value: ir.Value) -> bool:
    """Whether the elements of a tensor are f32."""
    return isinstance(ir.RankedTensorType(value.type).element_type, ir.F32Type)


def is_read_once(value: ir.Value) -> bool:
    """Whether exactly one operand reads a value."""
    return len(list(value.uses)) == 1


def splits_groups(op: ir.Operation | None) -> TypeGuard[ir.Operation]:
    """Whether an operation views [n, g * c, h, w] as [n, g, c, h, w], as grouped convolutions read it."""
    return op is not None and op.name == "tensor.expand_shape" and is_reshape(op, SPLIT)


def joining_reader(value: ir.Value) -> ir.Operation | None:
    """The only reader of a grouped convolution's result if it views it as [n, g * c, h, w]."""
    readers = [use.owner.operation for use in value.uses]
    joins = len(readers) == 1 and readers[0].name == "tensor.collapse_shape" and is_reshape(readers[0], SPLIT)
    return readers[0] if joins else None


def match_pad(op: ir.Operation) -> Pad | None:
    """tensor.pad with static amounts and one constant value."""
    if op.name != "tensor.pad" or len(op.operands) != 1:
        return None
    value = scalar(body_of(op)[-1].operands[0])
    if value is None:
        return None
    return Pad(op.operands[0], ints(op, "static_low"), ints(op, "static_high"), value)


def outer_of(op: ir.Operation) -> dict[ir.Value, tuple[ir.Value, ir.AffineMap]]:
    """Body argument of a linalg.generic -> the tensor it is an element of, and its map; of the ``ins`` only."""
    return dict(zip(op.regions[0].blocks[0].arguments, zip(inputs_of(op), maps_of(op), strict=False), strict=False))


def is_elementwise(op: ir.Operation) -> bool:
    """A linalg.generic with only parallel loops and an identity output map."""
    if op.name != "linalg.generic" or len(op.results) != 1:
        return False
    return set(iterators(op)) == {PARALLEL} and is_identity(maps_of(op)[-1])


def match_clamp(op: ir.Operation) -> tuple[ir.Value, float, float] | None:
    """``max(x, c)``, ``min(x, c)`` or both, written as compares and selects: (x, lower bound, upper bound)."""
    if not is_elementwise(op):
        return None
    *steps, end = [inner for inner in body_of(op) if inner.name != "arith.truncf"]  # a bound's, which scalar reads
    if not steps or [o.name for o in steps] != ["arith.cmpf", "arith.select"] * (len(steps) // 2):
        return None
    outer = outer_of(op)
    bounds, first, last = (-math.inf, math.inf), None, None
    for compare, select in zip(steps[::2], steps[1::2], strict=True):
        step = _match_bound(compare, select, outer)
        if step is None or (last is not None and step[0] != last):
            return None
        first = step[0] if first is None else first
        bounds, last = compose_clamps(bounds, step[1:]), select.results[0]
    if first is None or first not in outer:
        return None
    x, affine_map = outer[first]
    if not is_identity(affine_map) or end.operands[0] != last:
        return None
    return (x, *bounds) if shape_of(x) == shape_of(op.results[0]) else None


def _match_bound(compare: ir.Operation, select: ir.Operation, outer: dict) -> tuple[ir.Value, float, float] | None:
    """One compare and its select: (what is bounded, lower bound, upper bound)."""

    def number(value: ir.Value) -> float | None:
        return scalar(outer[value][0]) if value in outer else scalar(value)

    predicate = ir.IntegerAttr(compare.attributes["predicate"]).value
    sides, picked = list(compare.operands), list(select.operands)
    numbers = [number(side) for side in sides]
    if predicate not in _GREATER | _LESS or select.operands[0] != compare.results[0]:
        return None
    if (numbers[0] is None) == (numbers[1] is None) or picked[1:] not in (sides, sides[::-1]):
        return None
    value, bound = (sides[0], numbers[1]) if numbers[0] is None else (sides[1], numbers[0])
    assert bound is not None
    picks_larger = (predicate in _GREATER) == (picked[1] == sides[0])
    return (value, bound, math.inf) if picks_larger else (value, -math.inf, bound)


def compose_clamps(first: tuple[float, float], then: tuple[float, float]) -> tuple[float, float]:
    """The bounds of clamping to ``first`` and to ``then`` after it."""
    (lo, hi), (low, high) = first, then
    return max(low, min(lo, high)), min(high, max(hi, low))


def _binary(op: ir.Operation, name: str) -> list[tuple[ir.Value, ir.AffineMap]] | None:
    """The two tensors, with their maps, of an elementwise operation that is one ``name``."""
    inner = only_step(op, name)
    outer = outer_of(op) if inner is not None else {}
    return [outer[v] for v in inner.operands] if inner is not None and all(v in outer for v in inner.operands) else None


def only_step(op: ir.Operation, name: str) -> ir.Operation | None:
    """The one operation ``name`` whose result an elementwise operation yields."""
    if not is_elementwise(op):
        return None
    *steps, end = body_of(op)
    alone = [step.name for step in steps] == [name] and end.operands[0] == steps[0].results[0]
    return steps[0] if alone else None


def match_add(op: ir.Operation) -> tuple[ir.Value, ir.Value] | None:
    """``a + b`` of two tensors of the result's shape."""
    terms = match_binary(op, "arith.addf")
    same = terms is not None and all(shape_of(term) == shape_of(op.results[0]) for term in terms)
    return terms if same else None


def match_binary(op: ir.Operation, name: str) -> tuple[ir.Value, ir.Value] | None:
    """One operation ``name`` on two tensors, each of which is broadcast as numpy would: (left, right)."""
    pair = _binary(op, name)
    if pair is None or not all(is_broadcast(affine_map, shape_of(value)) for value, affine_map in pair):
        return None
    if not is_f32(op.results[0]):
        return None
    (a, _), (b, _) = pair
    return a, b


def broadcast_map(shape: tuple[int, ...], to: tuple[int, ...]) -> ir.AffineMap:
    """How an operand of ``shape`` is broadcast ``to`` another as numpy would: aligned at the last dimension."""
    zero, first = ir.AffineExpr.get_constant(0), len(to) - len(shape)
    dims = [ir.AffineExpr.get_dim(first + i) for i in range(len(shape))]
    repeated = [n == 1 != to[first + i] for i, n in enumerate(shape)]
    return ir.AffineMap.get(len(to), 0, [zero if r else dim for r, dim in zip(repeated, dims, strict=True)])


def match_bias_add(op: ir.Operation) -> tuple[ir.Value, np.ndarray] | None:
    """``x + b`` with a constant b along dimension 1: (x, b)."""
    pair, shape = _binary(op, "arith.addf"), shape_of(op.results[0])
    if pair is None or len(shape) < 2:
        return None
    for (x, x_map), (other, other_map) in (pair, pair[::-1]):
        bias = relaid_constant(other)
        if bias is None or relaid_constant(x) is not None or not is_identity(x_map) or shape_of(x) != shape:
            continue
        full = (1,) * (len(shape) - bias.ndim) + bias.shape
        if full == (1, shape[1], *[1] * (len(shape) - 2)) and is_broadcast(other_map, bias.shape):
            return x, bias.reshape(-1).astype(np.float32)
    return None


def is_broadcast(affine_map: ir.AffineMap, shape: tuple[int, ...]) -> bool:
    """Whether a map reads an operand of ``shape`` as numpy would broadcast it: aligned at the last dimension."""
    first = affine_map.n_dims - len(shape)
    dims = [ir.AffineExpr.get_dim(first + i, affine_map.context) for i in range(len(shape))]
    zero = ir.AffineExpr.get_constant(0, affine_map.context)
    results = zip(affine_map.results, dims, shape, strict=True)
    return all(result == dim or (size == 1 and result == zero) for result, dim, size in results)


def match_divide(op: ir.Operation) -> tuple[ir.Value, float] | None:
    """``x / c`` with a constant c: (x, c)."""
    inner = only_step(op, "arith.divf")
    if inner is None:
        return None
    top, bottom = inner.operands
    outer = outer_of(op)
    number = scalar(outer[bottom][0]) if bottom in outer else scalar(bottom)
    if number is None or top not in outer:
        return None
    x, affine_map = outer[top]
    return (x, number) if is_identity(affine_map) and shape_of(x) == shape_of(op.results[0]) else None


def match_spatial_sum(op: ir.Operation) -> ir.Value | None:
    """The sum of f32[n, c, h, w] over h and w, into [n, c, 1, 1] or [n, c]."""
    if op.name != "linalg.generic" or len(op.results) != 1 or scalar(init_of(op)) != 0.0:
        return None
    operands, shape, maps = inputs_of(op), shape_of(op.results[0]), maps_of(op)
    if iterators(op) != [PARALLEL, PARALLEL, REDUCTION, REDUCTION] or len(operands) != 1 or not adds_up(op):
        return None
    if shape != shape_of(operands[0])[:2] + (1,) * (len(shape) - 2):
        return None
    kept = [ir.AffineExpr.get_dim(i, op.context) for i in range(2)]
    tail = [ir.AffineExpr.get_constant(0, op.context)] * (len(shape) - 2)
    return operands[0] if is_identity(maps[0]) and list(maps[1].results) == kept + tail else None


def adds_up(op: ir.Operation) -> bool:
    """Whether the body of an operation adds its f32 element to its f32 result, in either order."""
    found = arithmetic(op.regions[0].blocks[0])
    return found in (emitted(_added, "f32", "f32"), emitted(_added_to, "f32", "f32"))


def _added(x: ir.Value, acc: ir.Value) -> ir.Value:
    return arith.addf(x, acc)


def _added_to(x: ir.Value, acc: ir.Value) -> ir.Value:
    return arith.addf(acc, x)


def float_detail(op: ir.Operation) -> str:
    """What an operation computes, for people: ``math.exp + arith.divf`` or the operation's own name."""
    if op.name != "linalg.generic":
        return op.name
    names = [o.name for o in body_of(op) if o.name not in ("linalg.yield", "arith.constant")]
    return " + ".join(dict.fromkeys(names)) or "broadcast"
