from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import optuna
import pytest
from tuner_bench import F16, F32, ONE_AXIS, SMALL, Recorder, measure
from tuner_bench import quick_disk as quick_disk

from quantune.errors import EnvironmentFailure, UsageError
from quantune.quantization import space as level1
from quantune.quantization.config import QuantConfig
from quantune.search.result import TuningTrial, choose, pareto_front, to_time
from quantune.search.scores import Objective, Score, TrialFailed
from quantune.search.tuner import tune

pytestmark = pytest.mark.usefixtures("quick_disk")


def test_finds_the_best_and_measures_each_point_once(tmp_path: Path) -> None:
    evaluate = Recorder()
    result = tune(evaluate, tmp_path, space=ONE_AXIS, baselines=(F32, F16), first=())
    assert result.stopped == "every configuration was measured"
    assert len(evaluate.seen) == len(set(evaluate.seen)) == 5
    assert len(result.trials) == result.space_size == 4
    assert result.best is not None
    assert result.best.score == max((measure(c) for c in evaluate.seen if not c.is_float), key=lambda s: s.accuracy)
    assert set(result.baselines) == {"f32"}  # f16 cannot be the answer
    assert not result.interrupted
    assert result.feasible


def test_other_baselines_come_last_in_a_search_for_accuracy_and_only_when_they_can_win(tmp_path: Path) -> None:
    def evaluate(config: QuantConfig) -> Score:
        return measure(config) if config.is_float else Score(0.1, 1.0, 1, 1000)

    floors: list[object] = []
    for metric, place in (("accuracy", 5), ("latency", 1)):
        seen: list[QuantConfig] = []

        def heard(config: QuantConfig, seen: list[QuantConfig] = seen) -> Score:
            seen.append(config)
            return evaluate(config)

        result = tune(
            heard, tmp_path / metric, space=ONE_AXIS, objective=Objective(metric, 0.01), baselines=(F32, F16), first=(),
            set_floor=floors.append,
        )  # fmt: skip
        assert set(result.baselines) == {"f32", "f16"}
        assert seen.index(F16) == place
        assert metric != "accuracy" or floors[-1] is None  # measured in full


def test_same_command_again_measures_nothing(tmp_path: Path) -> None:
    first = tune(measure, tmp_path, space=ONE_AXIS, max_trials=3)
    evaluate = Recorder()
    again = tune(evaluate, tmp_path, space=ONE_AXIS, max_trials=3)
    assert evaluate.seen == []
    assert again == first
    more = tune(evaluate, tmp_path, space=ONE_AXIS, max_trials=4)
    assert len(evaluate.seen) == 1
    assert more.trials[:3] == first.trials


def test_default_configuration_comes_first(tmp_path: Path) -> None:
    evaluate = Recorder()
    tune(evaluate, tmp_path, max_trials=1)
    assert evaluate.seen == [F32, QuantConfig()]


@pytest.mark.parametrize("sampler", ["random", "grid", "genetic", "tpe", "xgboost"])
def test_every_sampler_exhausts_a_small_space(tmp_path: Path, sampler: str) -> None:
    evaluate = Recorder()
    result = tune(evaluate, tmp_path, space=ONE_AXIS, sampler=sampler, first=(), seed=1)
    assert len(result.trials) == 4
    assert len(evaluate.seen) == 5
    if sampler == "grid":
        assert [c.scheme for c in evaluate.seen[1:]] == list(level1.PARAMETERS["scheme"])


def test_unknown_sampler_is_named_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean xgboost"):
        tune(measure, tmp_path, sampler="xgbost")


def test_float_wins_when_it_is_faster(tmp_path: Path) -> None:
    def evaluate(config: QuantConfig) -> Score:
        return Score(0.8, 3.0 if config == F16 else 10.0, 1, 10)

    result = tune(
        evaluate, tmp_path, objective=Objective("latency", 0.01), space=ONE_AXIS, max_trials=2, baselines=(F32, F16)
    )
    assert result.best is not None
    assert result.best.config == F16
    assert result.best_quantized is not None


def test_infeasible_search_answers_f32_and_names_the_closest(tmp_path: Path) -> None:
    def evaluate(config: QuantConfig) -> Score:
        return Score(0.8 if config.is_float else measure(config).accuracy - 0.2, 1.0, 1, 1000)

    result = tune(evaluate, tmp_path, objective=Objective("latency", 0.01), space=ONE_AXIS)
    assert not result.feasible
    assert result.best is not None
    assert result.best.config == F32
    assert result.best_quantized is not None
    assert result.best_quantized.score is not None
    assert result.best_quantized.score.accuracy == max(t.score.accuracy for t in result.trials if t.score)


