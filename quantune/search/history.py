"""Trials as the study stores them: writing their end, reading them back, settling what a dead process left open."""

from __future__ import annotations

from collections import Counter

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from quantune.config import QuantConfig
from quantune.errors import QuantuneError, UsageError
from quantune.search.evaluate import Objective, Score
from quantune.search.result import TuningTrial
from quantune.search.store import Store

MAX_LOST = 2
"""A configuration whose process died more often than this is not tried again: it may be what kills it."""


class DamagedTrial(QuantuneError):
    """A stored trial cannot be read."""


def finish(study: Study, trial: Trial, score: Score, objective: Objective, baseline: Score | None) -> None:
    """Close a trial with its value and, when the objective has an accuracy bound beside its metric, the constraint."""
    if baseline is not None and objective.max_drop is not None and objective.metric != "accuracy":
        trial.set_constraint("accuracy_drop", objective.shortfall(score, baseline))
    study.tell(trial, objective.value(score))


def fail(study: Study, trial: Trial, reason: str) -> None:
    """Close a trial that could not be measured."""
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=TrialState.FAIL)


def lose(study: Study, trial: Trial, reason: str) -> None:
    """Close a trial that says nothing about its configuration, because its process ended first."""
    trial.set_user_attr("lost", True)
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def settle(store: Store, objective: Objective) -> None:
    """Close the trials of dead processes: finished if their score was already written, lost otherwise."""
    abandoned = store.abandoned()
    for study in (store.baselines, store.search):  # in this order: the constraint of a trial needs the baseline
        baseline = float_baseline(store) if study is store.search else None
        for frozen in (t for s, t in abandoned if s is study):
            trial = store.handle(study, frozen)
            if "score" in frozen.user_attrs:
                finish(study, trial, _score(frozen), objective, baseline)
            else:
                lose(study, trial, "its process ended before it was measured")


def float_baseline(store: Store) -> Score | None:
    """The score of the f32 artifact, if it was measured."""
    known = (t.score for t in read_trials(store.baselines) if t.config.precision == "f32")
    return next((score for score in known if score is not None), None)


def read_trials(study: Study) -> list[TuningTrial]:
    """The closed trials of a study, without the repetitions of a configuration that was measured before."""
    frozen = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [_read(t) for t in frozen if "repeats" not in t.user_attrs and "config" in t.user_attrs]


def to_retry(trials: list[TuningTrial]) -> list[QuantConfig]:
    """Configurations that were only lost so far, and not too often."""
    lost = Counter(t.config for t in trials if t.state == "lost")
    settled = {t.config for t in trials if t.state != "lost"}
    return [config for config, times in lost.items() if config not in settled and times <= MAX_LOST]


def without_retried(trials: list[TuningTrial]) -> list[TuningTrial]:
    """The trials less those lost ones that were, or will be, measured again."""
    lost = Counter(t.config for t in trials if t.state == "lost")
    settled = {t.config for t in trials if t.state != "lost"}
    kept: dict[QuantConfig, TuningTrial] = {}
    for trial in trials:
        if trial.state == "lost" and (trial.config in settled or lost[trial.config] <= MAX_LOST):
            continue
        kept.setdefault(trial.config, trial)
    return list(kept.values())


def _read(frozen: FrozenTrial) -> TuningTrial:
    attrs = frozen.user_attrs
    seconds = attrs.get("seconds", 0.0)
    if not isinstance(seconds, int | float):
        raise DamagedTrial(f"trial {frozen.number}: seconds is {seconds!r}")
    try:
        config = QuantConfig.parse(str(attrs["config"]))
    except UsageError as error:
        raise DamagedTrial(f"trial {frozen.number}: {error}") from error
    if frozen.state == TrialState.COMPLETE:
        return TuningTrial(frozen.number, config, "complete", _score(frozen), seconds=seconds)
    state = "lost" if attrs.get("lost") else "failed"
    return TuningTrial(frozen.number, config, state, None, str(attrs.get("reason")), seconds)


def _score(frozen: FrozenTrial) -> Score:
    try:
        return Score.from_json(frozen.user_attrs.get("score"))
    except (ValueError, TypeError) as error:
        raise DamagedTrial(f"trial {frozen.number}: {error}") from error
