"""What a search tells while it runs, and how much it may spend."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from quantune.errors import UsageError
from quantune.quantization.config import QuantConfig
from quantune.search.result import TuningTrial


@dataclass(frozen=True)
class TuningEvent:
    """Progress, for whoever shows it.

    kind: started | finished | failed | note. total: trials the budget allows, None when only time limits it.
    left_s: estimated seconds until the search ends, None while unknown. best: the best answer so far.
    """

    kind: str
    trial: TuningTrial | None
    config: QuantConfig | None
    is_baseline: bool
    done: int
    total: int | None
    elapsed_s: float
    left_s: float | None
    best: TuningTrial | None
    message: str = ""


@dataclass(frozen=True)
class Budget:
    """How much may be measured. Both limits belong to the study: what earlier sessions spent counts."""

    max_trials: int | None = None
    time_budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_trials is not None and (not isinstance(self.max_trials, int) or self.max_trials < 1):
            raise UsageError(f"number of trials {self.max_trials}: expected a whole number, 1 or more")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise UsageError(f"time budget {self.time_budget_s} s: expected more than 0")

    def spent(self, trials: int, elapsed_s: float) -> str:
        """Which limit is reached, in words; empty while none is."""
        if self.max_trials is not None and trials >= self.max_trials:
            return f"{self.max_trials} trials"
        if self.time_budget_s is not None and elapsed_s >= self.time_budget_s:
            return f"time budget of {self.time_budget_s:g} s"
        return ""

    def total(self, size: int | None) -> int | None:
        """How many trials there will be at most, in a space of ``size`` configurations."""
        return min((n for n in (self.max_trials, size) if n is not None), default=None)

    def left(self, trials: Iterable[TuningTrial], elapsed_s: float, size: int | None) -> float | None:
        """Estimated seconds until the search ends, None while unknown."""
        limits: list[float] = []
        if self.time_budget_s is not None:
            limits.append(max(0.0, self.time_budget_s - elapsed_s))
        trials, total = list(trials), self.total(size)
        measured = [t.seconds for t in trials if t.score is not None]
        if total is not None and measured:
            limits.append(max(0, total - len(trials)) * statistics.fmean(measured))
        return min(limits, default=None)
