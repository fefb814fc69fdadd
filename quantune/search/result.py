"""The outcome of a search: its trials, the float baselines, the choice among them and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantune.quantization.config import QuantConfig
from quantune.search.scores import Objective, Score


@dataclass(frozen=True)
class TuningTrial:
    """One evaluated configuration.

    state: complete (has a score), failed (has a reason) or lost (its process ended before it did; it is tried again).
    retimed: the latency is from the final, interleaved timing. number counts search trials and baselines separately.
    """

    number: int
    config: QuantConfig
    state: str
    score: Score | None = None
    reason: str | None = None
    seconds: float = 0.0
    retimed: bool = False

    def __post_init__(self) -> None:
        if self.state not in ("complete", "failed", "lost"):
            raise ValueError(f"state '{self.state}': expected complete, failed or lost")
        if (self.state == "complete") != (self.score is not None):
            raise ValueError(f"trial {self.number} is {self.state} and its score is {self.score}")


@dataclass(frozen=True)
class TuningResult:
    """What `tune` returns, finished or not.

    best: the answer under the objective, which may be a float baseline; None when nothing was measured.
    best_quantized: the best quantized trial, the one closest to the bound when none keeps it.
    stopped: why the search ended, in words. elapsed_s: measuring time over all sessions of the study.
    """

    objective: Objective
    trials: tuple[TuningTrial, ...]
    baselines: Mapping[str, TuningTrial]
    best: TuningTrial | None
    best_quantized: TuningTrial | None
    pareto: tuple[TuningTrial, ...]
    stopped: str
    interrupted: bool
    elapsed_s: float
    space_size: int | None
    folder: Path

    @property
    def baseline(self) -> TuningTrial | None:
        """The f32 artifact's trial."""
        return self.baselines.get("f32")

    @property
    def feasible(self) -> bool:
        """Whether a quantized artifact keeps the bound (True without a bound if any was measured)."""
        if self.best_quantized is None or self.best_quantized.score is None:
            return False
        return self.objective.feasible(self.best_quantized.score, score_of(self.baseline))


def score_of(trial: TuningTrial | None) -> Score | None:
    """The score of a trial that may be absent or failed."""
    return None if trial is None else trial.score


def ranked(trials: Iterable[TuningTrial], objective: Objective, baseline: Score | None) -> list[TuningTrial]:
    """Completed trials, best first; those measured on fewer images than the baseline (stopped early) are left out."""
    measured = [(t, t.score) for t in trials if t.score is not None]
    full = max((s.images for _, s in measured), default=0) if baseline is None else baseline.images
    complete = [(t, s) for t, s in measured if s.images >= full]
    return [t for t, s in sorted(complete, key=lambda p: (objective.rank(p[1], p[0].config, baseline), p[0].number))]


def choose(
    trials: Sequence[TuningTrial], baselines: Mapping[str, TuningTrial], objective: Objective
) -> tuple[TuningTrial | None, TuningTrial | None]:
    """(best, best quantized).

    For latency and size the float artifacts compete, so that "do not quantize" can win. For accuracy they would win
    nearly always and the question would be pointless: there a float artifact is the answer only when nothing quantized
    keeps the bound. When some trials were timed again, the choice is among those: a single timing wins by luck.
    """
    baseline = score_of(baselines.get("f32"))
    quantized = ranked(_finalists(trials), objective, baseline)
    floats = ranked(_finalists(tuple(baselines.values())), objective, baseline)
    best_quantized = quantized[0] if quantized else None
    kept = [t for t in quantized if t.score is not None and objective.feasible(t.score, baseline)]
    if objective.metric == "accuracy" and kept:
        return kept[0], best_quantized
    candidates = ranked([*kept, *floats], objective, baseline) or quantized
    return (candidates[0] if candidates else None), best_quantized


def _finalists(trials: Sequence[TuningTrial]) -> list[TuningTrial]:
    return [t for t in trials if t.retimed] or list(trials)


def to_time(trials: Sequence[TuningTrial], count: int) -> list[TuningTrial]:
    """Of ranked trials the first ``count``, and the best of every program not among them.

    A program is timed once during a search: one bad moment must not decide over all of its configurations.
    """
    chosen = list(trials[:count])
    timed = {None, *map(_program, chosen)}
    for trial in trials[count:]:
        if _program(trial) not in timed:
            timed.add(_program(trial))
            chosen.append(trial)
    return chosen


def _program(trial: TuningTrial) -> str | None:
    return None if trial.score is None else trial.score.program


def with_latencies(trials: Iterable[TuningTrial], latencies: Mapping[QuantConfig, float]) -> list[TuningTrial]:
    """The trials with the latencies (ms) of a final timing in place of their own."""
    return [
        replace(t, score=replace(t.score, latency_ms=latencies[t.config]), retimed=True)
        if t.score is not None and t.config in latencies
        else t
        for t in trials
    ]


def pareto_front(trials: Iterable[TuningTrial], objective: Objective) -> tuple[TuningTrial, ...]:
    """Trials that no other beats in accuracy, latency and size at once, from most to least accurate.

    An unmeasured latency counts as equal to any, so that it neither wins nor loses. Of equal trials the first stays.
    """

    def dominates(a: Score, b: Score) -> bool:
        """Whether a is at least as good as b in everything."""
        latency = a.latency_ms is None or b.latency_ms is None or a.latency_ms <= b.latency_ms
        return objective.worth(a) >= objective.worth(b) and a.size_bytes <= b.size_bytes and latency

    def order(pair: tuple[TuningTrial, Score]) -> tuple[float, float, int]:
        return -objective.worth(pair[1]), pair[1].latency_ms or math.inf, pair[1].size_bytes

    front: list[tuple[TuningTrial, Score]] = []
    measured = [(t, t.score) for t in trials if t.score is not None]
    for trial, score in sorted(measured, key=order):
        if not any(dominates(other, score) for _, other in front):
            beaten = [s for _, s in front if dominates(score, s) and not dominates(s, score)]
            front = [(t, s) for t, s in front if s not in beaten] + [(trial, score)]
    return tuple(t for t, _ in front)
