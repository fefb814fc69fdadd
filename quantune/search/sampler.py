"""An Optuna sampler that proposes the point of which an XGBoost ensemble and a Gaussian process expect most."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from quantune.search.acquisition import Candidates, Observations, Past, acquisition, foresight
from quantune.search.cost_model import CostModelOptions
from quantune.search.features import Encoder, FeatureHook, Params, enumerate_space, key_of, values_of
from quantune.search.transfer import PastStudy, rows_in, score

Prior = Callable[[Params], float]
_PROPOSAL = "quantune:proposal"

STARTUPS = 4
STARTUPS_WITH_PRIOR = 8
"""A prior beats a model of few rows, and one of other models' rows: noise predicted for this model is of this model."""


class XGBoostSampler(BaseSampler):
    """Proposes what the models expect most of, from everything the study knows.

    Boosted trees and a Gaussian process, as `quantune.search.acquisition` has them; where studies of other models tell
    of the space, the process alone, which is the better reader of many models' rows.

    The sampler keeps no state: its randomness derives from `seed` and the trial's number, and all else is read from the
    study. So a resumed study continues as if it had not stopped, and several workers may share one study (points that
    others are measuring count as seen, with the mean of the known values as their stand-in).

    Finite spaces are enumerated and no point is proposed twice while there is another, whether the first attempt
    finished, failed, was pruned or is running. Larger spaces are sampled. Constraints set by ``Trial.set_constraint``
    are modelled and kept; regions in which trials fail are avoided.

    seed: None draws one. n_startup_trials: measured before the model is asked; by default `STARTUPS_WITH_PRIOR` by
    `prior`, without one none if `past` tells of this space, else `STARTUPS` at random. independent_sampler: for
    parameters outside the common space. space: the whole search space; without it, it is inferred from finished trials,
    as Optuna does, so that the first proposals are independent draws. features: numbers appended to a point's encoding.
    prior: merit of a point before measuring it (larger is better), such as predicted noise; then only past studies that
    know it are used. past, reference: finished studies of other models and the f32 accuracy of this one (a fraction),
    for studies that maximize accuracy; both or none. identity: equal for points that measure the same, of which one is
    proposed. n_candidates: drawn in spaces too large to list.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        n_startup_trials: int | None = None,
        independent_sampler: BaseSampler | None = None,
        space: Mapping[str, BaseDistribution] | None = None,
        features: FeatureHook | None = None,
        prior: Prior | None = None,
        past: Sequence[PastStudy] = (),
        reference: float | None = None,
        identity: Callable[[Params], Hashable] | None = None,
        n_candidates: int = 512,
        model: CostModelOptions | None = None,
    ) -> None:
        if bool(past) != (reference is not None):
            raise ValueError("past studies need the reference of this one, and the other way round")
        if (n_startup_trials is not None and n_startup_trials < 0) or n_candidates < 1:
            raise ValueError("n_startup_trials must be 0 or more and n_candidates 1 or more")
        self._seed = int(np.random.SeedSequence().entropy % 2**63) if seed is None else seed  # type: ignore[operator]
        self._n_startup_trials = n_startup_trials
        self._independent_sampler = independent_sampler
        self._space = None if space is None else dict(space)
        self._features = features
        self._prior = prior
        self._past = tuple(past)
        self._reference = reference
        self._identity = identity
        self._n_candidates = n_candidates
        self._model = model or CostModelOptions()

    def reseed_rng(self) -> None:
        """Nothing to do for the sampler itself: draws already differ by trial number."""
        if self._independent_sampler is not None:
            self._independent_sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters proposed together: `space`, or those that all finished trials share; never constant ones."""
        _require_single_objective(study)
        space = self._space
        if space is None:
            space = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: dist for name, dist in space.items() if not dist.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a point of `search_space`; empty when the space is."""
        _require_single_objective(study)
        if not search_space:
            return {}
        rng = np.random.default_rng([self._seed % 2**63, trial.number])
        history = _History(study, trial, search_space)
        points = self._candidates(history, search_space, rng)
        past = self._known_before(study, search_space, points[0])
        if history.values and len(history.measured) >= self._startups(past):
            point = points[_argmax(self._worth(points, history, search_space, past), rng)]
        else:
            point = points[self._startup_choice(points, search_space, past, rng)]
        # Parameters reach the storage one by one as they are suggested; other workers must see the whole point at once.
        study._storage.set_trial_system_attr(trial._trial_id, _PROPOSAL, point)
        return point

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter at random (or by the independent sampler)."""
        _require_single_objective(study)
        sampler = self._independent_sampler
        if sampler is None:  # a fresh generator per draw: no state to lose between processes
            words = [self._seed % 2**63, trial.number, zlib.crc32(param_name.encode())]
            sampler = RandomSampler(seed=int(np.random.SeedSequence(words).generate_state(1)[0]))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _startups(self, past: Past | None) -> int:
        if self._n_startup_trials is not None:
            return self._n_startup_trials
        if self._prior is not None:
            return STARTUPS_WITH_PRIOR
        return STARTUPS if past is None else 0

    def _startup_choice(
        self,
        points: Sequence[Params],
        space: Mapping[str, BaseDistribution],
        past: Past | None,
        rng: np.random.Generator,
    ) -> int:
        merit = self._merit(points)
        if merit is not None:
            return _argmax(merit, rng)
        if past is None:
            return int(rng.integers(len(points)))
        candidates = self._encoded(points, self._encoder(space))
        return _argmax(foresight(past, candidates), rng)

    def _candidates(
        self, history: _History, space: Mapping[str, BaseDistribution], rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        points = enumerate_space(space)
        if points is None:
            points = self._draw(history, space, rng)
        visited = {self._same(p, space) for p in history.visited}
        fresh = [p for p in points if self._same(p, space) not in visited]
        return fresh or points

    def _same(self, params: Params, space: Mapping[str, BaseDistribution]) -> Hashable:
        return key_of(params, space) if self._identity is None else self._identity({**self._constants, **params})

    def _draw(
        self, history: _History, space: Mapping[str, BaseDistribution], rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Random points, a third of them near the best ones: one parameter changed, numbers moved a little."""
        near = history.best(5)
        points: list[dict[str, Any]] = []
        for i in range(self._n_candidates):
            if not near or i % 3:
                points.append({name: _draw_value(dist, rng) for name, dist in space.items()})
                continue
            point = dict(near[int(rng.integers(len(near)))])
            name = list(space)[int(rng.integers(len(space)))]
            point[name] = _draw_value(space[name], rng, around=point[name])
            points.append(point)
        return points

    def _worth(
        self,
        points: Sequence[Params],
        history: _History,
        space: Mapping[str, BaseDistribution],
        past: Past | None,
    ) -> np.ndarray:
        encode = self._encoder(space)
        rows = [*history.measured, *history.running]
        lie = [float(np.mean(history.values))] * len(history.running)
        value = np.asarray([*history.values, *lie])
        seen = Observations(
            x=encode(rows),
            place=encode.place(rows),
            value=value if past is None or self._reference is None else score(value, self._reference),
            failed=encode(history.failed),
            failed_place=encode.place(history.failed),
            constraints={n: np.asarray([*c, *([np.nan] * len(lie))]) for n, c in history.constraints.items()},
            merit=self._merit(rows),
        )
        seed = int(np.random.SeedSequence([self._seed % 2**63, history.number]).generate_state(1)[0])
        return acquisition(seen, self._encoded(points, encode), seed=seed, options=self._model, past=past)

    def _known_before(self, study: Study, space: Mapping[str, BaseDistribution], example: Params) -> Past | None:
        """The rows of past studies that are points of the space (`example` is one); None without any."""
        if study.direction == StudyDirection.MINIMIZE or self._reference is None:
            return None
        encode, whole = self._encoder(space), {**(self._space or {}), **space}
        width = encode([example]).shape[1] - encode.known([example]).shape[1]
        parts = []
        for number, known in enumerate(self._past):
            kept = rows_in(known, whole)
            if not kept or (self._prior is not None and not known.merits):
                continue
            params = list(kept.values())
            extra = np.full((len(kept), width), np.nan, dtype=np.float32)
            if known.features and len(known.features[0]) == width:
                extra = np.asarray([known.features[i] for i in kept], dtype=np.float32)
            values = score(np.asarray([known.rows[i][1] for i in kept]), known.reference)
            x = np.hstack([encode.known(params), extra])
            merit = np.asarray([known.merits[i] for i in kept] if self._prior is not None else [np.nan] * len(kept))
            parts.append((x, encode.place(params), np.full(len(kept), number), values, merit))
        return Past(*(np.concatenate(p) for p in zip(*parts, strict=True))) if parts else None

    def _encoder(self, space: Mapping[str, BaseDistribution]) -> Encoder:
        return Encoder(space, self._features, self._constants)

    def _encoded(self, points: Sequence[Params], encode: Encoder) -> Candidates:
        return Candidates(encode(points), encode.place(points), self._merit(points))

    def _merit(self, points: Sequence[Params]) -> np.ndarray | None:
        if self._prior is None:
            return None
        constants = self._constants
        return np.asarray([self._prior({**constants, **p}) for p in points], dtype=np.float64)

    @property
    def _constants(self) -> dict[str, Any]:
        """Parameters with one possible value: not proposed, but hooks expect whole configurations."""
        return {n: values_of(d, 1)[0] for n, d in (self._space or {}).items() if d.single()}  # type: ignore[index]


class _History:
    """What the study's other trials say about a space. Values are turned so that larger is better."""

    def __init__(self, study: Study, current: FrozenTrial, space: Mapping[str, BaseDistribution]) -> None:
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        self.number = current.number
        self.visited: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []
        self.values: list[float] = []
        self.running: list[dict[str, Any]] = []
        self.constraints: dict[str, list[float]] = {}
        failed: dict[tuple[float, ...], dict[str, Any]] = {}
        limits: list[Mapping[str, float]] = []
        done: set[tuple[float, ...]] = set()
        for trial in study.get_trials(deepcopy=False):
            attrs = trial.system_attrs
            known = {**attrs.get("fixed_params", {}), **attrs.get(_PROPOSAL, {}), **trial.params}
            if trial.number == current.number or not _covers(known, space):
                continue
            params = {name: known[name] for name in space}
            key = key_of(params, space)
            self.visited.append(params)
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                done.add(key)
                value = trial.value if trial.state == TrialState.COMPLETE else _last_intermediate(trial)
                if value is not None and not np.isnan(value):
                    self.measured.append(params)
                    self.values.append(sign * value)
                    limits.append(trial.constraints)
            elif trial.state == TrialState.FAIL:
                failed[key] = params
            else:
                self.running.append(params)
        self.values = _finite(self.values)
        self.failed = [params for key, params in failed.items() if key not in done]
        for name in sorted({n for c in limits for n in c}):
            self.constraints[name] = [c.get(name, np.nan) for c in limits]

    def best(self, count: int) -> list[dict[str, Any]]:
        """The measured points of largest value."""
        return [self.measured[i] for i in np.argsort(self.values)[::-1][:count]]


def _covers(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> bool:
    try:
        return all(dist._contains(dist.to_internal_repr(params[name])) for name, dist in space.items())
    except (KeyError, ValueError, TypeError):
        return False


def _last_intermediate(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def _finite(values: list[float]) -> list[float]:
    """Infinite values stand just outside the finite ones, so that they keep their order and can be learned from."""
    finite = [v for v in values if np.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    margin = (high - low) or 1.0
    return [v if np.isfinite(v) else (high + margin if v > 0 else low - margin) for v in values]


def _draw_value(dist: BaseDistribution, rng: np.random.Generator, around: Any = None) -> Any:
    """A random value; with `around`, a number within a tenth of the range of it (any other choice for categories)."""
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[int(rng.integers(len(dist.choices)))]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    low, high = float(dist.low), float(dist.high)
    scale, back = (np.log, np.exp) if dist.log else (float, float)
    low, high = float(scale(low)), float(scale(high))
    if around is None:
        value = float(rng.uniform(low, high))
    else:
        value = float(np.clip(rng.normal(float(scale(around)), 0.1 * (high - low)), low, high))
    value = float(back(value))
    step = dist.step
    if step is not None and not dist.log:
        value = dist.low + round((value - dist.low) / step) * step
    value = min(max(value, dist.low), dist.high)
    return round(value) if isinstance(dist, IntDistribution) else float(value)


def _argmax(scores: np.ndarray, rng: np.random.Generator) -> int:
    """The index of the largest score; equal ones are drawn from, so that the order of candidates decides nothing."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    return int(rng.choice(np.flatnonzero(scores == scores.max())))


def _require_single_objective(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError("XGBoostSampler optimizes one value; give further goals as constraints")
