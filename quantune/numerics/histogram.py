"""A streaming histogram of fixed memory that depends on the values alone, not on their order or on how they arrive.

Bin k holds the values in [k * 2**e, (k + 1) * 2**e), and the range always includes 0. The exponent e is the smallest
one (not below ``SMALLEST_EXPONENT``) at which the bins from the smallest to the largest value number at most ``BINS``.
floor(x / 2**(e + 1)) equals floor(floor(x / 2**e) / 2), so growing the range means adding pairs of bins, exactly: no
value is read again, and the result is the histogram that all values at once would have given. Scaling all values by a
power of two scales the bins and leaves the counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Values of one sign have 2048 to 4096 bins, each of two equal sides 1024 to 2048, as entropy calibration wants."""

SMALLEST_EXPONENT = -120
"""Smaller steps would overflow the f32 product; all values below share a bin."""

_BLOCK = 1 << 18


class Histogram:
    """Counts of f32 values in at most ``BINS`` bins, with the exact minimum, maximum and number of values.

    Exact zeros are counted apart (``zeros``) and not in ``counts``: quantization keeps them exactly, and behind a ReLU
    they would outweigh the rest.
    """

    def __init__(self) -> None:
        self.count = 0
        self.zeros = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.exponent = SMALLEST_EXPONENT
        self.counts: NDArray[np.int64] = np.zeros(1, np.int64)
        self._first = 0

    @property
    def width(self) -> float:
        """The width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The bins' borders, one more than there are bins."""
        return (self._first + np.arange(len(self.counts) + 1, dtype=np.float64)) * self.width

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return (self._first + np.arange(len(self.counts), dtype=np.float64) + 0.5) * self.width

    def add(self, values: NDArray[np.floating]) -> None:
        """Count all elements of ``values`` (taken as f32). Raises ValueError, and counts none, if one is not finite."""
        flat = np.asarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{np.count_nonzero(~np.isfinite(flat))} of {flat.size} values are NaN or infinite")
        self._cover(low, high)
        size = len(self.counts)
        # In f32 the product is exact unless it underflows, which steps above 1 can cause.
        inverse = np.float32(math.ldexp(1.0, -self.exponent)) if self.exponent <= 0 else 1.0 / self.width
        zero = -self._first
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            index = block * inverse if self.exponent <= 0 else block.astype(np.float64) * inverse
            if zero:  # else none is negative, and the conversion to integers rounds down
                np.floor(index, out=index)
                index += zero  # whole numbers far below 2**24: exact
            self.counts += np.bincount(index.astype(np.intp), minlength=size)
            zeros = int(np.count_nonzero(block == 0))
            self.counts[zero] -= zeros
            self.zeros += zeros
        self.count += flat.size

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``: the result is that of counting both sets of values here."""
        if other.count == 0:
            return
        self._cover(other.minimum, other.maximum)
        counts, first = _coarser(other.counts, other._first, self.exponent - other.exponent)
        before = first - self._first
        self.counts[before : before + len(counts)] += counts
        self.count += other.count
        self.zeros += other.zeros

    def copy(self) -> Histogram:
        """An independent histogram of the same values."""
        return Histogram.from_arrays({name: array.copy() for name, array in self.to_arrays().items()})

    def to_arrays(self) -> dict[str, NDArray]:
        """The state as three plain arrays; ``from_arrays`` restores it."""
        return {
            "counts": self.counts,
            "range": np.array([self.minimum, self.maximum], np.float64),
            "layout": np.array([self.exponent, self._first, self.zeros], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Histogram:
        """The histogram that ``to_arrays`` described. Raises ValueError where the arrays contradict each other."""
        missing = {"counts", "range", "layout"} - set(arrays)
        if missing:
            raise ValueError(f"histogram without {', '.join(sorted(missing))}")
        counts, limits, layout = (np.asarray(arrays[name]) for name in ("counts", "range", "layout"))
        if counts.dtype != np.int64 or limits.dtype != np.float64 or layout.dtype != np.int64:
            raise ValueError(
                f"histogram of types {counts.dtype}, {limits.dtype}, {layout.dtype}: expected i64, f64, i64"
            )
        if counts.ndim != 1 or limits.shape != (2,) or layout.shape != (3,):
            raise ValueError(f"histogram of shapes {counts.shape}, {limits.shape}, {layout.shape}")
        result = cls()
        exponent, first, zeros = (int(value) for value in layout)
        if np.isfinite(limits).all() and limits[0] <= limits[1]:
            result._cover(float(limits[0]), float(limits[1]))
        expected = (result.exponent, result._first, len(result.counts))
        if (exponent, first, len(counts)) != expected or zeros < 0 or counts.min() < 0:
            raise ValueError(
                f"histogram: layout {exponent, first, len(counts)} and counts do not fit the range {limits}"
            )
        result.counts, result.zeros = counts.copy(), zeros
        result.count = zeros + int(counts.sum())
        if (result.count == 0) != (result.minimum > result.maximum):
            raise ValueError(f"histogram: {result.count} values in the range {limits}")
        return result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Histogram(count={self.count}, zeros={self.zeros}, range=[{self.minimum}, {self.maximum}])"

    def _cover(self, low: float, high: float) -> None:
        """Widen the range to include [low, high] and 0, adding pairs of bins until it fits."""
        if self.minimum <= low and high <= self.maximum:
            return
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        bottom, top = min(self.minimum, 0.0), max(self.maximum, 0.0)
        exponent = _exponent(bottom, top)
        counts, first = _coarser(self.counts, self._first, exponent - self.exponent)
        new_first = math.floor(math.ldexp(bottom, -exponent))
        length = math.floor(math.ldexp(top, -exponent)) - new_first + 1
        before = first - new_first
        self.counts = np.pad(counts, (before, length - len(counts) - before))
        self.exponent, self._first = exponent, new_first


def _coarser(counts: NDArray[np.int64], first: int, times: int) -> tuple[NDArray[np.int64], int]:
    """Bins of twice the width, ``times`` over, and the number of the first of them."""
    for _ in range(times):
        if not counts.any():
            return np.zeros(1, np.int64), 0
        counts = np.pad(counts, (first % 2, (first + len(counts)) % 2))
        counts, first = counts.reshape(-1, 2).sum(axis=1), first // 2
    return counts, first


def _exponent(bottom: float, top: float) -> int:
    """The smallest exponent at which [bottom, top] spans at most ``BINS`` bins."""
    if bottom == top:
        return SMALLEST_EXPONENT
    exponent = max(math.frexp(top - bottom)[1] - BINS.bit_length(), SMALLEST_EXPONENT)
    while math.floor(math.ldexp(top, -exponent)) - math.floor(math.ldexp(bottom, -exponent)) >= BINS:
        exponent += 1
    return exponent
