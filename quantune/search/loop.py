"""The search loop: propose a configuration, claim and measure it, tell the study; stop on a budget and choose."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError

from quantune.errors import EnvironmentFailure, QuantuneError, UsageError
from quantune.metrics import DEFAULT
from quantune.process.interrupts import held
from quantune.quantization import space as level1
from quantune.quantization.config import QuantConfig
from quantune.search.claims import Claim, Claims, Session, is_transient
from quantune.search.heartbeat import Heartbeat
from quantune.search.history import Attempt, Standing
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
from quantune.search.scores import Objective, Score, TrialFailed
from quantune.search.stopping import Floor, floor_of
from quantune.search.storage import StorageLost
from quantune.search.store import Store
from quantune.search.strategies import Proposal, Strategy

logger = logging.getLogger(__name__)

Evaluate = Callable[[QuantConfig], Score]
Retime = Callable[[list[QuantConfig]], Mapping[QuantConfig, float]]

MAX_FAILURES_IN_A_ROW = 10
LONGEST_WAIT_S = 2.0
"""How often a worker with nothing to do looks at what the others measure."""


@dataclass(frozen=True)
class Task:
    """What is searched, as `quantune.search.tuner.tune` was asked."""

    evaluate: Evaluate
    objective: Objective
    strategy: Strategy
    space: Mapping[str, BaseDistribution]
    identity: Callable[[QuantConfig], str]
    budget: Budget
    first: tuple[QuantConfig, ...] = ()
    on_event: Callable[[TuningEvent], None] | None = None
    set_floor: Callable[[Floor | None], None] | None = None
    retry_failed: bool = False


class Loop:
    """One session of a search."""

    def __init__(self, task: Task) -> None:
        self._task, self._objective = task, task.objective
        points = task.strategy.points
        self._points = None if points is None else {level1.from_params(p): p for p in points}
        self._standing = Standing((), (), (), ())
        self._trials: list[TuningTrial] = []
        self._baselines: dict[str, TuningTrial] = {}
        self._baseline: Score | None = None
        self._given_up: set[QuantConfig] = set()
        self._waits, self._waiting_for = 0, ""

    def run(
        self,
        store: Store,
        heartbeat: Heartbeat | None,
        baselines: list[QuantConfig],
        retime: Retime | None,
        finalists: int,
    ) -> TuningResult:
        """Search over an open store until a budget is spent, and choose; heartbeat: where workers share the store."""
        interrupted = False
        session = Session(shared=store.shared, heartbeat=heartbeat)
        self._search_claims = Claims(store.search, session, self._task.identity)
        self._baseline_claims = Claims(store.baselines, session, lambda config: config.precision)
        try:
            self._resume(store)
            # Where `choose` takes a float artifact only if nothing quantized keeps the bound, f32 will do until then.
            later = [c for c in baselines if c.precision != "f32" and self._objective.metric == "accuracy"]
            for config in (c for c in baselines if c not in later):
                self._measure_baseline(config)
            stopped = self._search()
            best, _ = choose(self._trials, self._baselines, self._objective)
            if best is None or best.config.is_float:
                self._measure_late(later)
            if retime is not None:
                self._retime(retime, finalists)
        except KeyboardInterrupt:
            interrupted, stopped = True, "interrupted"
            # A trial may have been closed a moment ago.
            with contextlib.suppress(KeyboardInterrupt), held(), contextlib.suppress(StorageLost):
                store.hurry()
                self._read_baselines()
                self._refresh()
        best, best_quantized = choose(self._trials, self._baselines, self._objective)
        return TuningResult(
            objective=self._objective,
            trials=tuple(self._trials),
            baselines=dict(self._baselines),
            best=best,
            best_quantized=best_quantized,
            pareto=pareto_front(
                ranked([*self._baselines.values(), *self._trials], self._objective, self._baseline), self._objective
            ),
            stopped=stopped,
            interrupted=interrupted,
            elapsed_s=self._elapsed(),
            space_size=self._size,
            folder=store.folder,
        )

    # Reading the study

    def _resume(self, store: Store) -> None:
        """Settle what others left open, and read what was measured."""
        if self._task.retry_failed:
            for claims in (self._search_claims, self._baseline_claims):
                closed = (a for a in claims.attempts() if a.state not in ("complete", "running"))
                claims.forgiven = frozenset(a.number for a in closed)
        self._read_baselines()
        self._refresh()
        if store.shared:
            self.note(f"study '{store.search.study_name}' in {store.where}: {len(self._trials)} trials so far")

    def _read_baselines(self) -> Standing:
        standing = self._baseline_claims.settled(self._objective, None)
        self._baselines = {t.config.precision: t for t in standing.trials}
        self._baseline = score_of(self._baselines.get("f32"))
        return standing

    def _refresh(self) -> None:
        """Read the study again: other workers may have measured meanwhile, or died."""
        self._standing = self._search_claims.settled(self._objective, self._baseline)
        self._trials = list(self._standing.trials)
        for trial in self._trials:
            if trial.state == "lost" and trial.config not in self._given_up:
                self._given_up.add(trial.config)
                self.note(f"{trial.config.brief}: {trial.reason}")

    # Measuring

    def _measure_baseline(self, config: QuantConfig) -> None:
        if not config.is_float:
            raise UsageError(f"baseline {config}: expected precision=f32 or precision=f16")
        required, claims = config.precision == "f32", self._baseline_claims
        if required:  # without it there is no search, so what failed in an earlier session is tried again
            failed = (a for a in claims.attempts() if a.config == config and a.state not in ("complete", "running"))
            claims.forgiven |= frozenset(a.number for a in failed)
        while True:
            standing = self._read_baselines()
            known = self._baselines.get(config.precision)
            if known is not None:
                break
            if busy := next((a for a in standing.running if a.config == config), None):
                self._wait(f"{config.brief} is being measured by {_owner(busy)}")
                continue
            measured = self._attempt(claims, config, {}, is_baseline=True)
            if measured is not None:
                self._read_baselines()
                self._emit("finished" if measured.score else "failed", measured, config, is_baseline=True)
        if required and known.score is None:
            raise TrialFailed(f"the f32 artifact cannot be measured, there is nothing to compare with: {known.reason}")

    def _measure_late(self, baselines: list[QuantConfig]) -> None:
        if baselines and self._task.set_floor is not None:
            self._task.set_floor(None)  # what may be the answer is measured in full
        for config in baselines:
            self._measure_baseline(config)

    def _attempt(
        self,
        claims: Claims,
        config: QuantConfig,
        params: Mapping[str, Any],
        *,
        marks: Mapping[str, Any] | None = None,
        is_baseline: bool = False,
    ) -> TuningTrial | None:
        """Claim, evaluate and close one configuration, whatever happens; None where another worker was first."""
        claim, limit = None, None if is_baseline else self._task.budget.max_trials

        def make() -> Claim | None:
            return claims.claim(config, params, self._task.space, limit=limit, marks=marks)

        try:
            with held():
                claim = make()
            if claim is None:
                return None
            self._waiting_for = ""
            self._emit("started", None, config, is_baseline=is_baseline)
            return self._evaluated(claim, make, None if is_baseline else self._baseline)
        except StorageLost:
            raise
        except BaseException as error:
            if claim is not None and not claim.closed:
                # UsageError and EnvironmentFailure: every other trial would end the same way.
                kind = "stopped" if isinstance(error, Exception) else "interrupted"
                with held():
                    claim.drop(kind, _reason(error))
            raise

    def _evaluated(self, claim: Claim, again: Callable[[], Claim | None], baseline: Score | None) -> TuningTrial | None:
        config, begin, score = claim.config, time.monotonic(), None
        try:
            score = self._task.evaluate(config)
            self._objective.value(score)  # refuses a missing latency before anything is stored
            with held():
                return self._finish(claim, again, score, time.monotonic() - begin, baseline)
        except (UsageError, EnvironmentFailure):
            raise
        except Exception as error:
            if not isinstance(error, QuantuneError):
                logger.warning("evaluating %s failed", config, exc_info=True)
            seconds, reason = time.monotonic() - begin, _reason(error)
            with held(), contextlib.suppress(UpdateFinishedTrialError):  # it was taken for dead meanwhile
                if is_transient(error):
                    claim.drop("transient", reason)
                else:
                    claim.fail(reason, seconds)
            return TuningTrial(claim.number, config, "failed", None, reason, seconds)
        except KeyboardInterrupt:
            if score is not None and not claim.closed:  # what was measured is kept
                with held():
                    self._finish(claim, again, score, time.monotonic() - begin, baseline)
            raise

    def _finish(
        self,
        claim: Claim,
        again: Callable[[], Claim | None],
        score: Score,
        seconds: float,
        baseline: Score | None,
    ) -> TuningTrial | None:
        """Close a trial with its score; under another number where it was taken for dead meanwhile."""
        try:
            claim.finish(score, seconds, self._objective, baseline)
        except UpdateFinishedTrialError:
            anew = again()
            if anew is None:
                logger.warning("%s: another worker took its trial over; this score is not kept", claim.config)
                return None
            anew.finish(score, seconds, self._objective, baseline)
            claim = anew
        return TuningTrial(claim.number, claim.config, "complete", score, seconds=seconds)

    # Searching

    def _search(self) -> str:
        """Measure until a budget is spent or nothing is left; the reason, in words."""
        failures, limit = 0, self._task.budget.max_trials
        self._refresh()
        while True:
            reason = self._task.budget.spent(len(self._trials), self._elapsed())
            if reason:
                return reason
            running = self._standing.running
            proposal = None
            if limit is None or len(self._trials) + len(running) < limit:
                proposal = self._next()
            if proposal is None:
                if not running:
                    return "every configuration was measured"
                self._wait("other workers measure what is left")
                self._refresh()
                continue
            config = level1.from_params(proposal.params)
            self._show_floor(config)
            measured = self._attempt(self._search_claims, config, proposal.params, marks=proposal.marks)
            self._refresh()
            if measured is None:
                continue
            self._emit("finished" if measured.score else "failed", measured, config)
            failures = 0 if measured.score else failures + 1
            if failures >= MAX_FAILURES_IN_A_ROW:
                return (
                    f"{failures} trials in a row failed, the last one: {measured.reason}; the same command goes on, "
                    "with --retry-failed it tries again what failed"
                )

    def _next(self) -> Proposal | None:
        """What to measure: first what was tried without a verdict, then what comes first, then a proposal."""
        seen = {self._task.identity(c) for c in self._taken()}
        for attempt in self._standing.again:
            if self._task.identity(attempt.config) not in seen:
                return Proposal(attempt.frozen.params, attempt.frozen.system_attrs)
        for config in self._task.first:
            known = self._points is None or config in self._points
            if known and self._task.identity(config) not in seen:
                return Proposal(level1.to_params(config) if self._points is None else self._points[config], {})
        unvisited = None
        if self._points is not None:
            unvisited = [params for config, params in self._points.items() if self._task.identity(config) not in seen]
        reference = None
        # Past studies know drops of top-1.
        known = self._objective.metric == "accuracy" and self._objective.judged.name == DEFAULT
        if known and self._baseline is not None:
            reference = self._baseline.accuracy
        known_trials = [a.frozen for a in (*self._standing.verdicts, *self._standing.running)]
        return self._task.strategy.propose(self._objective.direction, known_trials, unvisited, reference)

    def _taken(self) -> list[QuantConfig]:
        """Configurations that are measured, or that another worker is measuring."""
        return [*(t.config for t in self._trials), *(a.config for a in self._standing.running)]

    def _show_floor(self, config: QuantConfig) -> None:
        """Tell the evaluation what the next trial has to reach."""
        if self._task.set_floor is None:
            return
        best = ranked(self._trials, self._objective, self._baseline)
        floor = floor_of(self._objective, best[0].score if best else None, self._baseline)
        # What reports compare with is no estimate.
        self._task.set_floor(None if config in self._task.first else floor)

    def _wait(self, reason: str) -> None:
        """Let others work a little; says once what is waited for."""
        if reason != self._waiting_for:
            self._waiting_for, self._waits = reason, 0
            self.note(f"waiting: {reason}")
        self._waits += 1
        time.sleep(min(0.05 * 2 ** min(self._waits, 10), LONGEST_WAIT_S))

    def _retime(self, retime: Retime, count: int) -> None:
        quantized = to_time(ranked(self._trials, self._objective, self._baseline), count)
        configs = [t.config for t in (*self._baselines.values(), *quantized) if t.score is not None]
        if not quantized:
            return
        self.note(f"timing {len(configs)} finalists side by side")
        try:
            latencies = retime(configs)
        except QuantuneError as error:
            self.note(f"the finalists could not be timed again: {error}")
            return
        self._trials = with_latencies(self._trials, latencies)
        self._baselines = dict(zip(self._baselines, with_latencies(self._baselines.values(), latencies), strict=True))
        self._baseline = score_of(self._baselines.get("f32"))

    # Telling

    @cached_property
    def _size(self) -> int | None:
        """How many configurations there are to measure, in a space that can be listed."""
        return None if self._points is None else len({self._task.identity(config) for config in self._points})

    def _elapsed(self) -> float:
        return sum(t.seconds for t in (*self._trials, *self._baselines.values()))

    def note(self, message: str) -> None:
        """Tell something that is no trial."""
        self._emit("note", None, None, message=message)

    def _emit(
        self,
        kind: str,
        trial: TuningTrial | None,
        config: QuantConfig | None,
        *,
        is_baseline: bool = False,
        message: str = "",
    ) -> None:
        if self._task.on_event is None:
            return
        best, _ = choose(self._trials, self._baselines, self._objective)
        budget, elapsed = self._task.budget, self._elapsed()
        self._task.on_event(
            TuningEvent(
                kind, trial, config, is_baseline, done=len(self._trials), total=budget.total(self._size),
                elapsed_s=elapsed, left_s=budget.left(self._trials, elapsed, self._size), best=best, message=message,
            )
        )  # fmt: skip


def _owner(attempt: Attempt) -> str:
    return f"process {attempt.lease.get('pid', '?')} on {attempt.lease.get('host', 'another machine')}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if isinstance(error, QuantuneError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= 500 else text[:497] + "..."
