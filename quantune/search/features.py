"""Configurations as numbers: Optuna distributions to feature columns, and the list of a finite space's points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Params = Mapping[str, Any]
Space = Mapping[str, BaseDistribution]
FeatureHook = Callable[[Params], Sequence[float]]

CROSSES = (("calib", "clip"),)
"""Pairs of parameters whose combinations get a column of their own: a range clipped on one image is another thing."""

LOG_RATIO = 100.0
"""A range spanning at least this factor is encoded by its logarithm (calibration sizes 1 to 10000)."""


@dataclass(frozen=True)
class Encoder:
    """Turns parameters of `space` into rows of numbers.

    Categorical choices become one-hot columns, unless all are numbers; numbers become one column in [0, 1], by
    logarithm when the range is wide. `extra` appends what else is known before measuring (model size, predicted noise,
    …); it is given the row and the `constants`, parameters that are not part of the space because they cannot vary.
    """

    space: Space
    extra: FeatureHook | None = None
    constants: Params = field(default_factory=dict)

    def __call__(self, rows: Sequence[Params]) -> np.ndarray:
        """Encode; the result is float32 of shape (len(rows), columns). A non-finite extra feature counts as missing."""
        own = self.known(rows)
        if self.extra is None or not rows:
            return own
        extra = np.asarray([list(self.extra({**self.constants, **row})) for row in rows], dtype=np.float32)
        extra[~np.isfinite(extra)] = np.nan
        return np.hstack([own, extra])

    def known(self, rows: Sequence[Params]) -> np.ndarray:
        """The columns that need no `extra`: the configuration's, and one for each combination of `CROSSES`."""
        columns = []
        for first, second in CROSSES:
            one, two = self.space.get(first), self.space.get(second)
            if not isinstance(one, CategoricalDistribution) or not isinstance(two, CategoricalDistribution):
                continue
            pairs = itertools.product(one.choices, two.choices)
            columns.extend([float((r[first], r[second]) == pair) for r in rows] for pair in pairs)
        crossed = np.asarray(columns, dtype=np.float32).reshape(len(columns), len(rows)).T
        return np.hstack([self.configuration(rows), crossed])

    def configuration(self, rows: Sequence[Params]) -> np.ndarray:
        """The columns of the configuration alone, all in [0, 1]: distances between rows are meaningful."""
        columns = [c for name, dist in self.space.items() for c in _columns(dist, [row[name] for row in rows])]
        return np.asarray(columns, dtype=np.float32).reshape(len(columns), len(rows)).T

    def place(self, rows: Sequence[Params]) -> np.ndarray:
        """Positions of rows, shape (len(rows), columns): Manhattan distance counts parameters that differ.

        A number counts by how far it moves within its range, another choice counts 1.
        """
        columns: list[list[float]] = []
        for name, dist in self.space.items():
            own = _columns(dist, [row[name] for row in rows])
            weight = 1.0 if len(own) == 1 else 0.5  # another choice changes two columns
            columns.extend([weight * v for v in column] for column in own)
        return np.asarray(columns, dtype=np.float64).reshape(len(columns), len(rows)).T


def _columns(dist: BaseDistribution, values: list[Any]) -> list[list[float]]:
    if isinstance(dist, CategoricalDistribution):
        choices = dist.choices
        if len(choices) > 2 and all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices):
            numbers = [float(c) for c in choices if c is not None]
            return [_scaled([float(v) for v in values], min(numbers), max(numbers), log=False)]
        return [[float(v == c and type(v) is type(c)) for v in values] for c in choices]
    if isinstance(dist, FloatDistribution | IntDistribution):
        return [_scaled([float(v) for v in values], float(dist.low), float(dist.high), log=dist.log)]
    raise TypeError(f"unknown distribution {dist!r}")


def _scaled(values: list[float], low: float, high: float, *, log: bool) -> list[float]:
    if high <= low:
        return [0.0] * len(values)
    if log or (low > 0 and high / low >= LOG_RATIO):
        return [math.log(max(v, low) / low) / math.log(high / low) for v in values]
    return [(v - low) / (high - low) for v in values]


def values_of(dist: BaseDistribution, limit: int) -> list[Any] | None:
    """All values of a distribution in order, or None when it has more than `limit` or is continuous."""
    if isinstance(dist, CategoricalDistribution):
        return list(dist.choices) if len(dist.choices) <= limit else None
    if isinstance(dist, IntDistribution):
        step = 1 if dist.log else dist.step
        return list(range(dist.low, dist.high + 1, step)) if (dist.high - dist.low) // step < limit else None
    if isinstance(dist, FloatDistribution):
        if dist.low == dist.high:
            return [dist.low]
        if dist.step is None or round((dist.high - dist.low) / dist.step) >= limit:
            return None
        return [min(dist.low + i * dist.step, dist.high) for i in range(round((dist.high - dist.low) / dist.step) + 1)]
    raise TypeError(f"unknown distribution {dist!r}")


def enumerate_space(space: Space, limit: int = 4096) -> list[dict[str, Any]] | None:
    """Every point of a finite space in a fixed order, or None when there are more than `limit` (or infinitely many)."""
    choices: list[list[Any]] = []
    for dist in space.values():
        values = values_of(dist, limit)
        if values is None:
            return None
        choices.append(values)
    if math.prod(len(c) for c in choices) > limit:
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*choices)]


def key_of(params: Params, space: Space) -> tuple[float, ...]:
    """A hashable identity of a point: Optuna's internal representation of each parameter (1, 1.0 and True differ)."""
    return tuple(float(dist.to_internal_repr(params[name])) for name, dist in space.items())
