"""A factor and a shift for each channel: batch norms that no layer takes over, and steps with constants of that form.

q_y(dq(x)·f + b)  ->  clamp(roundeven(f32(x·n + B) · m) + z_y, lo, hi)

t = max(|f|·s_x / 2**8, |b| / 2**23)      n = roundeven(f·s_x / t)      B = roundeven(b / t) − n·z_x      m = t / s_y

for each channel. t is what a step of the sums is worth; they are below 2**24, which f32 holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.build import parameter
from mlir_passes.ir.match_steps import match_channel_step
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import Elementwise
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader
from mlir_passes.ops.requantize import i32


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """``x`` plus, minus, times or over numbers of each channel, or any number where ``x`` is such a result already."""
    found = match_channel_step(op)
    if found is None or not reader.knows(found.source):
        return False
    before = reader.site_of(found.source)
    extends = before is not None and before.node.kind == "affine" and match.is_read_once(before.result)
    if before is None or not extends:
        if found.is_one_number:
            return False  # a table
        return reader.add(op, "affine", (found.source,), weight=_f32(found.factor), bias=_f32(found.shift))
    weight, bias = before.node.weight, before.node.bias
    assert weight is not None
    assert bias is not None
    factor = found.factor
    return reader.extend(before, op, weight=_f32(weight * factor), bias=_f32(bias * factor + found.shift))


def _f32(numbers: np.ndarray) -> np.ndarray:
    return np.asarray(numbers, np.float64).astype(np.float32)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The sums in i32, requantized as a layer's are."""
    (x,), node = inputs, emit.node
    assert node.weight is not None
    assert node.bias is not None
    slope, shift = node.weight.astype(np.float64) * float(x.scale_array), node.bias.astype(np.float64)
    step = np.maximum(np.abs(slope) / 2**8, np.abs(shift) / 2**23)
    step = np.where(step > 0, step, 1.0)
    factor = np.rint(slope / step).astype(np.int32)
    bias = np.rint(shift / step).astype(np.int32) - factor * np.int32(x.zero_point_array)
    total = SCALED.build([emit.inputs[0], parameter(f"{emit.name}.factor", factor)], node.shape, node.layer)
    return emit.requantize(total, bias, step / float(y.scale_array), y, bounds, shift=False)


def _body(x, factor):
    return arith.muli(arith.extsi(i32(), x), factor)


SCALED = Elementwise(_body, ("i8", "i32 channel"), "i32")
