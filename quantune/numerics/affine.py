"""Affine quantization in numpy: the specification of what every compiled artifact must compute.

    real = scale * (q - zero_point)
    q    = clamp(roundeven(x / scale) + zero_point, qmin, qmax)         f32 throughout, clamp before the cast

A convolution accumulates ``sum((q_x - z_x) * q_w) + bias`` in i32, where the bias has the scale ``s_x * s_w``, and
goes back to eight bits by ``requantize`` (an f32 multiplier), ``requantize_shift`` (power of two scales, integers
only) or ``add`` (two operands, fixed point). No formula here can be changed by contracting a product
and a sum into one rounding, and none leaves i32 or f32, so that a vector CPU, a GPU and numpy get the same integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
LARGEST_SCALE = 2.0**119
"""256 steps of it are finite in f32; values beyond its largest step, 2**126 at eight bits, saturate."""

I32 = np.iinfo(np.int32)

BIAS_LIMIT = 1 << 30
"""Largest |bias| that leaves an i32 accumulator room for 33 000 products of a u8 and an s8."""

LARGEST_RIGHT_SHIFT = 30
LARGEST_LEFT_SHIFT = 9
"""2**9 exceeds every |q - zero_point|, so that a longer left shift saturates at the same values."""

_ADD_MULTIPLIER_LIMIT = 1 << 21

Integers = NDArray[np.int8 | np.uint8]


@dataclass(frozen=True, eq=False)
class QuantParams:
    """How one tensor is quantized.

    scale: f32, rank 0, or one per channel (C,) along ``axis``; finite, positive and not subnormal.
    zero_point: i32 of the same shape, inside [qmin, qmax]. qmin, qmax: inside s8 when qmin < 0, else inside u8.
    levels: the integers that there are, ascending, s8, with zero points of 0; None for all of [qmin, qmax].
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    qmin: int
    qmax: int
    axis: int | None = None
    levels: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        scale = np.array(self.scale, np.float32)
        zero_point = np.array(self.zero_point)
        if not np.all(np.isfinite(scale) & (scale >= SMALLEST_SCALE)):
            raise ValueError(f"scale {self.scale}: expected finite normal f32 numbers above 0")
        if scale.ndim > 1 or scale.size == 0 or scale.shape != zero_point.shape:
            raise ValueError(
                f"scale of shape {scale.shape}, zero point of {zero_point.shape}: expected () or (C,), equal"
            )
        if (self.axis is None) != (scale.ndim == 0):
            raise ValueError(
                f"axis {self.axis} with a scale of shape {scale.shape}: one scale has no axis, many need one"
            )
        low, high = (-128, 127) if self.qmin < 0 else (0, 255)
        if not low <= self.qmin < self.qmax <= high:
            raise ValueError(f"[qmin, qmax] = [{self.qmin}, {self.qmax}]: expected a range inside [{low}, {high}]")
        if zero_point.dtype.kind not in "iu" or np.any((zero_point < self.qmin) | (zero_point > self.qmax)):
            raise ValueError(f"zero point {self.zero_point}: expected integers in [{self.qmin}, {self.qmax}]")
        zero_point = zero_point.astype(np.int32)
        arrays = {"scale": scale, "zero_point": zero_point}
        if self.levels is not None:
            arrays["levels"] = _checked_levels(self.levels, self.qmin, self.qmax, zero_point)
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def signed(self) -> bool:
        """Whether the storage type is s8."""
        return self.qmin < 0

    @property
    def storage(self) -> str:
        """The storage type, "s8" or "u8"."""
        return "s8" if self.signed else "u8"

    @property
    def dtype(self) -> np.dtype:
        """The numpy type of the storage."""
        return np.dtype(np.int8 if self.signed else np.uint8)

    def _key(self) -> tuple[object, ...]:
        levels = None if self.levels is None else self.levels.tobytes()
        return (self.scale.tobytes(), self.zero_point.tobytes(), self.qmin, self.qmax, self.axis, levels)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, QuantParams) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


def _checked_levels(levels: ArrayLike, qmin: int, qmax: int, zero_point: NDArray[np.int32]) -> NDArray[np.int8]:
    found = np.array(levels)
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu" or np.any(np.diff(found.astype(int)) <= 0):
        raise ValueError(f"levels {found}: expected ascending integers")
    if qmin >= 0 or found[0] < qmin or found[-1] > qmax or np.any(zero_point != 0):
        raise ValueError(f"levels {found}: expected them inside [{qmin}, {qmax}], signed, with zero points of 0")
    return found.astype(np.int8)


