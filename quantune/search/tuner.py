"""The search loop: ask for a configuration, have it measured, tell the study; stop on a budget and choose.

What the study models. Its value is the metric itself (accuracy, milliseconds or bytes) and, when the objective is
latency or size, the accuracy bound is an Optuna constraint ("accuracy_drop", kept when 0 or less). So the sampler
learns accuracy and latency each by its own model and multiplies expected improvement by the probability of keeping the
bound, rather than one penalised number that has a cliff in it; Optuna's TPE and genetic samplers honour the same
constraint.

What is never lost. Scores are written into the trial before the trial is closed; a trial that was running when its
process died is measured again by the next session, at most `history.MAX_LOST` times, and everything finished is kept.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import Trial, TrialState

from quantune import space as level1
from quantune.config import QuantConfig
from quantune.errors import EnvironmentFailure, QuantuneError, UsageError
from quantune.process.owner import lease
from quantune.search.evaluate import Objective, Score, TrialFailed
from quantune.search.features import FeatureHook
from quantune.search.history import (
    DamagedTrial,
    fail,
    finish,
    float_baseline,
    lose,
    read_trials,
    settle,
    to_retry,
    without_retried,
)
from quantune.search.progress import Budget, TuningEvent
from quantune.search.result import (
    TuningResult,
    TuningTrial,
    choose,
    pareto_front,
    ranked,
    score_of,
    to_time,
    with_latencies,
)
from quantune.search.sampler import Prior
from quantune.search.stopping import Floor, floor_of
from quantune.search.store import DATABASE, Store, quarantine
from quantune.search.strategies import Strategy, describe_space
from quantune.search.transfer import PastStudy

logger = logging.getLogger(__name__)

Evaluate = Callable[[QuantConfig], Score]
Retime = Callable[[list[QuantConfig]], Mapping[QuantConfig, float]]

FLOAT_BASELINES = (QuantConfig(precision="f32"),)
MAX_FAILURES_IN_A_ROW = 10
FORMAT = "2"


def tune(
    evaluate: Evaluate,
    folder: Path,
    *,
    objective: Objective | None = None,
    fingerprint: Mapping[str, str] | None = None,
    sampler: str = "xgboost",
    seed: int = 0,
    max_trials: int | None = None,
    time_budget_s: float | None = None,
    baselines: Sequence[QuantConfig] = FLOAT_BASELINES,
    first: Sequence[QuantConfig] = (QuantConfig(),),
    features: FeatureHook | None = None,
    prior: Prior | None = None,
    past: Sequence[PastStudy] = (),
    retime: Retime | None = None,
    set_floor: Callable[[Floor | None], None] | None = None,
    finalists: int = 4,
    on_event: Callable[[TuningEvent], None] | None = None,
    space: Mapping[str, BaseDistribution] | None = None,
    to_config: Callable[[Mapping[str, Any]], QuantConfig] = level1.from_params,
    identity: Callable[[QuantConfig], str] = str,
    storage: str | None = None,
) -> TuningResult:
    """Search `space` for the best configuration under `objective`; the study lives in `folder` and is continued.

    evaluate: measures one configuration; any exception but UsageError and EnvironmentFailure fails that trial only.
    fingerprint: what must not change between sessions (model, data, target, flags). baselines: measured before the
    search, f32 among them; in a search for accuracy the others after it, and only if nothing quantized keeps the bound.
    first: measured before the sampler is asked. past: studies of other models, which guide the search for accuracy.
    retime: re-measures the finalists' latencies (ms) side by side. set_floor: hears before each trial what it has to
    reach; a score of fewer images than f32 has was stopped early: the sampler learns from it, and it is never the
    answer. storage: an Optuna storage URL instead of the folder's own file; then several machines may search together.
    identity: equal for configurations that compute the same, of which one is measured. A KeyboardInterrupt ends the
    search and is returned as ``interrupted=True``. Raises UsageError when the folder belongs to another search, is in
    use, or holds a damaged study; QuantuneError when f32 cannot be measured.
    """
    objective = objective or Objective()
    space = dict(level1.distributions() if space is None else space)
    strategy = Strategy(
        sampler, space, seed=seed, features=features, prior=prior, past=past,
        identity=lambda params: identity(to_config(params)),
    )  # fmt: skip
    belongs_to = {
        **(fingerprint or {}),
        "objective": f"{objective.metric}, largest drop {objective.max_drop}",
        "space": describe_space(space),
        "format": FORMAT,
    }
    with Store(Path(folder), belongs_to, objective.direction, url=storage) as store:
        budget = Budget(max_trials, time_budget_s)
        loop = _Loop(store, evaluate, objective, strategy, to_config, identity, budget, on_event, set_floor)
        try:
            return loop.run(list(baselines), list(first), retime, finalists)
        except DamagedTrial as error:
            path = store.folder / DATABASE
            store.close()
            if storage is not None:
                raise UsageError(f"storage {storage}: {error}") from error
            raise quarantine(path, str(error)) from error


class _Loop:
    """One session of a search over an open store."""

    def __init__(
        self,
        store: Store,
        evaluate: Evaluate,
        objective: Objective,
        strategy: Strategy,
        to_config: Callable[[Mapping[str, Any]], QuantConfig],
        identity: Callable[[QuantConfig], str],
        budget: Budget,
        on_event: Callable[[TuningEvent], None] | None,
        set_floor: Callable[[Floor | None], None] | None = None,
    ) -> None:
        self._set_floor, self._identity = set_floor, identity
        self._store, self._evaluate, self._objective = store, evaluate, objective
        self._strategy, self._to_config, self._budget = strategy, to_config, budget
        self._on_event = on_event
        self._points = None if strategy.points is None else {to_config(p): p for p in strategy.points}
        self._trials: list[TuningTrial] = []
        self._first: list[QuantConfig] = []
        self._baselines: dict[str, TuningTrial] = {}
        self._baseline: Score | None = None

    def run(
        self, baselines: list[QuantConfig], first: list[QuantConfig], retime: Retime | None, finalists: int
    ) -> TuningResult:
        interrupted, self._first = False, first
        try:
            self._resume()
            # Where `choose` takes a float artifact only if nothing quantized keeps the bound, f32 will do until then.
            later = [c for c in baselines if c.precision != "f32" and self._objective.metric == "accuracy"]
            for config in (c for c in baselines if c not in later):
                self._measure_baseline(config)
            self._enqueue_first(first)
            stopped = self._search()
            best, _ = choose(self._trials, self._baselines, self._objective)
            if best is None or best.config.is_float:
                self._measure_late(later)
            if retime is not None:
                self._retime(retime, finalists)
        except KeyboardInterrupt:
            interrupted, stopped = True, "interrupted"
        best, best_quantized = choose(self._trials, self._baselines, self._objective)
        return TuningResult(
            objective=self._objective,
            trials=tuple(self._trials),
            baselines=dict(self._baselines),
            best=best,
            best_quantized=best_quantized,
            pareto=pareto_front(ranked([*self._baselines.values(), *self._trials], self._objective, self._baseline)),
            stopped=stopped,
            interrupted=interrupted,
            elapsed_s=self._elapsed(),
            space_size=self._size,
            folder=self._store.folder,
        )

    # Resuming

    def _resume(self) -> None:
        """Settle what earlier sessions left open, read what they measured and queue what they lost."""
        settle(self._store, self._objective)
        self._baseline = float_baseline(self._store)
        found = [t for t in read_trials(self._store.baselines) if t.state != "lost"]
        self._baselines = {t.config.precision: t for t in sorted(found, key=lambda t: t.state == "complete")}
        self._refresh()
        pending = self._pending()
        for config in to_retry(read_trials(self._store.search)):
            if config not in pending:
                self._enqueue(config)

    def _refresh(self) -> None:
        """Read the study again: other workers may have measured meanwhile."""
        self._trials = without_retried(read_trials(self._store.search))

    # Measuring

    def _measure_baseline(self, config: QuantConfig) -> None:
        if not config.is_float:
            raise UsageError(f"baseline {config}: expected precision=f32 or precision=f16")
        known = self._baselines.get(config.precision)
        required = config.precision == "f32"
        if known is None or (required and known.state == "failed"):
            study = self._store.baselines
            known = self._measure(study, study.ask({}), config, is_baseline=True)
            self._baselines[config.precision] = known
            self._emit("finished" if known.score else "failed", known, config, is_baseline=True)
        if not required:
            return
        if known.score is None:
            raise TrialFailed(f"the f32 artifact cannot be measured, there is nothing to compare with: {known.reason}")
        self._baseline = known.score

    def _measure_late(self, baselines: list[QuantConfig]) -> None:
        if baselines and self._set_floor is not None:
            self._set_floor(None)  # what may be the answer is measured in full
        for config in baselines:
            self._measure_baseline(config)

    def _measure(self, study: Study, trial: Trial, config: QuantConfig, *, is_baseline: bool = False) -> TuningTrial:
        """Evaluate one configuration and close its trial, whatever happens."""
        begin = time.monotonic()
        try:
            trial.set_user_attr("config", str(config))
            trial.set_user_attr("lease", lease())
            self._emit("started", None, config, is_baseline=is_baseline)
            begin = time.monotonic()
            score = self._evaluate(config)
            self._objective.value(score)  # refuses a missing latency before anything is stored
            seconds = time.monotonic() - begin
            trial.set_user_attr("seconds", seconds)
            trial.set_user_attr("score", score.to_json())
            finish(study, trial, score, self._objective, None if is_baseline else self._baseline)
            return TuningTrial(trial.number, config, "complete", score, seconds=seconds)
        except (UsageError, EnvironmentFailure) as error:  # every other trial would end the same way
            lose(study, trial, str(error))
            raise
        except Exception as error:
            if not isinstance(error, QuantuneError):
                logger.warning("evaluating %s failed", config, exc_info=True)
            seconds, reason = time.monotonic() - begin, _reason(error)
            trial.set_user_attr("seconds", seconds)
            fail(study, trial, reason)
            return TuningTrial(trial.number, config, "failed", None, reason, seconds)
        except BaseException:
            lose(study, trial, "interrupted")
            raise

    # Searching

    def _search(self) -> str:
        """Measure until a budget is spent or nothing is left; the reason, in words."""
        study = self._store.search
        reference = None
        if self._objective.metric == "accuracy" and self._baseline is not None:
            reference = self._baseline.accuracy
        study.sampler = self._strategy.sampler(len(study.get_trials(deepcopy=False)), reference)
        failures = 0
        while True:
            self._refresh()
            reason = self._spent()
            if reason:
                return reason
            unvisited = self._unvisited()
            if unvisited is not None and not unvisited and not self._waiting():
                return "every configuration was measured"
            trial = self._strategy.ask(study, unvisited)
            config = self._to_config(trial.params)
            known = next((t for t in self._trials if self._identity(t.config) == self._identity(config)), None)
            self._strategy.seen(repeated=known is not None)
            if known is not None:
                self._repeat(study, trial, known)
                continue
            if self._set_floor is not None:
                best = ranked(self._trials, self._objective, self._baseline)
                floor = floor_of(self._objective, best[0].score if best else None, self._baseline)
                self._set_floor(None if config in self._first else floor)  # what reports compare with is no estimate
            measured = self._measure(study, trial, config)
            self._refresh()
            self._emit("finished" if measured.score else "failed", measured, config)
            failures = 0 if measured.score else failures + 1
            if failures >= MAX_FAILURES_IN_A_ROW:
                return f"{failures} trials in a row failed, the last one: {measured.reason}"

    def _repeat(self, study: Study, trial: Trial, known: TuningTrial) -> None:
        """Answer a proposal measured before from memory: the sampler hears the value again, no budget is spent."""
        trial.set_user_attr("repeats", known.number)
        if known.score is None:
            fail(study, trial, str(known.reason))
            return
        finish(study, trial, known.score, self._objective, self._baseline)

    def _spent(self) -> str:
        limit, seconds = self._budget.max_trials, self._budget.time_budget_s
        if limit is not None and len(self._trials) >= limit:
            return f"{limit} trials"
        if seconds is not None and self._elapsed() >= seconds:
            return f"time budget of {seconds:g} s"
        return ""

    def _unvisited(self) -> list[Mapping[str, Any]] | None:
        if self._points is None:
            return None
        seen = {self._identity(config) for config in (*(t.config for t in self._trials), *self._pending())}
        return [params for config, params in self._points.items() if self._identity(config) not in seen]

    def _waiting(self) -> bool:
        return bool(self._store.search.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _pending(self) -> set[QuantConfig]:
        """Configurations that are queued, or that another worker is measuring."""
        pending = set()
        for trial in self._store.search.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            if params:
                pending.add(self._to_config(params))
        return pending

    def _enqueue_first(self, configs: list[QuantConfig]) -> None:
        taken = {t.config for t in self._trials} | self._pending()
        for config in configs:
            if config not in taken and (self._points is None or config in self._points):
                self._enqueue(config)

    def _enqueue(self, config: QuantConfig) -> None:
        params = level1.to_params(config) if self._points is None else dict(self._points[config])
        self._store.search.enqueue_trial(params)

    def _retime(self, retime: Retime, count: int) -> None:
        quantized = to_time(ranked(self._trials, self._objective, self._baseline), count)
        configs = [t.config for t in (*self._baselines.values(), *quantized) if t.score is not None]
        if not quantized:
            return
        self._emit("note", None, None, message=f"timing {len(configs)} finalists side by side")
        try:
            latencies = retime(configs)
        except QuantuneError as error:
            self._emit("note", None, None, message=f"the finalists could not be timed again: {error}")
            return
        self._trials = with_latencies(self._trials, latencies)
        self._baselines = dict(zip(self._baselines, with_latencies(self._baselines.values(), latencies), strict=True))
        self._baseline = score_of(self._baselines.get("f32"))

    @cached_property
    def _size(self) -> int | None:
        """How many configurations there are to measure, in a space that can be listed."""
        return None if self._points is None else len({self._identity(config) for config in self._points})

    def _elapsed(self) -> float:
        return sum(t.seconds for t in (*self._trials, *self._baselines.values()))

    def _left(self) -> float | None:
        elapsed, limits = self._elapsed(), []
        if self._budget.time_budget_s is not None:
            limits.append(max(0.0, self._budget.time_budget_s - elapsed))
        total = self._total()
        measured = [t.seconds for t in self._trials if t.score is not None]
        if total is not None and measured:
            limits.append(max(0, total - len(self._trials)) * statistics.fmean(measured))
        return min(limits, default=None)

    def _total(self) -> int | None:
        limits = [n for n in (self._budget.max_trials, self._size) if n is not None]
        return min(limits, default=None)

    def _emit(
        self,
        kind: str,
        trial: TuningTrial | None,
        config: QuantConfig | None,
        *,
        is_baseline: bool = False,
        message: str = "",
    ) -> None:
        if self._on_event is None:
            return
        best, _ = choose(self._trials, self._baselines, self._objective)
        done, total, left = len(self._trials), self._total(), self._left()
        event = TuningEvent(kind, trial, config, is_baseline, done, total, self._elapsed(), left, best, message)
        self._on_event(event)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if isinstance(error, QuantuneError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= 500 else text[:497] + "..."
