"""Sum and difference of two tensors, of which any may be broadcast.

q_y(dq(a) + dq(b))  ->  ((a·m_a + b·m_b + offset) >> k) + z_y       rounds half up; the offset holds zero points
q_y(dq(a) - dq(b))  ->  the same with -m_b
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import Elementwise
from mlir_passes.ops.emit import Emitter, wrap
from mlir_passes.ops.reader import Reader
from mlir_passes.ops.requantize import i8, i32

_LIMIT = 1 << 21
_STEPS = {"add": "arith.addf", "subtract": "arith.subf"}


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """``a + b`` or ``a - b`` of two tensors of the network."""
    for kind, name in _STEPS.items():
        terms = match.match_binary(op, name)
        if terms is not None and all(reader.knows(value) for value in terms):
            return reader.add(op, kind, terms)
    return False


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The sum in i32 fixed point."""
    a, b = inputs
    m_a, m_b, shift = multipliers(float(a.scale_array), float(b.scale_array), float(y.scale_array))
    m_b = m_b if emit.node.kind == "add" else -m_b
    offset = (1 << (shift - 1)) - int(a.zero_point_array) * m_a - int(b.zero_point_array) * m_b
    numbers = {"m_a": m_a, "m_b": m_b, "offset": offset, "shift": shift, "zero_point": int(y.zero_point_array)}
    scalars = [emit.scalar(role, np.int32(wrap(value))) for role, value in numbers.items()]
    scalars += emit.bounds(bounds, np.int32)
    return ADD.build([*emit.inputs, *scalars], emit.node.shape, emit.node.layer, emit.broadcasts())


def multipliers(s_a: float, s_b: float, s_out: float) -> tuple[int, int, int]:
    """Fixed point multipliers below 2**21 and the largest common shift in [1, 30] for ``s/s_out ≈ m / 2**shift``."""
    a, b = s_a / s_out, s_b / s_out
    for shift in range(30, 0, -1):
        m_a, m_b = round(math.ldexp(a, shift)), round(math.ldexp(b, shift))
        if max(m_a, m_b) < _LIMIT:
            return m_a, m_b, shift
    return min(round(a * 2), _LIMIT - 1), min(round(b * 2), _LIMIT - 1), 1


def _body(a, b, m_a, m_b, offset, shift, zero_point, lo, hi):
    products = arith.addi(arith.muli(arith.extsi(i32(), a), m_a), arith.muli(arith.extsi(i32(), b), m_b))
    moved = arith.addi(arith.shrsi(arith.addi(products, offset), shift), zero_point)
    return arith.trunci(i8(), arith.minsi(arith.maxsi(moved, lo), hi))


ADD = Elementwise(_body, ("i8", "i8", *["i32 one"] * 7), "i8")
