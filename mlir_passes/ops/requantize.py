"""From i32 sums to what an operation hands on: the forms that layers and averages end in.

multiplier   clamp(roundeven(f32(acc + B) · m) + z, lo, hi)
shift        clamp(roundeven((acc + B) / 2^k) + z, lo, hi)      where the plan asks for shifts
real         f32(acc + B) · m                                  a result that nobody quantizes
"""

from __future__ import annotations

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith
from torch_mlir.dialects import math as math_dialect

from mlir_passes.ir.build import element_type
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import Elementwise

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def _multiplier_body(acc, bias, multiplier, zero_point, lo, hi):
    scaled = math_dialect.roundeven(arith.mulf(arith.sitofp(f32(), arith.addi(acc, bias)), multiplier))
    return arith.fptosi(i8(), arith.minimumf(arith.maximumf(arith.addf(scaled, zero_point), lo), hi))


def _shift_body(acc, bias, shift, zero_point, lo, hi):
    def c(value: int) -> ir.Value:
        return arith.constant(i32(), value)

    total = arith.addi(acc, bias)
    right, left = arith.maxsi(shift, c(0)), arith.maxsi(arith.subi(c(0), shift), c(0))
    unit = arith.shli(c(1), right)
    half = arith.maxsi(arith.shrsi(unit, c(1)), c(1))
    q = arith.shrsi(total, right)
    rest = arith.addi(arith.andi(total, arith.subi(unit, c(1))), arith.andi(q, c(1)))
    q = arith.addi(q, arith.extui(i32(), arith.cmpi(arith.CmpIPredicate.sgt, rest, half)))
    q = arith.shli(arith.minsi(arith.maxsi(q, c(-512)), c(511)), left)
    return arith.trunci(i8(), arith.minsi(arith.maxsi(arith.addi(q, zero_point), lo), hi))


def _real_body(acc, bias, scale):
    return arith.mulf(arith.sitofp(f32(), arith.addi(acc, bias)), scale)


_FLOATS = ("f32 channel", *["f32 one"] * 3)
_INTEGERS = ("i32 channel", *["i32 one"] * 3)
MULTIPLIER = Elementwise(_multiplier_body, ("i32", "i32 channel", *_FLOATS), "i8")
SHIFT = Elementwise(_shift_body, ("i32", "i32 channel", *_INTEGERS), "i8")
REAL = Elementwise(_real_body, ("i32", "i32 channel", "f32 channel"), "f32")


def power2(*specs: QuantSpec) -> bool:
    """Whether all scales are powers of two."""
    return all(np.all(np.frexp(spec.scale_array)[0] == 0.5) for spec in specs)


def shifts(ratio: np.ndarray) -> np.ndarray:
    """The right shifts that multiply by powers of two; beyond [-9, 30] they make no difference."""
    return np.clip(1 - np.frexp(ratio)[1], -9, 30).astype(np.int32)


def to_f32(values: np.ndarray) -> np.ndarray:
    """Round once to f32; what would be subnormal, which a target may flush, becomes 0."""
    return np.where(values < _SMALLEST, 0.0, np.minimum(values, _LARGEST)).astype(np.float32)


def i8() -> ir.Type:
    """The element type of stored integers."""
    return element_type(np.int8)


def i32() -> ir.Type:
    """The element type of sums."""
    return element_type(np.int32)


def f32() -> ir.Type:
    """The element type of real numbers."""
    return element_type(np.float32)
