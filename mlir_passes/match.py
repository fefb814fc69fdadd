"""Recognizers for the forms in which torch-mlir writes CNN operations as linalg. Each is pure and returns None on a miss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch_mlir import ir

_GREATER = {2, 3, 9, 10}  # ogt oge ugt uge
_LESS = {4, 5, 11, 12}  # olt ole ult ule


@dataclass(frozen=True)
class Pad:
    """A tensor.pad with a constant value."""

    source: ir.Value
    low: tuple[int, ...]
    high: tuple[int, ...]
    value: float


def owner(value: ir.Value) -> ir.Operation | None:
    """The operation that defines ``value``, or None for a block argument."""
    return None if isinstance(value.owner, ir.Block) else value.owner.operation


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Static shape of a ranked tensor value."""
    return tuple(ir.RankedTensorType(value.type).shape)


def ints(op: ir.Operation, name: str) -> tuple[int, ...]:
    """An integer array attribute (dense elements, dense array or array attribute) as a tuple."""
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
    return affine_map == ir.AffineMap.get_identity(affine_map.n_dims)


def scalar(value: ir.Value) -> float | None:
    """The number behind a constant scalar, a splat constant tensor, or a fill of one."""
    op = owner(value)
    if op is None:
        return None
    if op.name == "linalg.fill":
        return scalar(op.operands[0])
    if op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
        return scalar(op.operands[0])
    if op.name != "arith.constant":
        return None
    attribute = op.attributes["value"]
    if isinstance(attribute, ir.FloatAttr | ir.IntegerAttr):
        return float(attribute.value)
    if isinstance(attribute, ir.DenseElementsAttr) and attribute.is_splat:
        return float(attribute.get_splat_value().value)
    return None


def constant(value: ir.Value) -> np.ndarray | None:
    """The array behind a constant, looking through transposes and reshapes of constants."""
    op = owner(value)
    if op is None:
        return None
    if op.name == "arith.constant":
        attribute = op.attributes["value"]
        return np.array(attribute) if isinstance(attribute, ir.DenseElementsAttr) else None
    if op.name == "linalg.transpose":
        inner = constant(op.operands[0])
        return None if inner is None else inner.transpose(ints(op, "permutation"))
    if op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
        inner = constant(op.operands[0])
        return None if inner is None else inner.reshape(shape_of(value))
    return None


def channel_bias(init: ir.Value, channels: int) -> np.ndarray | None:
    """The per-channel start value f32[channels] of a convolution's accumulator: a constant broadcast, or one number."""
    number = scalar(init)
    if number is not None:
        return np.full(channels, number, np.float32)
    op = owner(init)
    if op is None:
        return None
    if op.name == "tensor.expand_shape":
        return channel_bias(op.operands[0], channels)
    if op.name == "linalg.broadcast":
        inner = constant(op.operands[0])
        return inner if inner is not None and inner.shape == (channels,) else None
    return None


def match_pad(op: ir.Operation) -> Pad | None:
    """tensor.pad with static amounts and one constant value."""
    if op.name != "tensor.pad" or len(op.operands) != 1:
        return None
    (yielded,) = body_of(op)
    value = scalar(yielded.operands[0])
    if value is None:
        return None
    return Pad(op.operands[0], ints(op, "static_low"), ints(op, "static_high"), value)


def _arguments(op: ir.Operation) -> list[ir.Value]:
    return list(op.regions[0].blocks[0].arguments)


def is_elementwise(op: ir.Operation) -> bool:
    """A linalg.generic with only parallel loops and an identity output map."""
    if op.name != "linalg.generic" or len(op.results) != 1:
        return False
    kinds = {str(kind) for kind in op.attributes["iterator_types"]}
    return kinds == {"#linalg.iterator_type<parallel>"} and is_identity(maps_of(op)[-1])


