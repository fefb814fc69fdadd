"""The scales of weights at the least weighted squared error, for any table of integers.

For each row the least over s of ``sum_i p_i (w_i - s q_i(s))**2``; q is the integer of the table nearest to w / s.

The search walks down from the scale at which the largest weight gets the largest integer, in steps of 1/16 to 1/512 of
an octave, finer for rows of few weights (a depthwise channel has nine, and may lie on a grid almost exactly). A row
leaves it as soon as what its saturated weights alone cost exceeds the best cost so far: that part only grows as the
scale falls. The best candidate is then refined: for its integers the least squares scale is
``sum p w q / sum p q**2``, which has other integers, and so on. Powers of two have one candidate an octave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.numerics import affine

_FEWEST_STEPS, _MOST_STEPS = 16, 512
_STEPS_OF_ALL = 1 << 14
"""Steps per octave times weights of a row: few weights have scales that suit them by chance."""
_OCTAVES = 4
_REFINEMENTS = 4


@dataclass(frozen=True, eq=False)
class Grid:
    """The integers of a weight: all of [-largest, largest], or levels, ascending, of which none is beyond that."""

    largest: int
    levels: NDArray[np.int8] | None = None

    def integers(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """The integers that ``affine.quantize`` gives for weights in steps of their scale."""
        if self.levels is not None:
            return affine.nearest(steps, self.levels).astype(np.float32)
        found = np.rint(steps)
        return np.clip(found, -self.largest, self.largest, out=found)


def search(
    w: NDArray[np.float64],
    costs: NDArray[np.float64],
    scale: NDArray[np.float32],
    grid: Grid,
    *,
    power2: bool,
    above: int = 0,
    below: int = _OCTAVES,
) -> NDArray[np.float32]:
    """For each row of weights [rows, n] the ratio to its scale that costs least.

    scale: at which the largest weight gets the largest integer. above, below: octaves to try on each side of it.
    """
    rows = _Rows((w / scale[:, None]).astype(np.float32), costs.astype(np.float32), grid)
    best = np.ones(len(w), np.float32)
    cost, _ = rows.cost(best)
    alive, part = np.arange(len(w)), rows
    steps = 1 if power2 else _steps(w.shape[1], grid.largest)
    for k in (*range(-above * steps, 0), *range(1, below * steps + 1)):
        ratio = np.full(len(alive), 2.0 ** (-k / steps), np.float32)
        found, saturated = part.cost(ratio)
        better = found < cost[alive]
        best[alive[better]], cost[alive[better]] = ratio[better], found[better]
        open_still = (saturated < cost[alive]) | (k < 0)
        alive, part = alive[open_still], part.only(open_still)
        if not len(alive):
            break
    for _ in range(0 if power2 else _REFINEMENTS):
        ratio = rows.least_squares(best)
        found, _ = rows.cost(ratio)
        better = found < cost
        best, cost = np.where(better, ratio, best), np.where(better, found, cost)
    return best


def _steps(weights: int, largest: int) -> int:
    """Candidates per octave: no more than the integers of a row change within one."""
    wanted = min(_STEPS_OF_ALL // weights, weights * largest)
    return min(max(wanted, _FEWEST_STEPS), _MOST_STEPS)


def costs_of(
    w: NDArray[np.float64], costs: NDArray[np.float64], scale: NDArray[np.float32], grid: Grid
) -> NDArray[np.float64]:
    """Of each row in f64, for the integers that ``affine.quantize`` gives."""
    step = scale[:, None]
    with np.errstate(over="ignore"):  # an overflow is an infinity, which saturates
        q = grid.integers(w.astype(np.float32) / step)
    return ((w - q * step.astype(np.float64)) ** 2 * costs).sum(axis=1)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weights in steps of their widest scale, and what an error of each costs."""

    steps: NDArray[np.float32]
    costs: NDArray[np.float32]
    grid: Grid

    def only(self, which: NDArray[np.bool_]) -> _Rows:
        return self if which.all() else _Rows(self.steps[which], self.costs[which], self.grid)

    def integers(self, ratio: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.grid.integers(self.steps / ratio[:, None])

    def cost(self, ratio: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each row: in all, and of what saturates alone."""
        error = self.integers(ratio)
        error *= -ratio[:, None]
        error += self.steps
        beyond = np.abs(self.steps)
        beyond -= self.grid.largest * ratio[:, None]
        np.maximum(beyond, 0, out=beyond)
        return self._sum(error), self._sum(beyond)

    def _sum(self, error: NDArray[np.float32]) -> NDArray[np.float64]:
        error *= error
        error *= self.costs
        return error.sum(axis=1, dtype=np.float64)

    def least_squares(self, ratio: NDArray[np.float32]) -> NDArray[np.float32]:
        """The best scale of the integers that a scale gives; the same one where there is none above 0."""
        q = self.integers(ratio)
        above = (self.steps * q * self.costs).sum(axis=1, dtype=np.float64)
        below = (q * q * self.costs).sum(axis=1, dtype=np.float64)
        return np.where(above > 0, above / np.where(below > 0, below, 1), ratio).astype(np.float32)
