"""Product of two tensors, of which any may be broadcast (squeeze and excitation, attention to channels or places).

q_y(dq(a) · dq(b))  ->  clamp(roundeven(f32((a − z_a)·(b − z_b)) · m) + z_y, lo, hi)        m = f32(s_a·s_b/s_y)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.build import elementwise
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader
from mlir_passes.ops.requantize import i32


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """``a * b`` of two tensors of the network, one with all elements first."""
    factors = match.match_binary(op, "arith.mulf")
    if factors is None or not all(reader.knows(value) for value in factors):
        return False
    shape = match.shape_of(op.results[0])
    if len(shape) < 2:
        return Missed("a product without a dimension for channels")
    a, b = factors
    return reader.add(op, "product", (a, b) if match.shape_of(a) == shape else (b, a))


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The products in i32, requantized as a layer's sums are."""
    a, b = inputs
    zeros = [emit.scalar(role, np.int32(spec.zero_point_array)) for role, spec in (("zero_a", a), ("zero_b", b))]
    maps = [*emit.broadcasts(), None, None]
    total = elementwise([*emit.inputs, *zeros], emit.type(np.int32), _body, maps=maps, layer=emit.node.layer)
    channels = emit.node.shape[1]
    ratio = float(a.scale_array) * float(b.scale_array) / float(y.scale_array)
    bias = np.zeros(channels, np.int32)
    return emit.requantize(total, bias, np.full(channels, ratio), y, bounds, shift=False)


def _body(a: ir.Value, b: ir.Value, zero_a: ir.Value, zero_b: ir.Value) -> ir.Value:
    return arith.muli(arith.subi(arith.extsi(i32(), a), zero_a), arith.subi(arith.extsi(i32(), b), zero_b))
