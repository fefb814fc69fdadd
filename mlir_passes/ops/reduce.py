"""Sums, means and maxima over any dimensions; those over whole images are pools.

q_y(sum(dq(x)) / n)  ->  roundeven(f32(Σx − n·z_x) · s_x/(s_y·n)) + z_y
q_y(max(dq(x)))      ->  max(x)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.build import defining_op, reduction
from mlir_passes.ir.match_steps import match_reduction
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.pool import sum_body
from mlir_passes.ops.reader import Reader

_LARGEST = 1 << 23
"""Numbers of which the sum, each less than 2**8 from the zero point, stays inside i32."""


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A sum or maximum over dimensions, or the division behind a sum."""
    divided = match.match_divide(op)
    site = reader.site_of(divided[0]) if divided is not None else None
    if divided is not None and site is not None and site.node.kind == "sum":
        is_last = site.op == defining_op(divided[0]) and match.is_read_once(divided[0])
        return reader.extend(site, op, divisor=divided[1]) if is_last else False
    found = match_reduction(op)
    if found is None or not reader.knows(found.source):
        return False
    if found.kind == "sum" and len(match.shape_of(op.results[0])) < 2:
        return Missed("a sum without a dimension for channels")
    if found.kind == "sum" and math.prod(match.shape_of(found.source)[axis] for axis in found.axes) > _LARGEST:
        return Missed(f"a sum of more than {_LARGEST} numbers")
    return reader.add(op, "sum" if found.kind == "sum" else "maximum", (found.source,), axes=found.axes)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The maximum of the integers, or the sum requantized."""
    node, source = emit.node, emit.inputs[0]
    if node.kind == "maximum":
        return emit.named(reduction(source, emit.filled(np.int8, -128), node.axes, _larger))
    (x,) = inputs
    count = math.prod(match.shape_of(source)[axis] for axis in node.axes)
    total = emit.named(reduction(source, emit.filled(np.int32, 0), node.axes, sum_body))
    bias = np.full(node.shape[1], -count * int(x.zero_point_array), np.int32)
    ratio = float(x.scale_array) / (float(y.scale_array) * node.divisor)
    return emit.requantize(total, bias, np.full(bias.shape, ratio), y, bounds, shift=False)


def _larger(x: ir.Value, acc: ir.Value) -> ir.Value:
    return arith.maxsi(x, acc)