def match_clamp(op: ir.Operation) -> tuple[ir.Value, float, float] | None:
    """``max(x, c)`` or ``min(x, c)`` written as a compare and a select: (x, lower bound, upper bound)."""
    if not is_elementwise(op):
        return None
    body = body_of(op)
    if [o.name for o in body] != ["arith.cmpf", "arith.select", "linalg.yield"]:
        return None
    compare, select, _ = body
    arguments, operands = _arguments(op), inputs_of(op)

    def resolve(inner: ir.Value) -> tuple[ir.Value | None, float | None]:
        if inner in arguments:
            outer = operands[arguments.index(inner)]
            number = scalar(outer)
            return (outer, None) if number is None else (None, number)
        return None, scalar(inner)

    (left, left_number), (_, right_number) = resolve(compare.operands[0]), resolve(compare.operands[1])
    flip = left is None
    tensor = resolve(compare.operands[1])[0] if flip else left
    number = left_number if flip else right_number
    if tensor is None or number is None:
        return None
    if not is_identity(maps_of(op)[operands.index(tensor)]) or shape_of(tensor) != shape_of(op.results[0]):
        return None
    predicate = ir.IntegerAttr(compare.attributes["predicate"]).value
    if predicate not in _GREATER | _LESS:
        return None
    first_is_left = select.operands[1] == compare.operands[0]
    if not {select.operands[1], select.operands[2]} == {compare.operands[0], compare.operands[1]}:
        return None
    picks_larger = (predicate in _GREATER) == first_is_left
    return (tensor, number, math.inf) if picks_larger else (tensor, -math.inf, number)


def _binary(op: ir.Operation, name: str) -> bool:
    return is_elementwise(op) and [o.name for o in body_of(op)] == [name, "linalg.yield"]


def match_add(op: ir.Operation) -> tuple[ir.Value, ir.Value] | None:
    """``a + b`` of two tensors of the result's shape."""
    operands = inputs_of(op)
    if not _binary(op, "arith.addf") or len(operands) not in (1, 2):
        return None
    values = [operands[_arguments(op).index(v)] for v in body_of(op)[0].operands if v in _arguments(op)]
    if len(values) != 2 or not all(is_identity(m) for m in maps_of(op)):
        return None
    shape = shape_of(op.results[0])
    return (values[0], values[1]) if all(shape_of(v) == shape for v in values) else None


def match_bias_add(op: ir.Operation) -> tuple[ir.Value, np.ndarray] | None:
    """``x + b`` with a constant b along dimension 1: (x, b)."""
    operands = inputs_of(op)
    if not _binary(op, "arith.addf") or len(operands) != 2:
        return None
    for x, other in (operands, operands[::-1]):
        bias = constant(other)
        channels = shape_of(op.results[0])[1]
        if (
            bias is not None
            and constant(x) is None
            and bias.size == channels
            and shape_of(x) == shape_of(op.results[0])
        ):
            tail = (channels, *[1] * (len(shape_of(x)) - 2))
            if bias.shape in ((channels,), tail, (1, *tail)) and (bias.ndim > 1 or len(shape_of(x)) == 2):
                return x, bias.reshape(channels).astype(np.float32)
    return None


def match_divide(op: ir.Operation) -> tuple[ir.Value, float] | None:
    """``x / c`` with a constant c: (x, c)."""
    if not _binary(op, "arith.divf"):
        return None
    top, bottom = body_of(op)[0].operands
    arguments, operands = _arguments(op), inputs_of(op)
    number = scalar(operands[arguments.index(bottom)]) if bottom in arguments else scalar(bottom)
    if number is None or top not in arguments:
        return None
    x = operands[arguments.index(top)]
    return (x, number) if is_identity(maps_of(op)[operands.index(x)]) else None


def match_spatial_sum(op: ir.Operation) -> ir.Value | None:
    """The sum of f32[n, c, h, w] over h and w, into [n, c, 1, 1] or [n, c]."""
    if op.name != "linalg.generic" or len(op.results) != 1 or scalar(init_of(op)) != 0.0:
        return None
    kinds = [str(kind) for kind in op.attributes["iterator_types"]]
    parallel, reduction = "#linalg.iterator_type<parallel>", "#linalg.iterator_type<reduction>"
    if kinds != [parallel, parallel, reduction, reduction]:
        return None
    if [o.name for o in body_of(op)] != ["arith.addf", "linalg.yield"]:
        return None
    operands = inputs_of(op)
    return operands[0] if len(operands) == 1 and is_identity(maps_of(op)[0]) else None


def float_detail(op: ir.Operation) -> str:
    """What an operation computes, for people: ``math.exp + arith.divf`` or the operation's own name."""
    if op.name != "linalg.generic":
        return op.name
    names = [o.name for o in body_of(op) if o.name not in ("linalg.yield", "arith.constant")]
    return " + ".join(dict.fromkeys(names)) or "broadcast"
