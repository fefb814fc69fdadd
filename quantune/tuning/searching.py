"""A search: what it is after, and how the parts take turns in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantune.process import memory
from quantune.quantization.config import QuantConfig
from quantune.quantization.predictions import Proxies
from quantune.quantization.space import DEFAULT_SPACE, configs, distributions, parameters
from quantune.search.progress import Budget
from quantune.search.result import TuningResult
from quantune.search.sampler import STARTUPS_WITH_PRIOR
from quantune.search.scores import Objective
from quantune.search.strategies import check as check_strategy
from quantune.search.tuner import tune
from quantune.tuning.bits_wanted import BitsWanted
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.guidance import guide
from quantune.tuning.identity import study_identity
from quantune.tuning.request import Progress
from quantune.tuning.smallest import first_configurations

FLOATS = (QuantConfig(precision="f32"), QuantConfig(precision="f16"))


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is sought, where, and for how long; refused at once where it makes no sense.

    space: by default paper, and wide where the smallest within a bound is sought. sampler, seed: how configurations are
    chosen. storage: a database whose trials workers share. transfer: whether studies of other models guide the search.
    early_stop: whether trials end that fall behind for sure.
    """

    objective: Objective
    budget: Budget
    bits: BitsWanted
    space: str | None = None
    sampler: str = "xgboost"
    seed: int = 0
    storage: str | None = None
    retry_failed: bool = False
    transfer: bool = True
    early_stop: bool = True

    def __post_init__(self) -> None:
        check_strategy(self.sampler, self.seed)
        default = DEFAULT_SPACE if self.bits.smallest_within is None else "wide"
        space = default if self.space is None else self.space
        parameters(space)
        object.__setattr__(self, "space", space)

    @property
    def baselines(self) -> tuple[QuantConfig, ...]:
        """What is measured before anything else is, as `tune` does it."""
        return FLOATS[: 1 if self.objective.metric == "accuracy" else 2]

    def run(
        self, evaluator: Evaluator, folder: Path, progress: Progress, peaks: memory.Peaks
    ) -> tuple[TuningResult, tuple[str, ...]]:
        """Calibrate, predict, and try one configuration after another; what was found, and notes for the report."""
        builder, trials = evaluator.builder, self.budget.max_trials
        assert builder.calib is not None
        assert self.space is not None
        peaks.begin("calibration")
        progress.on_stage(f"calibrating on {min(len(builder.calib), 10_000)} images")
        proxies = Proxies(builder.model.network, builder.plans.scales, builder.calibration.statistics)
        points, precisions = configs(self.space), parameters(self.space)["precision"]
        if self.bits.is_allocated:
            progress.on_stage("scoring the layers")
            precisions = ("int8",)  # layers that stay f32 would break a size
        found = first_configurations(self.bits, evaluator, proxies, points, progress.on_stage)
        bits, first = list(dict.fromkeys(config.bits for config in found.first)), list(found.first)
        if self.bits.smallest_within is not None:
            trials = max(trials or 0, len(first))
        builder.prepare(first[:1])
        progress.on_stage(f"predicting {len(points)} configurations")
        builder.prepare(proxies.upcoming(first, precisions, trials, STARTUPS_WITH_PRIOR, builder.identity, points))
        searched = distributions(bits, precisions, self.space)
        screen = evaluator.classifies and self.sampler == "xgboost" and (trials is None or trials > len(first))
        hooks = progress.on_stage, progress.on_screening
        known = guide(evaluator, proxies, searched, *hooks, screen=screen, transfer=self.transfer)
        peaks.begin("search")
        progress.on_stage("searching")
        tuning = tune(
            evaluator,
            folder,
            objective=self.objective,
            fingerprint=study_identity(evaluator),
            sampler=self.sampler,
            seed=self.seed,
            max_trials=trials,
            time_budget_s=self.budget.time_budget_s,
            baselines=FLOATS,
            first=first,
            space=searched,
            features=known.features,
            prior=known.prior,
            past=known.past,
            retime=evaluator.retime,
            set_floor=evaluator.set_floor if self.early_stop and self.objective.judged.binary else None,
            on_event=progress.on_event,
            identity=builder.identity,
            storage=self.storage,
            retry_failed=self.retry_failed,
        )
        return tuning, found.notes
