"""What replays say: trials to targets, regret, means over models, and how sure they are."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

TARGETS = (0.0, 0.001, 0.005)
"""Accuracy below the best of the table that counts as reached, as a fraction."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Replay:
    """The runs of one method on one model.

    trials: (seeds, targets), trials until a value within the target of the best. regret: (seeds, points), the distance
    (in points of accuracy) of the best value so far from the best of the table, after each trial.
    """

    trials: np.ndarray
    regret: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """Area under the regret curve of each seed, in points of accuracy times trials."""
        return self.regret.sum(axis=1)


def distinct(order: Iterator[int], identity: Sequence[str]) -> Iterator[int]:
    """The points of an order without those that compute the same as an earlier one: a search does not measure these."""
    seen: set[str] = set()
    for point in order:
        if identity[point] not in seen:
            seen.add(identity[point])
            yield point


def follow(order: Iterator[int], accuracy: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Measure points until the best value: trials to each of TARGETS, and the regret (points) after every trial."""
    best, regret = float(accuracy.max()), np.zeros(len(accuracy))
    reached: list[int | None] = [None] * len(TARGETS)
    found = -np.inf
    for count, point in enumerate(order, start=1):
        found = max(found, float(accuracy[point]))
        regret[count - 1] = 100 * (best - found)
        for i, target in enumerate(TARGETS):
            if reached[i] is None and found >= best - target - 1e-9:
                reached[i] = count
        if found == best:
            break
    return [len(accuracy) if r is None else r for r in reached], regret


def interval_over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean (normal approximation); the model is fixed, only the seed varies."""
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def geometric_mean(replays: Sequence[Replay], target: int) -> dict[str, float | list[float]]:
    """Geometric mean over models of the mean trials, with two 95 % bootstrap intervals.

    seeds: the models are these, runs are drawn again. models: the models are drawn again, which says how far the mean
    would move with other models of the kind; with a handful of them that is rough.
    """
    rng = np.random.default_rng(0)
    columns = [r.trials[:, target].astype(float) for r in replays]
    means = np.asarray([c.mean() for c in columns])
    drawn = np.stack([c[rng.integers(len(c), size=(RESAMPLES, len(c)))].mean(axis=1) for c in columns])
    over_seeds = np.exp(np.log(drawn).mean(axis=0))
    over_models = np.exp(np.log(means)[rng.integers(len(means), size=(RESAMPLES, len(means)))].mean(axis=1))
    return {
        "mean": statistics.geometric_mean(means.tolist()),
        "seeds_95": np.quantile(over_seeds, [0.025, 0.975]).tolist(),
        "models_95": np.quantile(over_models, [0.025, 0.975]).tolist(),
    }


def summary(replay: Replay) -> dict[str, object]:
    """One model and method as JSON: trials, area, and the regret curve up to the last trial that has any."""
    last = int(np.flatnonzero(replay.regret.max(axis=0) > 0).max(initial=-1)) + 2
    curve = replay.regret[:, :last]
    names = [format(100 * t, "g") for t in TARGETS]
    return {
        "trials": {n: interval_over_seeds(replay.trials[:, i]) for i, n in enumerate(names)},
        "trials_by_seed": replay.trials.tolist(),
        "area": interval_over_seeds(replay.area),
        "regret_mean": curve.mean(axis=0).round(4).tolist(),
        "regret_5_95": np.quantile(curve, [0.05, 0.95], axis=0).round(4).tolist(),
    }