def test_failures_are_data(tmp_path: Path) -> None:
    def evaluate(config: QuantConfig) -> Score:
        if config.scheme == "symmetric":
            raise TrialFailed("iree-compile: crashed")
        if config.scheme == "symmetric_uint8":
            raise ZeroDivisionError("boom")
        return measure(config)

    tune(evaluate, tmp_path, space=ONE_AXIS)
    again = Recorder()
    result = tune(again, tmp_path, space=ONE_AXIS)
    assert {t.reason for t in result.trials if t.state == "failed"} == {
        "iree-compile: crashed",
        "ZeroDivisionError: boom",
    }
    assert again.seen == []
    states = optuna.load_study(study_name="quantune", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert sorted(t.state.name for t in states) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert all(t.user_attrs["reason"] for t in states if t.state.name == "FAIL")


def test_search_gives_up_when_everything_fails(tmp_path: Path) -> None:
    evaluate = Recorder(fail=lambda c: not c.is_float)
    result = tune(evaluate, tmp_path, sampler="grid")
    assert "10 trials in a row failed" in result.stopped
    assert "no kernel for it" in result.stopped
    assert result.best is not None
    assert result.best.config == F32


@pytest.mark.parametrize("error", [UsageError("no such device"), EnvironmentFailure("no driver")])
def test_errors_that_every_trial_would_meet_end_the_search(tmp_path: Path, error: Exception) -> None:
    def evaluate(config: QuantConfig) -> Score:
        if config.is_float:
            return measure(config)
        raise error

    with pytest.raises(type(error), match=str(error)):
        tune(evaluate, tmp_path, space=ONE_AXIS)
    assert len(tune(measure, tmp_path, space=ONE_AXIS).trials) == 4  # and nothing is held against a configuration


def test_f32_that_cannot_be_measured_ends_the_search_and_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match=r"f32 artifact cannot be measured.*no kernel"):
        tune(Recorder(fail=lambda c: c == F32), tmp_path, space=ONE_AXIS)
    assert tune(measure, tmp_path, space=ONE_AXIS, max_trials=1).baseline is not None


def test_latency_objective_without_latency_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measured no latency"):
        tune(lambda c: Score(0.5, None, 1, 1), tmp_path, objective=Objective("latency", 0.01))


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_interrupt_keeps_everything(tmp_path: Path, stop_at: int) -> None:
    evaluate = Recorder(stop_at=stop_at)
    result = tune(evaluate, tmp_path, space=ONE_AXIS, sampler="grid")
    assert result.interrupted
    assert len(result.trials) == max(0, stop_at - 2)
    again = Recorder()
    finished = tune(again, tmp_path, space=ONE_AXIS, sampler="grid")
    assert not finished.interrupted
    assert again.seen[0] == evaluate.seen[-1]  # the interrupted one is measured first
    assert len(finished.trials) == 4
    assert sorted(map(str, [*evaluate.seen[:-1], *again.seen])) == sorted({str(c) for c in again.seen + evaluate.seen})


def test_time_budget_counts_earlier_sessions(tmp_path: Path) -> None:
    def evaluate(config: QuantConfig) -> Score:
        time.sleep(0.05)
        return measure(config)

    result = tune(evaluate, tmp_path, time_budget_s=0.12)
    assert result.stopped == "time budget of 0.12 s"
    assert len(result.trials) in (1, 2)
    again = Recorder()
    tune(again, tmp_path, time_budget_s=0.12)
    assert again.seen == []


@pytest.mark.parametrize("budget", [{"max_trials": 0}, {"time_budget_s": 0.0}])
def test_empty_budget_is_refused(tmp_path: Path, budget: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        tune(measure, tmp_path, **budget)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": {"model": "b", "target": "cpu"}}, "made with model=a, now model=b"),
        ({"fingerprint": {"model": "a"}}, "target=cpu, now target=null"),
        ({"objective": Objective("size", 0.01)}, "objective=accuracy"),
        ({"space": SMALL}, "space="),
    ],
)
def test_another_search_in_the_folder_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    options = {"fingerprint": {"model": "a", "target": "cpu"}, "space": ONE_AXIS, "max_trials": 1}
    tune(measure, tmp_path, **options)
    with pytest.raises(UsageError, match=message):
        tune(measure, tmp_path, **{**options, **change})


def test_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    optuna.create_study(study_name="quantune", storage=f"sqlite:///{path}")
    optuna.create_study(study_name="quantune-baselines", storage=f"sqlite:///{path}")
    with pytest.raises(UsageError, match="did not make"):
        tune(measure, tmp_path)
    assert path.exists()


GARBLINGS = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello" * 1000,
    "torn": lambda data: data[: len(data) // 2],
    "zeros": lambda data: data[:4096] + bytes(len(data) - 4096),
}


