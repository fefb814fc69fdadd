"""Search algorithms by name: how the next configuration is proposed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from quantune.errors import UsageError, hint
from quantune.search.features import FeatureHook, Params, enumerate_space, key_of
from quantune.search.sampler import Prior, XGBoostSampler
from quantune.search.storage import Direction, make_study
from quantune.search.transfer import PastStudy

SAMPLERS: dict[str, Callable[[int], BaseSampler] | None] = {
    "xgboost": None,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "genetic": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=8),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
}
"""Name -> a sampler of a seed; None for our own, which hears more. grid and random draw where no list is possible."""
_REPEATS, _REPEATS_AT_LARGE = 20, 500


class Strategy:
    """Proposes points under one of `SAMPLERS`.

    grid and random walk the points not yet visited, in order and shuffled: Optuna's own samplers of these names cannot
    be resumed by ask-and-tell (grid) and repeat points (random). genetic and tpe do repeat points, which are answered
    from memory; after `_REPEATS` repetitions an unvisited point is drawn at random instead, so that a search always
    gets on.
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
        self.points = enumerate_space(space)
        if name == "grid" and self.points is None:
            raise UsageError("sampler 'grid': the space has too many points to list; use xgboost, tpe or random")

    def propose(
        self,
        direction: Direction,
        known: Sequence[FrozenTrial],
        unvisited: Sequence[Params] | None,
        reference: float | None = None,
    ) -> Proposal | None:
        """The next point, from the seed and the known trials alone; None when nothing new is found.

        known: the measured and the failed ones in the order in which they were proposed, then those that run. Neither
        the numbers they have in their study nor other trials there make a difference, so a search that was interrupted
        goes on as if it had not been. unvisited: the points not among them; None for a space too large to list.
        reference: the f32 accuracy where accuracy is the goal; without it past studies are not used.
        """
        if unvisited is not None and not unvisited:
            return None
        if self._name in ("grid", "random") and unvisited is not None:
            return Proposal(dict(unvisited[0 if self._name == "grid" else self._draw(len(known), len(unvisited))]), {})
        return self._sampled(direction, known, unvisited, reference)

    def _sampled(
        self,
        direction: Direction,
        known: Sequence[FrozenTrial],
        unvisited: Sequence[Params] | None,
        reference: float | None,
    ) -> Proposal | None:
        """What an Optuna sampler proposes in a study in memory that holds the known trials and nothing else."""
        memory = InMemoryStorage()
        make_study(memory, "proposals", direction)
        sampler = self._sampler(len(known), reference)
        study = optuna.load_study(study_name="proposals", storage=memory, sampler=sampler)
        study.add_trials(known)
        values = {self._same(t.params): t.value if t.state == TrialState.COMPLETE else None for t in known}
        for _ in range(_REPEATS if unvisited is not None else _REPEATS_AT_LARGE):
            trial = study.ask(self._space)
            if self._same(trial.params) not in values:
                return Proposal(dict(trial.params), study.get_trials(deepcopy=False)[-1].system_attrs)
            value = values[self._same(trial.params)]  # it hears again what it knew, and thinks anew
            study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        if unvisited is None:
            return None
        return Proposal(dict(unvisited[self._draw(len(known), len(unvisited))]), {})

    def _sampler(self, known: int, reference: float | None) -> BaseSampler:
        make = SAMPLERS[self._name]
        if make is not None:
            return make((self._seed + 1_000_003 * known) % 2**32)
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

    def _same(self, params: Params) -> Hashable:
        return key_of(params, self._space) if self._identity is None else self._identity(params)

    def _draw(self, known: int, count: int) -> int:
        return int(np.random.default_rng([self._seed, known]).integers(count))


@dataclass(frozen=True)
class Proposal:
    """A point to measure. marks: what the sampler wants to find again in the trial's system attributes."""

    params: Mapping[str, Any]
    marks: Mapping[str, Any]


def check(name: str, seed: int) -> None:
    """Raise UsageError for an unknown sampler, or a seed that is not a whole number."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler '{name}': expected one of {', '.join(SAMPLERS)}{hint(name, SAMPLERS)}")
    if not isinstance(seed, int):
        raise UsageError(f"seed {seed!r}: expected a whole number")


def describe_space(space: Mapping[str, BaseDistribution]) -> str:
    """A text that differs between spaces, for the fingerprint of a study."""
    return "; ".join(f"{name}: {optuna.distributions.distribution_to_json(dist)}" for name, dist in space.items())
