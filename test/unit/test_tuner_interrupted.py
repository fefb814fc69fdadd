"""A search that is killed, interrupted or stopped anywhere measures in the end what one does that was left alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import optuna
import pytest
from tuner_bench import SMALL, Killed, Recorder, killed_at, measure
from tuner_bench import quick_disk as quick_disk

from quantune.quantization.config import QuantConfig
from quantune.search.history import MAX_DEATHS
from quantune.search.result import TuningResult
from quantune.search.scores import Objective
from quantune.search.strategies import SAMPLERS
from quantune.search.tuner import tune

pytestmark = pytest.mark.usefixtures("quick_disk")

TRIALS = 11  # the genetic sampler's second generation begins with the ninth
WRITES_A_TRIAL = 4


def search(folder: Path, sampler: str, evaluate: Any = measure, **options: Any) -> TuningResult:
    return tune(evaluate, folder, **{"space": SMALL, "sampler": sampler, "max_trials": TRIALS, **options})


def outcome(result: TuningResult) -> tuple[object, ...]:
    trials = tuple((t.config, t.state, t.score) for t in result.trials)
    return trials, result.best and (result.best.config, result.best.score)


@pytest.fixture(scope="module")
def undisturbed(quick_disk: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    return {sampler: outcome(search(tmp_path_factory.mktemp(sampler), sampler)) for sampler in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_stopped_by_its_budget_goes_on_as_if_it_had_not(
    sampler: str, tmp_path: Path, undisturbed: dict[str, tuple[object, ...]]
) -> None:
    for trials in (1, 4, 10):
        search(tmp_path, sampler, max_trials=trials)
    assert outcome(search(tmp_path, sampler)) == undisturbed[sampler]


def until(folder: Path, write: int, error: type[BaseException], patch: pytest.MonkeyPatch, **options: Any) -> None:
    """A session that ends at its write of this number, if it makes so many."""
    with killed_at(patch, write, error) as made, contextlib.suppress(Killed):
        result = search(folder, **options)
        assert result.interrupted == (len(made) >= write)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_killed_and_interrupted_again_and_again(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, tuple[object, ...]]
) -> None:
    """Ended where a trial was claimed, its seconds were stored, its score was stored, or it was closed."""
    evaluate = Recorder()
    ends = (3, Killed), (5, KeyboardInterrupt), (6, Killed), (9, Killed), (7, KeyboardInterrupt), (8, Killed)
    for write, error in ends:
        until(tmp_path, write, error, monkeypatch, sampler=sampler, evaluate=evaluate)
    assert outcome(search(tmp_path, sampler, evaluate)) == undisturbed[sampler]
    lost = len(evaluate.seen) - len(set(evaluate.seen))
    assert len(set(evaluate.seen)) == TRIALS + 1
    assert lost <= 3  # those killed between the measurement and its storage


@pytest.mark.slow
@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whatever_write_comes_last(
    sampler: str,
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, tuple[object, ...]],
) -> None:
    for write in range(1, WRITES_A_TRIAL * (TRIALS + 1) + 1):
        folder, evaluate = tmp_path / str(write), Recorder()
        until(folder, write, error, monkeypatch, sampler=sampler, evaluate=evaluate)
        assert outcome(search(folder, sampler, evaluate)) == undisturbed[sampler], write
        lost = error is Killed and write % WRITES_A_TRIAL == 2  # measured, and the score not stored
        assert len(evaluate.seen) == TRIALS + 1 + lost, write


def test_an_interrupted_trial_leaves_its_configuration_as_it_was(tmp_path: Path) -> None:
    """Interrupted however often, it is measured in the end."""
    for _ in range(MAX_DEATHS + 2):
        assert search(tmp_path, "random", Recorder(stop_at=2)).interrupted
    result = search(tmp_path, "random")
    assert result.trials[0].config == QuantConfig()
    assert result.trials[0].state == "complete"


def test_a_score_measured_when_ctrl_c_comes_is_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for write in range(2 * WRITES_A_TRIAL + 2, 3 * WRITES_A_TRIAL + 1):
        with killed_at(monkeypatch, write, KeyboardInterrupt):
            result = search(tmp_path / str(write), "random")
        assert result.interrupted
        assert [t.state for t in result.trials] == ["complete", "complete"]


def test_a_configuration_that_kills_its_process_is_given_up_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil, notes = QuantConfig(), []
    options: dict[str, Any] = {"baselines": (), "max_trials": 2, "on_event": lambda e: notes.append(e.message)}
    for session in range(MAX_DEATHS):  # claimed, from the second on after the last one's trial is settled
        with killed_at(monkeypatch, 4 if session else 1), pytest.raises(Killed):
            search(tmp_path, "random", **options)
    result = search(tmp_path, "random", **options)
    assert [(t.config == evil, t.state) for t in result.trials] == [(True, "lost"), (False, "complete")]
    assert [note for note in notes if "its process ended 5 times" in note and "--retry-failed" in note]
    again = Recorder()
    assert search(tmp_path, "random", again, **options, retry_failed=True).trials[0].state == "complete"
    assert again.seen == [evil]


def test_the_accuracy_bound_of_a_trial_settled_later_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective("size", 0.02)
    options: dict[str, Any] = {"sampler": "xgboost", "objective": objective, "max_trials": 6}
    whole = outcome(search(tmp_path / "whole", **options))
    for write in (4 + 3, 5 + 3, 10 + 4):  # f32 takes four writes, each trial five
        until(tmp_path / "cut", write, Killed, monkeypatch, **options)
    assert outcome(search(tmp_path / "cut", **options)) == whole
    study = optuna.load_study(study_name="quantune", storage=f"sqlite:///{tmp_path}/cut/study.db")
    assert all("accuracy_drop" in t.constraints for t in study.trials if t.state.name == "COMPLETE")
