"""What a format is: at most 2**bits integers that a layer's weights may be, and how their scales are fitted.

    w = s t[code]        t: a table of integers within s8, the same for the whole weight; s: one a tensor or channel

Kernels compute with the integers as with any others; only what a file stores is narrower. A format has a rule of its
own for its scales (and, where it fits one, for its table); the rules mse and power of quantune.numerics.weight_ranges
instead find the scales of the least weighted squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.numerics.affine import LARGEST_SCALE, SMALLEST_SCALE, QuantParams
from quantune.numerics.scale_search import Grid, costs_of, search
from quantune.numerics.schemes import Weights
from quantune.numerics.weight_ranges import costs_by_rule, fit_weight, rows_of

LARGEST = 127
"""Tables are symmetric within s8: kernels have nothing to gain from -128."""

Rows = NDArray[np.float64]
"""Weights, or what an error of each costs: one row for each scale."""


@dataclass(frozen=True)
class Format:
    """How the weights of a layer are stored: the name in ``bits=``, the stored bits, and `params`."""

    name: str
    bits: int

    def params(
        self,
        w: NDArray[np.floating],
        granularity: str,
        how: Weights,
        rule: str = "max",
        power: NDArray[np.floating] | None = None,
    ) -> QuantParams:
        """The parameters of a layer's weight [outputs, inputs, ...]; see ``fit_weight`` for rule, power and errors.

        rule: max means the format's own.
        """
        raise NotImplementedError

    def table(self) -> NDArray[np.int8] | None:
        """The integers, ascending, where they do not depend on the weights."""
        return None


@dataclass(frozen=True)
class Uniform(Format):
    """All integers of [-(2**(bits-1) - 1), 2**(bits-1) - 1]; its own rule: the largest weight gets the largest."""

    def params(
        self,
        w: NDArray[np.floating],
        granularity: str,
        how: Weights,
        rule: str = "max",
        power: NDArray[np.floating] | None = None,
    ) -> QuantParams:
        """See Format."""
        return fit_weight(w, granularity, how, self.bits, rule, power)

    def table(self) -> NDArray[np.int8]:
        """See Format."""
        largest = (1 << (self.bits - 1)) - 1
        return np.arange(-largest, largest + 1).astype(np.int8)


@dataclass(frozen=True)
class Fitted(Format):
    """A format of which subclasses say the table and the scales by its own rule; the rest is common."""

    @property
    def octaves(self) -> bool:
        """Whether scales are powers of two under every scheme."""
        return False

    def own(self, w: Rows, costs: Rows, *, best: bool) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """A table, ascending, and the scale of each row, which may be 0, by the format's own rule.

        costs: 1 everywhere under that rule. best: whether the table is to be that of the least cost.
        """
        raise NotImplementedError

    def params(
        self,
        w: NDArray[np.floating],
        granularity: str,
        how: Weights,
        rule: str = "max",
        power: NDArray[np.floating] | None = None,
    ) -> QuantParams:
        """See Format."""
        how.params(w, granularity)  # refuses what no format takes
        rows = rows_of(w, granularity)
        costs = np.ones_like(rows) if rule == "max" else costs_by_rule(w, granularity, rule, power)
        levels, scale = self.own(rows, costs, best=rule != "max")
        levels, power2 = np.asarray(levels, np.int8), how.power2 or self.octaves
        grid = Grid(max(int(np.abs(levels.astype(int)).max()), 1), levels)
        scale = usable(scale, power2=power2)
        if rule != "max":
            scale = _least(rows, costs, scale, grid, power2=power2)
        axis = None if granularity == "tensor" else 0
        scale = scale[0] if axis is None else scale
        return QuantParams(scale, np.zeros(scale.shape, np.int32), -grid.largest, grid.largest, axis, levels)


def usable(scale: NDArray[np.floating], *, power2: bool) -> NDArray[np.float32]:
    """Scales as f32 that are normal; the powers of two not below them if asked. 0 becomes the smallest there is."""
    kept = np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)
    if power2:
        mantissa, exponent = np.frexp(kept)
        kept = np.ldexp(1.0, np.clip(exponent - (mantissa == 0.5), -126, 119))
    return kept.astype(np.float32)


def _least(w: Rows, costs: Rows, own: NDArray[np.float32], grid: Grid, *, power2: bool) -> NDArray[np.float32]:
    """Of each row the scale of least cost that a search finds, or its own."""
    assert grid.levels is not None
    counted = np.where(costs > 0, w, 0)  # what costs nothing may saturate
    widest = usable(np.abs(counted).max(axis=1) / grid.largest, power2=power2)
    # Without a 0 a row of nearly equal weights may lie best on the smallest integers.
    smallest = int(np.abs(grid.levels.astype(int)).min())
    above = 0 if smallest == 0 else min(int(np.log2(grid.largest / smallest)), 2)
    found = widest * search(counted, costs, widest, grid, power2=power2, above=above, below=8)
    found = np.maximum(found.astype(np.float32), np.float32(SMALLEST_SCALE))
    worse = costs_of(w, costs, found, grid) > costs_of(w, costs, own, grid)
    return np.where(worse, own, found).astype(np.float32)


def within_s8(levels: Sequence[float] | NDArray[np.floating]) -> tuple[NDArray[np.int8], float]:
    """Real levels as ascending integers of which the largest is 127, and what 1 of them is worth."""
    real = np.asarray(levels, np.float64)
    unit = float(np.abs(real).max()) / LARGEST or 1.0
    return np.unique(np.rint(real / unit).astype(np.int8)), unit