@pytest.mark.parametrize("name", GARBLINGS)
def test_damaged_database_is_moved_aside_and_said(tmp_path: Path, name: str) -> None:
    tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)
    path = tmp_path / "study.db"
    garbled = GARBLINGS[name](path.read_bytes())
    path.write_bytes(garbled)
    with pytest.raises(UsageError, match=r"study\.db is damaged.*moved to study\.db\.damaged-"):
        tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)
    (kept,) = tmp_path.glob("study.db.damaged-*")
    assert kept.read_bytes() == garbled
    assert len(tune(measure, tmp_path, space=ONE_AXIS, max_trials=1).trials) == 1


@pytest.mark.parametrize("value", ['"nonsense"', '{"accuracy": 7}', "null"])
def test_damaged_score_is_noticed(tmp_path: Path, value: str) -> None:
    tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)
    connection = sqlite3.connect(tmp_path / "study.db")
    connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'score'", (value,))
    connection.commit()
    connection.close()
    with pytest.raises(UsageError, match=r"trial 0.*not a score.*moved to"):
        tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)


def test_latencies_of_finalists_decide(tmp_path: Path) -> None:
    asked: list[QuantConfig] = []

    def retime(configs: list[QuantConfig]) -> dict[QuantConfig, float]:
        asked.extend(configs)
        return {c: 20.0 if c.is_float else 2.0 + i for i, c in enumerate(reversed(configs))}

    objective = Objective("latency", 0.2)
    result = tune(measure, tmp_path, objective=objective, space=ONE_AXIS, retime=retime, finalists=2)
    assert asked[0] == F32
    assert len(asked) == 3
    assert result.best is not None
    assert result.best.config == asked[-1]
    assert result.best.score is not None
    assert (result.best.score.latency_ms, result.best.retimed) == (2.0, True)


def test_the_best_of_every_program_is_timed_again() -> None:
    def trial(number: int, program: str | None) -> TuningTrial:
        score = Score(0.8, 1.0, 1, 10, program=program)
        return TuningTrial(number, QuantConfig(calib=number + 1), "complete", score)

    trials = [trial(i, program) for i, program in enumerate(("a", "a", "b", None, "b", "c", "a", None))]
    assert [t.number for t in to_time(trials, 2)] == [0, 1, 2, 5]
    assert [t.number for t in to_time(trials, 0)] == [0, 2, 5]
    assert to_time(trials, 9) == trials


def test_events_tell_what_happens(tmp_path: Path) -> None:
    events = []
    fail = Recorder(fail=lambda c: c.scheme == "symmetric")
    tune(fail, tmp_path, space=ONE_AXIS, sampler="grid", first=(), on_event=events.append)
    kinds = [e.kind for e in events]
    assert kinds == ["started", "finished", "started", "finished", "started", "failed", *["started", "finished"] * 2]
    assert events[0].is_baseline
    assert [e.done for e in events if e.kind != "started"] == [0, 1, 2, 3, 4]
    assert events[-1].total == 4
    assert events[-1].left_s == 0
    assert events[3].left_s is not None
    assert events[-1].best is not None
    assert events[5].trial.reason == "no kernel for it"


def test_partly_measured_trials_cannot_win() -> None:
    f32 = TuningTrial(0, F32, "complete", Score(0.8, 9.0, 9, 1000))
    partial = TuningTrial(0, QuantConfig(calib=1), "complete", Score(0.9, 1.0, 1, 100))
    whole = TuningTrial(1, QuantConfig(), "complete", Score(0.7, 5.0, 1, 1000))
    assert choose([partial, whole], {"f32": f32}, Objective())[0] == whole


def test_pareto_front() -> None:
    scores = [(0.8, 10.0, 9), (0.8, 11.0, 9), (0.7, 5.0, 9), (0.6, 5.0, 9), (0.6, 6.0, 1), (0.8, 10.0, 9)]
    trials = [TuningTrial(i, QuantConfig(), "complete", Score(*s, 10)) for i, s in enumerate(scores)]
    assert [t.number for t in pareto_front(trials, Objective())] == [0, 2, 4]


def test_shared_storage_serves_two_folders(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    first = tune(measure, tmp_path / "a", space=ONE_AXIS, max_trials=2, storage=url)
    again = Recorder()
    second = tune(again, tmp_path / "b", space=ONE_AXIS, storage=url)
    assert second.trials[:2] == first.trials
    assert len(again.seen) == 2
    assert not (tmp_path / "b" / "study.db").exists()


def test_score_written_before_a_kill_counts(tmp_path: Path) -> None:
    """Killed between storing the score and closing the trial: nothing is measured again."""
    tune(measure, tmp_path, space=ONE_AXIS, max_trials=2)
    connection = sqlite3.connect(tmp_path / "study.db")
    connection.execute(
        "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE study_id = 1 AND number = 1"
    )
    connection.execute(
        "DELETE FROM trial_values WHERE trial_id IN (SELECT trial_id FROM trials WHERE state = 'RUNNING')"
    )
    connection.commit()
    connection.close()
    again = Recorder()
    assert len(tune(again, tmp_path, space=ONE_AXIS, max_trials=2).trials) == 2
    assert again.seen == []
