"""Formats whose integers are fitted to a layer's weight: zoom, residual and k-means.

The rows of a layer share one table, so each is first divided by its size: by its largest magnitude for zoom and
k-means, by the mean magnitude for residual. What is fitted to all rows then is rounded to 127ths of its largest level,
by at most 0.4 % of it. With one scale a tensor, zoom and residual are AutoQNN's up to that rounding:

    zoom       d = (max - min) / 2**b;  levels min + d/2 + k d
    residual   r = w;  b times: a_i = mean of |r|, r -= a_i sign(r);  levels ±a_1 ± a_2 …

Residual's levels of the least squared error alternate between the nearest level of each weight and the least squares
magnitudes a (LQ-Nets, Zhang et al., ECCV 2018). K-means (Deep Compression, Han et al., ICLR 2016) parts 512 even bins
of the weights into the groups of the least squared error, by dynamic programming, and moves the means by Lloyd's
iteration. Its table is that of the least squared error under every rule; mse and power fit the scales too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.numerics.formats.base import Fitted, Rows, within_s8

_ROUNDS = 8
_LLOYD_ROUNDS = 20
_BINS = 512
_SAMPLE = 1 << 16
"""Weights that residual's least squares look at: every so many of them."""


@dataclass(frozen=True)
class Shared(Fitted):
    """A format with one table fitted to all rows."""

    def own(self, w: Rows, costs: Rows, *, best: bool) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """See Fitted."""
        size = self.sizes(w)
        levels, unit = within_s8(
            self.levels(w / np.where(size > 0, size, 1)[:, None], costs * size[:, None] ** 2, best)
        )
        return levels, size * unit

    def sizes(self, w: Rows) -> NDArray[np.float64]:
        """What each row is divided by, 0 for a row of zeros."""
        return np.abs(w).max(axis=1)

    def levels(self, w: Rows, costs: Rows, best: bool) -> NDArray[np.float64]:
        """The real levels for rows of one size."""
        raise NotImplementedError


class Zoom(Shared):
    """Even steps from the least weight to the largest, half a step inside."""

    def levels(self, w: Rows, costs: Rows, best: bool) -> NDArray[np.float64]:
        """See Shared."""
        low, high = float(w.min()), float(w.max())
        step = (high - low) / (1 << self.bits)
        return np.asarray(low + step * (np.arange(1 << self.bits) + 0.5), np.float64)


class Residual(Shared):
    """Sums of magnitudes, each with either sign."""

    def sizes(self, w: Rows) -> NDArray[np.float64]:
        """See Shared."""
        return np.asarray(np.abs(w).mean(axis=1), np.float64)

    def levels(self, w: Rows, costs: Rows, best: bool) -> NDArray[np.float64]:
        """See Shared."""
        rest, found = w.copy(), []
        for _ in range(self.bits):
            found.append(float(np.abs(rest).mean()))
            rest -= found[-1] * np.sign(rest)
        magnitudes = np.array(found)
        if best:
            stride = -(-w.size // _SAMPLE)
            magnitudes = _least_squares(w.reshape(-1)[::stride], costs.reshape(-1)[::stride], magnitudes)
        return _signs(self.bits) @ magnitudes


class KMeans(Shared):
    """The levels that are the means of the weights nearest to them."""

    def levels(self, w: Rows, costs: Rows, best: bool) -> NDArray[np.float64]:
        """See Shared."""
        order = np.argsort(w, axis=None, kind="stable")
        values, weights = w.reshape(-1)[order], costs.reshape(-1)[order]
        return _lloyd(values, weights, _grouped(values, weights, 1 << self.bits))


def _sums(values: NDArray[np.float64], weights: NDArray[np.float64], ends: NDArray[np.integer]) -> list[NDArray]:
    """Sums of weights, weights * values and weights * values**2 over all values before each end."""
    return [np.concatenate([[0.0], np.cumsum(weights * values**k)])[ends] for k in range(3)]


def _grouped(values: NDArray[np.float64], weights: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """The means of the groups of neighbouring bins whose squared errors add up to the least: at most so many."""
    edges = np.linspace(values[0], values[-1], _BINS + 1)[1:-1]
    ends = np.unique([0, *np.searchsorted(values, edges), len(values)])
    mass, moment, square = (sums[None, :] - sums[:, None] for sums in _sums(values, weights, ends))
    cost = np.where(mass > 0, square - moment**2 / np.where(mass > 0, mass, 1), 0.0)  # [from, to]
    cost[np.tril_indices(len(ends), -1)] = np.inf
    least, choices = cost[0], []
    for _ in range(groups - 1):
        through = least[:, None] + cost
        choices.append(through.argmin(axis=0))
        least = through.min(axis=0)
    parts = [len(ends) - 1]
    for choice in reversed(choices):
        parts.append(int(choice[parts[-1]]))
    low, high = np.array([0, *parts[:0:-1]]), np.array(parts[::-1])
    inside = mass[low, high] > 0
    return np.unique(moment[low, high][inside] / mass[low, high][inside]) if inside.any() else values[:1]


def _lloyd(
    values: NDArray[np.float64], weights: NDArray[np.float64], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Levels moved to the weighted means of the ascending values nearest to them, until they rest."""
    for _ in range(_LLOYD_ROUNDS):
        ends = np.array([0, *np.searchsorted(values, (levels[:-1] + levels[1:]) / 2), len(values)])
        mass, moment, _ = (np.diff(sums) for sums in _sums(values, weights, ends))
        moved = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), levels)
        if np.array_equal(moved, levels):
            break
        levels = np.sort(moved)
    return levels


def _signs(bits: int) -> NDArray[np.float64]:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=bits)))


def _least_squares(
    w: NDArray[np.float64], costs: NDArray[np.float64], magnitudes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The magnitudes after some rounds of nearest levels and least squares, the best ones seen."""
    signs = _signs(len(magnitudes))
    best, least = magnitudes, np.inf
    for _ in range(_ROUNDS):
        levels = signs @ magnitudes
        order = np.argsort(levels, kind="stable")
        ranked = levels[order]
        nearest = order[np.searchsorted((ranked[:-1] + ranked[1:]) / 2, w)]
        cost = float((costs * (w - levels[nearest]) ** 2).sum())
        if cost >= least:
            break
        best, least = magnitudes, cost
        chosen = signs[nearest]
        found, *_ = np.linalg.lstsq(chosen.T @ (chosen * costs[:, None]), chosen.T @ (costs * w), rcond=None)
        magnitudes = np.abs(found)
    return best


ALL = (
    *(Zoom(f"w{bits}z", bits) for bits in range(2, 8)),
    *(Residual(f"w{bits}r", bits) for bits in range(2, 7)),
    *(KMeans(f"w{bits}k", bits) for bits in range(1, 7)),
)