def along(values: NDArray, ndim: int, axis: int | None) -> NDArray:
    """Reshape one value per channel so that it broadcasts along ``axis`` of a tensor of rank ``ndim``."""
    if axis is None or values.ndim == 0:
        return values
    return values.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def quantize(x: NDArray[np.floating], p: QuantParams) -> Integers:
    """The integers of ``x`` (taken as f32). Infinities saturate and NaN gives the smallest.

    Where there are levels it is the nearest one of x / scale, the larger of two that are equally near.
    """
    steps = _steps(x, p)
    if p.levels is not None:
        return nearest(steps, p.levels)
    return _saturate(np.rint(steps) + along(p.zero_point, x.ndim, p.axis).astype(np.float32), p.qmin, p.qmax)


def nearest(steps: NDArray[np.floating], levels: NDArray[np.int8]) -> NDArray[np.int8]:
    """The nearest of ascending levels for numbers in steps of their scale; the larger of two that are equally near."""
    # What lies midway between two integers is a multiple of 1/2: half a step is never divided between two levels.
    halves = np.arange(-256, 257)
    table = levels[np.searchsorted(levels[:-1].astype(int) + levels[1:], halves, side="right")]
    return table[np.floor(np.fmin(np.fmax(steps, -128), 128) * 2).astype(np.int16) + 256]


def neighbours(x: NDArray[np.floating], p: QuantParams) -> tuple[Integers, Integers]:
    """The integers next to x / scale: the last one that is not above it and the one that follows; at an end the end."""
    steps = _steps(x, p)
    if p.levels is None:
        below = np.floor(steps) + along(p.zero_point, x.ndim, p.axis).astype(np.float32)
        return _saturate(below, p.qmin, p.qmax), _saturate(below + 1, p.qmin, p.qmax)
    after, last = np.searchsorted(p.levels.astype(np.float32), steps, side="right"), len(p.levels) - 1
    return p.levels[np.clip(after - 1, 0, last)], p.levels[np.clip(after, 0, last)]


def _steps(x: NDArray[np.floating], p: QuantParams) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(x.astype(np.float32) / along(p.scale, x.ndim, p.axis), np.float32)


def dequantize(q: NDArray[np.integer], p: QuantParams) -> NDArray[np.float32]:
    """The real values of ``q``, f32."""
    scale, zero_point = along(p.scale, q.ndim, p.axis), along(p.zero_point, q.ndim, p.axis)
    return (q.astype(np.int32) - zero_point).astype(np.float32) * scale


def quantize_bias(b: NDArray[np.floating], s_x: ArrayLike, s_w: ArrayLike) -> NDArray[np.int32]:
    """The bias at scale ``s_x * s_w``, rounded half to even, saturated to i32 (see ``fit_to_bias``)."""
    if not np.isfinite(b).all():
        raise ValueError(f"bias: {np.count_nonzero(~np.isfinite(b))} of {b.size} elements are not finite")
    scale = np.asarray(s_x, np.float64) * np.asarray(s_w, np.float64)
    return np.clip(np.rint(b.astype(np.float64) / scale), I32.min, I32.max).astype(np.int32)


def multiplier(s_in: ArrayLike, s_w: ArrayLike, s_out: ArrayLike) -> NDArray[np.float32]:
    """``s_in * s_w / s_out``, computed in f64 and rounded once to f32.

    Saturated to the f32 range; a subnormal product becomes 0: a target may flush it, and no i32 times it reaches 1/2.
    """
    product = np.asarray(s_in, np.float64) * np.asarray(s_w, np.float64) / np.asarray(s_out, np.float64)
    product = np.where(product < SMALLEST_SCALE, 0.0, np.minimum(product, np.finfo(np.float32).max))
    return np.asarray(product.astype(np.float32))


def requantize(acc: NDArray[np.int32], m: ArrayLike, zero_point: ArrayLike, qmin: int, qmax: int) -> Integers:
    """``clamp(roundeven(f32(acc) * m) + zero_point)`` in f32; ``m`` broadcasts (``along``)."""
    with np.errstate(over="ignore"):
        product = acc.astype(np.float32) * np.asarray(m, np.float32)
    return _saturate(np.rint(product) + np.asarray(zero_point, np.float32), qmin, qmax)


