"""Which candidate to measure next, given what has been measured: models, constraints and the worth of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm, rankdata

from quantune.search.cost_model import CostModel, CostModelOptions
from quantune.search.kriging import Kriging

Prediction = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation, each of shape (n,)."""

NOVELTY = 0.3
"""Standard deviation, in units of the target's, added for a candidate as far from all rows as the farthest one."""
PRIOR_WEIGHT = 10.0
"""How many observed rows the slope expected of the prior counts as."""
PAST_VARIANCE = 2.0
"""Of the scores of a model's configurations."""

POOR_ODDS = 0.25
"""Relative to the best odds of any candidate, where poor ones begin."""
HOPELESS = 1e6


@dataclass(frozen=True)
class Observations:
    """Measured rows.

    x: features (n, d); place: positions in the space (n, k), for distances; value: (n,), larger is better;
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


@dataclass(frozen=True)
class Past:
    """Rows measured on other models; x, place as in `Observations`.

    study: (n,), 0 or more, tells the models apart. score: (n,), on the scale of the values that are searched. merit:
    (n,), as in `Observations`; not looked at when the candidates have none.
    """

    x: np.ndarray
    place: np.ndarray
    study: np.ndarray
    score: np.ndarray
    merit: np.ndarray


def foresight(past: Past, candidates: Candidates) -> np.ndarray:
    """The score (n,) expected of each candidate of a model that has measured nothing yet."""
    none = past.x[:0], past.place[:0]
    nothing = Observations(*none, past.score[:0], *none, merit=past.score[:0])
    return _with_past(nothing, past, candidates)[0]


def acquisition(
    seen: Observations, candidates: Candidates, *, seed: int, options: CostModelOptions, past: Past | None = None
) -> np.ndarray:
    """The worth of measuring each candidate, shape (n,), larger first.

    What improvement over the best value that keeps all constraints is worth, times the probability of keeping them and
    of not failing. While nothing keeps the constraints, finding something that does is all. Candidates with poor odds
    come after all others: where little improvement is expected anywhere, the product alone would gamble on them again
    and again. past: rows of other models on the scale of seen.value.
    """
    novelty = _novelty(candidates.place, np.vstack([seen.place, seen.failed_place]))
    odds = np.ones(len(candidates.x))
    kept = np.ones(len(seen.value), dtype=bool)
    for offset, (_, limits) in enumerate(sorted(seen.constraints.items())):
        kept &= ~(limits > 0)
        odds *= _probability_kept(limits, seen, candidates, novelty, seed + 1 + offset, options)
    if len(seen.failed):
        odds *= _probability_measured(seen, candidates, seed, options)
    worth = odds * _improvement(seen, past, kept, candidates, novelty, seed, options) if kept.any() else odds
    return np.where(odds < POOR_ODDS * odds.max(), worth - HOPELESS, worth)


def _improvement(
    seen: Observations,
    past: Past | None,
    kept: np.ndarray,
    candidates: Candidates,
    novelty: np.ndarray,
    seed: int,
    options: CostModelOptions,
) -> np.ndarray:
    """With past studies the probability of an improvement, without any the improvement to be expected.

    Other models tell the scale of the values, so that the probability can be trusted; it needs fewer trials to the best
    than the expectation, which gambles on what is unlike anything measured. Without them the mean of what the trees
    and the Gaussian process expect: where they differ, both get their turn.
    """
    if past is not None:
        mean, std = _with_past(seen, past, candidates)
        z = (mean - float(seen.value[kept].max())) / std
        return norm.cdf(z) + 1e-9 * z  # z decides where the probability underflows
    # Ranks, because a quantized network that collapses is arbitrarily bad: squared error would be spent on losers.
    target = rankdata(seen.value) / len(seen.value)
    best = float(target[kept].max())
    worth = np.zeros(len(candidates.x))
    guides = _alone(target, seen, candidates, novelty, seed, options)
    for mean, std in guides:
        z = (mean - best) / std
        worth += std * (z * norm.cdf(z) + norm.pdf(z)) + 1e-9 * mean  # the mean decides where improvement underflows
    return worth / len(guides)


def _alone(
    target: np.ndarray,
    seen: Observations,
    candidates: Candidates,
    novelty: np.ndarray,
    seed: int,
    options: CostModelOptions,
) -> list[Prediction]:
    """What trees and a Gaussian process say; both start from the prior's line, if there is one."""
    merit = None if seen.constraints else (seen.merit, candidates.merit)
    trees = _predict(target, seen, candidates, novelty, seed, options, merit, sign=1.0)
    line, ahead, spread = _prior_line(target, len(candidates.x), merit, sign=1.0)
    k, study = seen.place.shape[1], np.full(len(target), -1)
    process = Kriging(seen.place, seen.x[:, k:], study, target - line, variance=spread**2)
    mean, std = process.predict(candidates.place, candidates.x[:, k:], -1)
    return [trees, (mean + ahead, std)]


def _with_past(seen: Observations, past: Past, candidates: Candidates) -> Prediction:
    """What a Gaussian process over the rows of all models says of the candidates."""
    x, place = np.vstack([past.x, seen.x]), np.vstack([past.place, seen.place])
    study = np.concatenate([past.study, np.full(len(seen.x), -1)])
    y, ahead = np.concatenate([past.score, seen.value]), np.zeros(len(candidates.x))
    if candidates.merit is not None and seen.merit is not None:
        merit = np.concatenate([past.merit, seen.merit])
        slope, center = _slope_within(merit, y, study), float(merit.mean())
        y, ahead = y - slope * (merit - center), slope * (candidates.merit - center)
    k = place.shape[1]  # the columns behind the configuration's are features
    process = Kriging(place, x[:, k:], study, y, variance=PAST_VARIANCE)
    mean, std = process.predict(candidates.place, candidates.x[:, k:], -1)
    return mean + ahead, std


def _slope_within(merit: np.ndarray, target: np.ndarray, study: np.ndarray) -> float:
    """The slope of target over merit that all models share, whatever their levels; drawn to the one of deviations."""
    x, y = merit.astype(float), target.astype(float)
    for number in np.unique(study):
        rows = study == number
        x[rows] -= x[rows].mean()
        y[rows] -= y[rows].mean()
    scale = float(x.std())
    if scale == 0.0:
        return 0.0
    return (float(x @ y) / scale + PRIOR_WEIGHT * float(y.std())) / (len(y) + PRIOR_WEIGHT) / scale


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
    line, line_ahead, spread = _prior_line(target, len(candidates.x), merit, sign=sign)
    mean, std = CostModel(seed=seed, options=options).fit(seen.x, target - line).predict(candidates.x)
    return mean + line_ahead, np.sqrt(std**2 + (NOVELTY * spread * novelty) ** 2 + (1e-3 * spread) ** 2)


def _prior_line(
    target: np.ndarray, count: int, merit: tuple[np.ndarray | None, np.ndarray | None] | None, *, sign: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """What the prior's merit says of the rows and of the candidates, 0 without a prior, and the target's deviation."""
    spread = float(target.std()) or 1.0
    known, ahead = merit or (None, None)
    if known is None or ahead is None:
        return np.zeros(len(target)), np.zeros(count), spread
    slope, offset = _line(known, target, sign * spread)
    return slope * known + offset, slope * ahead + offset, spread


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
