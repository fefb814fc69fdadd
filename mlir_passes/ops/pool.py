"""Pools: the maximum of each window, on the integers; the average, as an i32 sum that is requantized.

q_y(max(dq(x)))      ->  max(x)
q_y(sum(dq(x)) / n)  ->  roundeven(f32(Σx − n·z_x) · s_x/(s_y·n)) + z_y      the whole image is one window too
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.build import defining_op, reduction
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import is_plain
from mlir_passes.ops.emit import Emitter, whole_image
from mlir_passes.ops.layout import Layouts, window_attributes
from mlir_passes.ops.reader import Reader, Site
from mlir_passes.ops.requantize import i8, i32
from mlir_passes.ops.windows import unpadded

_MAX, _SUM = "linalg.pooling_nchw_max", "linalg.pooling_nchw_sum"
WINDOWS = {_MAX: -math.inf, _SUM: 0.0}


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A pool, the division behind a sum, or the sum over a whole image."""
    if op.name in WINDOWS:
        return _pool(op, reader)
    divided = match.match_divide(op)
    if divided is not None and (site := _sum_of(divided[0], reader)) is not None:
        return reader.extend(site, op, divisor=divided[1])
    summed = match.match_spatial_sum(op)
    if summed is None:
        return False
    return reader.add(op, "avgpool", (summed,), kernel=match.shape_of(summed)[2:])


def _pool(op: ir.Operation, reader: Reader) -> bool | Missed:
    if not is_plain(op):
        return Missed(f"{op.name} with casts or a body of its own")
    if match.scalar(op.operands[2]) != WINDOWS[op.name]:
        return Missed(op.name)
    source, pads = unpadded(op.operands[0], fill=WINDOWS[op.name])
    # A sum is divided by 1 until a division by another number follows.
    return reader.add(
        op, "maxpool" if op.name == _MAX else "avgpool", (source,), kernel=match.shape_of(op.operands[1]), pads=pads,
        strides=match.ints(op, "strides"), dilations=match.ints(op, "dilations"),
    )  # fmt: skip


def _sum_of(value: ir.Value, reader: Reader) -> Site | None:
    """The average pool whose sum, not yet divided, is ``value`` and read by nothing else."""
    site = reader.site_of(value)
    is_sum = site is not None and site.node.kind == "avgpool" and site.op == defining_op(value)
    return site if is_sum and match.is_read_once(value) else None


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The maximum of the integers, or the average requantized."""
    if emit.node.kind == "maxpool":
        padded = emit.padded(arith.ConstantOp(i8(), ir.IntegerAttr.get(i8(), -128)).result)
        return emit.pool(linalg.pooling_nchw_max, padded, emit.filled(np.int8, -128))
    (x,) = inputs
    total, bias = _sum(emit, x)
    ratio = float(x.scale_array) / (float(y.scale_array) * emit.node.divisor)
    return emit.requantize(total, bias, np.full(bias.shape, ratio), y, bounds, shift=False)


def real(emit: Emitter, inputs: Sequence[QuantSpec]) -> ir.Value:
    """The average as f32."""
    (x,) = inputs
    total, bias = _sum(emit, x)
    return emit.real(total, bias, np.full(bias.shape, float(x.scale_array) / emit.node.divisor))


def _sum(emit: Emitter, x: QuantSpec) -> tuple[ir.Value, np.ndarray]:
    """The i32 sum over each window, and minus the zero points in it as bias i32[channels]."""
    node, source = emit.node, emit.inputs[0]
    bias = np.full(node.shape[1], -math.prod(node.kernel) * int(x.zero_point_array), np.int32)
    if whole_image(node, source):
        return emit.named(reduction(source, emit.filled(np.int32, 0), (2, 3), sum_body)), bias
    padded = emit.zero_padded(x)
    return emit.pool(linalg.pooling_nchw_sum, padded, emit.filled(np.int32, 0)), bias


def sum_body(x: ir.Value, acc: ir.Value) -> ir.Value:
    """One element of a sum over an image: i8 added to i32."""
    return arith.addi(arith.extsi(i32(), x), acc)


def _channels_last(op: ir.Operation, layouts: Layouts) -> ir.Value:
    build = linalg.pooling_nhwc_max if op.name == _MAX else linalg.pooling_nhwc_sum
    outs = [layouts.last(op.operands[2])]
    return build(layouts.last(op.operands[0]), op.operands[1], outs=outs, **window_attributes(op))


CHANNELS_LAST = {_MAX: _channels_last, _SUM: _channels_last}
