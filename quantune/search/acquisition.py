"""Which candidate to measure next, given what has been measured: models, constraints and expected improvement."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm, rankdata

from quantune.search.cost_model import CostModel, CostModelOptions

NOVELTY = 0.3
"""Standard deviation, in units of the target's, added for a candidate as far from all rows as the farthest one."""
PRIOR_WEIGHT = 10.0
"""How many observed rows the slope expected of the prior counts as."""

POOR_ODDS = 0.1
"""Relative to the best odds of any candidate, where poor ones begin."""
HOPELESS = 1e6


@dataclass(frozen=True)
class Observations:
    """Measured rows.

    x: features (n, d); place: the configuration columns alone, for distances; value: (n,), larger is better;
    constraints: name to (n,), kept when 0 or less, NaN where unknown; failed, failed_place: rows (m, d) that could not
    be measured; merit: (n,), what the prior said of each row, or None without a prior.
    """

    x: np.ndarray
    place: np.ndarray
    value: np.ndarray
    failed: np.ndarray
    failed_place: np.ndarray
    constraints: dict[str, np.ndarray] = field(default_factory=dict)
    merit: np.ndarray | None = None


@dataclass(frozen=True)
class Candidates:
    """Points that may be measured next; the columns mean what they mean in `Observations`."""

    x: np.ndarray
    place: np.ndarray
    merit: np.ndarray | None = None


def acquisition(seen: Observations, candidates: Candidates, *, seed: int, options: CostModelOptions) -> np.ndarray:
    """The worth of measuring each candidate, shape (n,), larger first.

    Expected improvement over the best value that keeps all constraints, times the probability of keeping them and of
    not failing. While nothing keeps the constraints, finding something that does is all. Candidates with poor odds come
    after all others: where little improvement is expected anywhere, the product alone would gamble on them again and
    again.
    """
    novelty = _novelty(candidates.place, np.vstack([seen.place, seen.failed_place]))
    odds = np.ones(len(candidates.x))
    kept = np.ones(len(seen.value), dtype=bool)
    for offset, (_, limits) in enumerate(sorted(seen.constraints.items())):
        kept &= ~(limits > 0)
        odds *= _probability_kept(limits, seen, candidates, novelty, seed + 1 + offset, options)
    if len(seen.failed):
        odds *= _probability_measured(seen, candidates, seed, options)
    worth = odds * _expected_improvement(seen, kept, candidates, novelty, seed, options) if kept.any() else odds
    return np.where(odds < POOR_ODDS * odds.max(), worth - HOPELESS, worth)


def _expected_improvement(
    seen: Observations,
    kept: np.ndarray,
    candidates: Candidates,
    novelty: np.ndarray,
    seed: int,
    options: CostModelOptions,
) -> np.ndarray:
    # Ranks, because a quantized network that collapses is arbitrarily bad: squared error would be spent on the losers.
    target = rankdata(seen.value) / len(seen.value)
    merit = None if seen.constraints else (seen.merit, candidates.merit)
    mean, std = _predict(target, seen, candidates, novelty, seed, options, merit, sign=1.0)
    best = float(target[kept].max())
    z = (mean - best) / std
    return std * (z * norm.cdf(z) + norm.pdf(z)) + 1e-9 * mean  # the mean decides where the improvement underflows


def _probability_kept(
    limits: np.ndarray,
    seen: Observations,
    candidates: Candidates,
    novelty: np.ndarray,
    seed: int,
    options: CostModelOptions,
) -> np.ndarray:
    known = np.isfinite(limits)
    if not known.any():
        return np.ones(len(candidates.x))
    part = Observations(
        seen.x[known],
        seen.place[known],
        seen.value[known],
        seen.failed,
        seen.failed_place,
        merit=None if seen.merit is None else seen.merit[known],
    )
    # The sign matters near 0 and little far from it: compress the tails on the scale of the typical distance.
    scale = float(np.median(np.abs(limits[known]))) or float(np.max(np.abs(limits[known]))) or 1.0
    target = np.arcsinh(limits[known] / scale)
    mean, std = _predict(target, part, candidates, novelty, seed, options, (part.merit, candidates.merit), sign=-1.0)
    return norm.cdf(-mean / std)


def _probability_measured(
    seen: Observations, candidates: Candidates, seed: int, options: CostModelOptions
) -> np.ndarray:
    x = np.vstack([seen.x, seen.failed])
    y = np.concatenate([np.ones(len(seen.x)), np.zeros(len(seen.failed))])
    mean, _ = CostModel(seed=seed + 101, options=options).fit(x, y).predict(candidates.x)
    return np.clip(mean, 0.02, 1.0)


def _predict(
    target: np.ndarray,
    seen: Observations,
    candidates: Candidates,
    novelty: np.ndarray,
    seed: int,
    options: CostModelOptions,
    merit: tuple[np.ndarray | None, np.ndarray | None] | None,
    *,
    sign: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the target: a line through the prior's merit (if any) plus trees on what it leaves."""
    spread = float(target.std()) or 1.0
    known, ahead = merit or (None, None)
    line, line_ahead = np.zeros(len(target)), np.zeros(len(candidates.x))
    if known is not None and ahead is not None:
        slope, offset = _line(known, target, sign * spread)
        line, line_ahead = slope * known + offset, slope * ahead + offset
    mean, std = CostModel(seed=seed, options=options).fit(seen.x, target - line).predict(candidates.x)
    return mean + line_ahead, np.sqrt(std**2 + (NOVELTY * spread * novelty) ** 2 + (1e-3 * spread) ** 2)


def _line(merit: np.ndarray, target: np.ndarray, expected: float) -> tuple[float, float]:
    """Ridge line target = slope * merit + offset whose slope is drawn to `expected` per deviation of merit."""
    scale = float(merit.std())
    if scale == 0.0:
        return expected, float(target.mean() - expected * merit.mean())
    x, y = (merit - merit.mean()) / scale, target - target.mean()
    slope = (float(x @ y) + PRIOR_WEIGHT * expected) / (len(y) + PRIOR_WEIGHT) / scale
    return slope, float(target.mean() - slope * merit.mean())


def _novelty(candidates: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Distance (Manhattan, over the configuration) to the nearest row, divided by the largest such distance."""
    if len(seen) == 0 or candidates.shape[1] == 0:
        return np.ones(len(candidates))
    nearest = np.full(len(candidates), np.inf)
    for row in seen:
        nearest = np.minimum(nearest, np.abs(candidates - row).sum(axis=1))
    return nearest / max(float(nearest.max()), 1e-12)