def shift_of(s_in: ArrayLike, s_w: ArrayLike, s_out: ArrayLike) -> NDArray[np.int32]:
    """The right shift that multiplies by ``s_in * s_w / s_out``; all must be powers of two.

    Cut to [-9, 30]: a longer left shift saturates alike; a longer right one gives 0 up to |acc| = 2**29, then at most 2
    where the exact result is at most 1.
    """
    product = np.asarray(s_in, np.float64) * np.asarray(s_w, np.float64) / np.asarray(s_out, np.float64)
    mantissa, exponent = np.frexp(product)
    if not np.all(mantissa == 0.5):
        raise ValueError(f"s_in * s_w / s_out = {product}: expected powers of two")
    return np.clip(1 - exponent, -LARGEST_LEFT_SHIFT, LARGEST_RIGHT_SHIFT).astype(np.int32)


def requantize_shift(acc: NDArray[np.int32], shift: ArrayLike, zero_point: ArrayLike, qmin: int, qmax: int) -> Integers:
    """``clamp(roundeven(acc / 2**shift) + zero_point)`` in i32 alone; ``shift`` in [-9, 30] broadcasts.

    right = max(shift, 0), left = max(-shift, 0), half = max(1 << right >> 1, 1)
    q = acc >> right;  q += (acc & ((1 << right) - 1)) + (q & 1) > half        ties go to the even neighbour
    q = clamp((clamp(q, -512, 511) << left) + zero_point, qmin, qmax)      the inner clamp keeps the shift inside i32
    """
    shift = np.asarray(shift, np.int32)
    if np.any((shift < -LARGEST_LEFT_SHIFT) | (shift > LARGEST_RIGHT_SHIFT)):
        raise ValueError(f"shift {shift}: expected [{-LARGEST_LEFT_SHIFT}, {LARGEST_RIGHT_SHIFT}]")
    right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
    unit = np.int32(1) << right
    q = acc.astype(np.int32) >> right
    q = q + ((acc & (unit - 1)) + (q & 1) > np.maximum(unit >> 1, 1))
    q = np.clip(q, -(1 << LARGEST_LEFT_SHIFT), (1 << LARGEST_LEFT_SHIFT) - 1) << left
    return _saturate(q + np.asarray(zero_point, np.int32), qmin, qmax)


def add_params(s_a: float, s_b: float, s_out: float) -> tuple[int, int, int]:
    """Fixed point multipliers and the shift of a residual add: ``m / 2**shift`` approximates ``s / s_out``.

    Both multipliers are below 2**21, so that two operands of |q - z| <= 255 and the rounding constant stay inside i32;
    the shift is the largest in [1, 30] that allows it. With r the larger ratio s / s_out the sum is off by at most
    255 * r / 2**20 before rounding, hence by at most one after it for r <= 2048; equal scales are exact. A ratio below
    2**-31 becomes 0; one of 2**20 or more saturates (an operand off its zero point is then far outside the result).
    """
    a, b = float(s_a) / float(s_out), float(s_b) / float(s_out)
    for shift in range(LARGEST_RIGHT_SHIFT, 0, -1):
        m_a, m_b = round(math.ldexp(a, shift)), round(math.ldexp(b, shift))
        if max(m_a, m_b) < _ADD_MULTIPLIER_LIMIT:
            return m_a, m_b, shift
    return min(round(a * 2), _ADD_MULTIPLIER_LIMIT - 1), min(round(b * 2), _ADD_MULTIPLIER_LIMIT - 1), 1


def add(
    qa: Integers,
    za: int,
    qb: Integers,
    zb: int,
    params: tuple[int, int, int],
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Integers:
    """``clamp((((qa-za)*m_a + (qb-zb)*m_b + (1 << (shift-1))) >> shift) + zero_point)`` in i32: rounds half up."""
    m_a, m_b, shift = params
    total = (qa.astype(np.int32) - np.int32(za)) * np.int32(m_a) + (qb.astype(np.int32) - np.int32(zb)) * np.int32(m_b)
    return _saturate(((total + np.int32(1 << (shift - 1))) >> np.int32(shift)) + np.int32(zero_point), qmin, qmax)


def average_multiplier(count: float, s_in: ArrayLike, s_out: ArrayLike) -> NDArray[np.float32]:
    """What requantizes the sum of ``count`` centred values to their mean: ``s_in / (s_out * count)``, rounded once."""
    if count == 0:
        raise ValueError("average of 0 values: expected 1 or more")
    return multiplier(s_in, 1.0, np.asarray(s_out, np.float64) * count)


def _saturate(q: NDArray, qmin: int, qmax: int) -> Integers:
    # fmax and fmin drop NaN in favour of the bound, as arith.maxnumf does.
    return np.fmin(np.fmax(q, qmin), qmax).astype(np.int8 if qmin < 0 else np.uint8)
