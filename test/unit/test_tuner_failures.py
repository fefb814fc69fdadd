"""What fails for good, what is tried again, and what a search says of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tuner_bench import F32, ONE_AXIS, Recorder, measure
from tuner_bench import quick_disk as quick_disk

from quantune.errors import CompileFailed, RunFailed, UsageError
from quantune.quantization.config import QuantConfig
from quantune.search.claims import is_transient
from quantune.search.history import MAX_TRANSIENT
from quantune.search.loop import MAX_FAILURES_IN_A_ROW
from quantune.search.scores import Score, TrialFailed
from quantune.search.tuner import tune

pytestmark = pytest.mark.usefixtures("quick_disk")


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CompileFailed("crashed", transient=True), True),
        (CompileFailed("failed with exit status 1"), False),
        (TrialFailed("no memory", transient=True), True),
        (MemoryError(), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (wrapped(CompileFailed("cannot write"), OSError(errno.ENOSPC, "No space left on device")), True),
        (wrapped(TrialFailed("x"), RunFailed("the run ended with SIGKILL", transient=True)), True),
        (ZeroDivisionError("boom"), False),
    ],
)
def test_failures_of_the_machine_are_told_from_others(error: Exception, expected: bool) -> None:
    assert is_transient(error) == expected


class Faulty(Recorder):
    """Fails some configurations by the machine's fault, as long as it has one."""

    def __init__(self, faults: int) -> None:
        super().__init__()
        self.faults = faults

    def __call__(self, config: QuantConfig) -> Score:
        self.seen.append(config)
        if config.scheme == "symmetric" and self.faults:
            self.faults -= 1
            raise RunFailed("the run ended with SIGKILL", transient=True)
        return measure(config)


def test_a_fault_that_passes_costs_nothing(tmp_path: Path) -> None:
    evaluate = Faulty(1)
    result = tune(evaluate, tmp_path, space=ONE_AXIS, sampler="grid", first=())
    assert [t.state for t in result.trials] == ["complete"] * 4
    assert evaluate.seen[2] == evaluate.seen[3]  # tried again at once
    assert [t.config for t in result.trials] == [c for i, c in enumerate(evaluate.seen[1:]) if i != 2]


def test_a_fault_that_stays_is_tried_again_by_the_next_session(tmp_path: Path) -> None:
    evaluate = Faulty(100)
    result = tune(evaluate, tmp_path, space=ONE_AXIS, max_trials=4)
    failed = [t for t in result.trials if t.state == "failed"]
    assert [t.config.scheme for t in failed] == ["symmetric"]
    assert "SIGKILL" in str(failed[0].reason)
    assert "the same command tries it again" in str(failed[0].reason)
    assert len(evaluate.seen) == 1 + 3 + MAX_TRANSIENT
    evaluate = Faulty(0)
    result = tune(evaluate, tmp_path, space=ONE_AXIS, max_trials=4)
    assert [config.scheme for config in evaluate.seen] == ["symmetric"]
    assert {t.state for t in result.trials} == {"complete"}


def test_f32_is_tried_again_after_a_fault(tmp_path: Path) -> None:
    evaluate = Recorder(fail=lambda c: c == F32)
    for _ in range(2):
        with pytest.raises(TrialFailed, match="f32 artifact cannot be measured"):
            tune(evaluate, tmp_path, space=ONE_AXIS)
    assert evaluate.seen == [F32, F32]
    assert len(tune(measure, tmp_path, space=ONE_AXIS).trials) == 4


def test_retry_failed_measures_again_what_failed_before(tmp_path: Path) -> None:
    tune(Recorder(fail=lambda c: c.scheme == "symmetric"), tmp_path, space=ONE_AXIS)
    again = Recorder()
    assert [t.state for t in tune(again, tmp_path, space=ONE_AXIS).trials].count("failed") == 1
    assert again.seen == []
    still = Recorder(fail=lambda c: True)
    result = tune(still, tmp_path, space=ONE_AXIS, retry_failed=True)
    assert [c.scheme for c in still.seen] == ["symmetric"]  # once: its failure is a new one
    assert [t.state for t in result.trials].count("failed") == 1
    result = tune(again, tmp_path, space=ONE_AXIS, retry_failed=True)
    assert [c.scheme for c in again.seen] == ["symmetric"]
    assert [t.state for t in result.trials] == ["complete"] * 4
    assert tune(measure, tmp_path, space=ONE_AXIS).trials == result.trials  # a score stands above failures


def test_a_search_that_gives_up_says_what_to_do(tmp_path: Path) -> None:
    result = tune(Recorder(fail=lambda c: not c.is_float), tmp_path, sampler="grid")
    assert result.stopped.startswith(f"{MAX_FAILURES_IN_A_ROW} trials in a row failed, the last one: no kernel for it")
    assert "--retry-failed" in result.stopped
    assert len(tune(measure, tmp_path, sampler="grid", max_trials=10, retry_failed=True).trials) == 10


def test_a_study_of_an_earlier_version_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantune.search.tuner.FORMAT", "2")
    tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"study\.db: was written by another version.*format 2, this one writes 3.*"
                       "choose another output folder"):  # fmt: skip
        tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)


def test_long_values_are_shown_where_they_differ(tmp_path: Path) -> None:
    flags = " ".join(f"--flag-{i}=on" for i in range(30))
    tune(measure, tmp_path, space=ONE_AXIS, max_trials=1, fingerprint={"flags": flags})
    with pytest.raises(UsageError, match=r"made with flags=…--flag-20=on .*, now flags=…--flag-20=off .*"):
        tune(measure, tmp_path, space=ONE_AXIS, fingerprint={"flags": flags.replace("20=on", "20=off")})
