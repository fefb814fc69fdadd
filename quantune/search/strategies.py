"""Search algorithms by name: how the next configuration is proposed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial

from quantune.errors import UsageError
from quantune.search.features import FeatureHook, Params, enumerate_space
from quantune.search.sampler import Prior, XGBoostSampler
from quantune.search.transfer import PastStudy

NAMES = ("xgboost", "random", "grid", "genetic", "tpe")
_REPEATS = 20


class Strategy:
    """Asks a study for trials under one of `NAMES`.

    grid and random walk the points not yet visited, in order and shuffled: Optuna's own samplers of these names cannot
    be resumed by ask-and-tell (grid) and repeat points (random). genetic and tpe do repeat points; after `_REPEATS`
    repetitions in a row an unvisited point is drawn at random instead, so that a search always gets on.
    """

    def __init__(
        self,
        name: str,
        space: Mapping[str, BaseDistribution],
        *,
        seed: int,
        features: FeatureHook | None = None,
        prior: Prior | None = None,
        past: Sequence[PastStudy] = (),
        identity: Callable[[Params], Hashable] | None = None,
    ) -> None:
        check(name, seed)
        self._name = name
        self._space = dict(space)
        self._seed = seed
        self._features = features
        self._prior = prior
        self._past = tuple(past)
        self._identity = identity
        self._repeats = 0
        self.points = enumerate_space(space)
        if name == "grid" and self.points is None:
            raise UsageError("sampler 'grid': the space has too many points to list; use xgboost, tpe or random")

    def sampler(self, finished: int, reference: float | None = None) -> BaseSampler:
        """The Optuna sampler behind the name; `finished` trials exist already, so that a resumed study draws anew.

        reference: the f32 accuracy where accuracy is the goal; without it past studies are not used.
        """
        seed = (self._seed + 1_000_003 * finished) % 2**32
        if self._name == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        if self._name == "genetic":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=8)
        if self._name == "xgboost":
            past = self._past if reference is not None else ()
            return XGBoostSampler(
                seed=self._seed,
                space=self._space,
                features=self._features,
                prior=self._prior,
                past=past,
                reference=reference if past else None,
                identity=self._identity,
            )
        return optuna.samplers.RandomSampler(seed=seed)

    def ask(self, study: Study, unvisited: Sequence[Mapping[str, Any]] | None) -> Trial:
        """The next trial: one that waits in the study's queue, else a proposal. unvisited: None for endless spaces."""
        waiting = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        if not waiting and unvisited and (self._name in ("grid", "random") or self._repeats >= _REPEATS):
            study.enqueue_trial(dict(unvisited[self._index(study, len(unvisited))]))
        return study.ask(self._space)

    def seen(self, *, repeated: bool) -> None:
        """Take note of whether the last proposal had been measured before."""
        self._repeats = self._repeats + 1 if repeated else 0

    def _index(self, study: Study, count: int) -> int:
        if self._name == "grid":
            return 0
        number = len(study.get_trials(deepcopy=False))
        return int(np.random.default_rng([self._seed, number]).integers(count))


def check(name: str, seed: int) -> None:
    """Raise UsageError for an unknown sampler, or a seed that is not a whole number."""
    if name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"sampler '{name}': expected one of {', '.join(NAMES)}{hint}")
    if not isinstance(seed, int):
        raise UsageError(f"seed {seed!r}: expected a whole number")


def describe_space(space: Mapping[str, BaseDistribution]) -> str:
    """A text that differs between spaces, for the fingerprint of a study."""
    return "; ".join(f"{name}: {optuna.distributions.distribution_to_json(dist)}" for name, dist in space.items())
