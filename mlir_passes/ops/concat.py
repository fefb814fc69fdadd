"""Concatenation: integers side by side, requantized on the way where they have another scale than the result.

q_y(concat(dq(a), ...))  ->  concat(clamp(roundeven(f32(a - z_a) · m) + z_y), ...)        m = f32(s_a / s_y)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith
from torch_mlir.dialects import math as math_dialect

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import Elementwise
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.layout import TO_NHWC, Layouts, rank_of, type_like
from mlir_passes.ops.reader import Reader
from mlir_passes.ops.requantize import f32, i8, i32, to_f32


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A tensor.concat of tensors of the network."""
    if op.name != "tensor.concat" or not all(reader.knows(value) for value in op.operands):
        return False
    return reader.add(op, "concat", tuple(op.operands), axis=ir.IntegerAttr(op.attributes["dim"]).value)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The same concatenation of the integers."""
    for number, (x, shared) in enumerate(zip(inputs, emit.shared, strict=True)):
        if not shared or x != y:
            emit.inputs[number] = _requantized(emit, number, x, y, bounds)
    return emit.same()


def _requantized(emit: Emitter, number: int, x: QuantSpec, y: QuantSpec, bounds: tuple[int, int]) -> ir.Value:
    multiplier = to_f32(np.asarray(float(x.scale_array) / float(y.scale_array)))
    low, high = bounds
    numbers = {"multiplier": multiplier, "zero_point": np.float32(y.zero_point_array), "min": low, "max": high}
    scalars = [emit.scalar(f"zero{number}", np.int32(x.zero_point_array))]
    scalars += [emit.scalar(f"{role}{number}", np.float32(value)) for role, value in numbers.items()]
    value = emit.inputs[number]
    return REQUANTIZED.build([value, *scalars], match.shape_of(value), emit.node.layer)


def _body(x, zero, multiplier, zero_point, lo, hi):
    real = arith.mulf(arith.sitofp(f32(), arith.subi(arith.extsi(i32(), x), zero)), multiplier)
    moved = arith.addf(math_dialect.roundeven(real), zero_point)
    return arith.fptosi(i8(), arith.minimumf(arith.maximumf(moved, lo), hi))


REQUANTIZED = Elementwise(_body, ("i8", "i32 one", *["f32 one"] * 4), "i8")


def _channels_last(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    if not layouts.any_converted(list(op.operands)) or rank_of(op.results[0]) != 4:
        return None
    dim = TO_NHWC.index(ir.IntegerAttr(op.attributes["dim"]).value)
    attributes = {"dim": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)}
    operands = [layouts.last(value) for value in op.operands]
    return ir.Operation.create("tensor.concat", [type_like(op.results[0])], operands, attributes).result


CHANNELS_LAST = {"tensor.concat": _channels_last}
