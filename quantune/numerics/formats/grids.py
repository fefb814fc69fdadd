"""Formats whose integers are given: half-step, binary, ternary, quaternary, fixed, clip, power-of-two, small floats.

Those of AutoQNN (Gong et al., JCST 39(2), 2024; eight candidates of its search) follow what its PyTorch port computes:

| | integers | scale by its own rule |
|---|---|---|
| binary | ±1 | mean of the magnitudes |
| ternary | −1, 0, 1 | d = 1.4 mean of the magnitudes; the mean of those beyond d/2 |
| quaternary | ±1, ±3 | d = 0.9957 deviations on the grid ±1/2, ±3/2; the least squares scale of what that gives |
| fixed | [−2^(b−1), 2^(b−1) − 1] | 2^(floor(log2 of the largest) − (b − 2)) |
| clip | odd, to ±(2^b − 1) | d/2, d = λ_b deviations: the least squared error of a normal distribution |
| power of two | ±1, ±4, ±8, … (±1/2, ±2, ±4, … times 2) | d/2, d = λ_b deviations |

Here every weight gets the nearest of its integers. The port parts ternary at d/2 and powers of two by the logarithm
instead, which costs more; it does not cut fixed at the largest integer of b bits; and it has no quaternary class, only
the name: that row is the half-step grid of two bits. Half-step is clip's grid with the largest weight on the largest
integer. Small floats are those of the OCP microscaling formats: e2m1 has two bits of exponent and one of mantissa.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.numerics.formats.base import Fitted, Rows, within_s8

CLIP = (1.0, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569)
"""λ by bits; half a step either side of 0."""
POWER_OF_TWO = (1.0, 0.9, 0.4, 0.03)


@dataclass(frozen=True)
class Given(Fitted):
    """A format of given integers; its own rule: the largest weight gets the largest of them.

    integers: ascending.
    """

    integers: tuple[int, ...] = ()

    def own(self, w: Rows, costs: Rows, *, best: bool) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """See Fitted."""
        return np.array(self.integers), self.scales(w)

    def scales(self, w: Rows) -> NDArray[np.float64]:
        """The scale of each row by the format's own rule."""
        return np.abs(w).max(axis=1) / max(map(abs, self.integers))

    def table(self) -> NDArray[np.int8]:
        """See Format."""
        return np.array(self.integers, np.int8)


class Binary(Given):
    """The mean of the magnitudes."""

    def scales(self, w: Rows) -> NDArray[np.float64]:
        """See Given."""
        return np.abs(w).mean(axis=1)


class Ternary(Given):
    """The mean of the magnitudes beyond 0.7 of their mean."""

    def scales(self, w: Rows) -> NDArray[np.float64]:
        """See Given."""
        magnitude = np.abs(w)
        beyond = magnitude > 0.7 * magnitude.mean(axis=1, keepdims=True)
        return (magnitude * beyond).sum(axis=1) / np.maximum(beyond.sum(axis=1), 1)


class Quaternary(Given):
    """Least squares for the integers that clip's step gives."""

    def scales(self, w: Rows) -> NDArray[np.float64]:
        """See Given."""
        step = CLIP[1] * _deviation(w)[:, None]
        q = np.where(np.abs(w) < step, 1.0, 3.0)
        return (np.abs(w) * q).sum(axis=1) / (q * q).sum(axis=1)


class Fixed(Given):
    """A power of two: as many bits before the point as the largest weight needs."""

    @property
    def octaves(self) -> bool:
        """See Fitted."""
        return True

    def scales(self, w: Rows) -> NDArray[np.float64]:
        """See Given."""
        _, exponent = np.frexp(np.abs(w).max(axis=1))
        return np.ldexp(1.0, np.maximum(exponent - 1 - (self.bits - 2), -126))


@dataclass(frozen=True)
class Deviations(Given):
    """So many standard deviations of a row."""

    factor: float = 1.0

    def scales(self, w: Rows) -> NDArray[np.float64]:
        """See Given."""
        return self.factor * _deviation(w)


def _deviation(w: Rows) -> NDArray[np.float64]:
    """As torch.std; of weights that are all the same their magnitude."""
    found = w.std(axis=1, ddof=1) if w.shape[1] > 1 else np.zeros(len(w))
    return np.where(found > 0, found, np.abs(w[:, 0]))


def half_step(bits: int) -> tuple[int, ...]:
    """The odd integers to ±(2**bits - 1)."""
    return tuple(range(1 - (1 << bits), 1 << bits, 2))


def both_signs(magnitudes: list[int]) -> tuple[int, ...]:
    """Magnitudes and their negatives, ascending."""
    return tuple(sorted({*magnitudes, *(-m for m in magnitudes)}))


def small_float(exponent: int, mantissa: int) -> list[float]:
    """The magnitudes of a float without infinities in units of its least: subnormals, then octaves."""
    ones = 1 << mantissa
    return [*range(ones), *((ones + m) << e for e in range((1 << exponent) - 1) for m in range(ones))]


def small_float_in_s8(exponent: int, mantissa: int) -> tuple[int, ...]:
    """A small float's integers: exact where its largest fits into s8, rounded to 127ths of it elsewhere."""
    magnitudes = small_float(exponent, mantissa)
    if magnitudes[-1] > 127:
        magnitudes = list(within_s8(magnitudes)[0])
    return both_signs([int(m) for m in magnitudes])


def power_of_two(bits: int) -> tuple[tuple[int, ...], float]:
    """The integers of the power-of-two format, and its λ for the scale of 1."""
    real = [0.5, *(2.0**e for e in range(1, 1 << (bits - 1)))]
    if bits < 4:
        return both_signs([int(2 * level) for level in real]), POWER_OF_TWO[bits - 1] / 2
    levels, unit = within_s8(real)  # ±1/2 to ±128: the least becomes 0 or 1
    return both_signs([max(int(level), 1) for level in levels]), POWER_OF_TWO[bits - 1] * unit


ALL = (
    Binary("w1", 1, (-1, 1)),
    Ternary("w2t", 2, (-1, 0, 1)),
    Quaternary("w2q", 2, half_step(2)),
    *(Given(f"w{bits}h", bits, half_step(bits)) for bits in range(2, 8)),
    *(Fixed(f"w{bits}f", bits, tuple(range(-(1 << (bits - 1)), 1 << (bits - 1)))) for bits in range(2, 8)),
    *(Deviations(f"w{bits}c", bits, half_step(bits), CLIP[bits - 1] / 2) for bits in range(1, 8)),
    *(Deviations(f"w{bits}p", bits, *power_of_two(bits)) for bits in range(2, 5)),
    Given("e2m1", 4, small_float_in_s8(2, 1)),
    Given("e2m3", 6, small_float_in_s8(2, 3)),
    Given("e3m2", 6, small_float_in_s8(3, 2)),
)
