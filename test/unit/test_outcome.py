"""The end of a search: only a file that answers as its trial did is called the best. Warnings are data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantune.errors import EnvironmentFailure, QuantuneError, RunFailed
from quantune.metrics import METRICS
from quantune.quantization.config import QuantConfig
from quantune.report.report import build_report, verdict
from quantune.runtime.measure import Samples
from quantune.search.result import TuningResult, TuningTrial
from quantune.search.scores import Objective, Score
from quantune.tuning import outcome
from quantune.tuning.notices import Notices
from quantune.tuning.outcome import finish

IMAGES = 200
TRIAL = TuningTrial(0, QuantConfig(), "complete", Score(1.0, 2.0, 5, IMAGES))
TUNING = TuningResult(Objective(), (TRIAL,), {}, TRIAL, TRIAL, (TRIAL,), "1 trials", False, 1.0, 96, Path())


class Saved:
    """An artifact that is only bytes."""

    def save(self, path: Path) -> Path:
        path.write_bytes(b"new")
        return path


class Measures:
    """An evaluator that tells fixed numbers of the file."""

    metric = METRICS["top-1"]

    def __init__(self, accuracy: float | Exception, latency_ms: float = 2.0) -> None:
        self._accuracy, self._latency_ms = accuracy, latency_ms

    def verify(self, path: Path) -> float:
        assert path.read_bytes() == b"new"
        if isinstance(self._accuracy, Exception):
            raise self._accuracy
        return self._accuracy

    def time_beside(self, config: QuantConfig, path: Path) -> tuple[float, Samples]:
        median = self._latency_ms
        return 2.0, Samples((median,), median, (median, median, median), 10, (2 * median, 3 * median))


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the reports were given, while they and the recipe are written by a fake."""
    written: list[dict[str, Any]] = []

    def write(folder: Path, tuning: object, builder: object, evaluator: object, trial: object, artifact: object,
              warnings: tuple[str, ...], *, rejected: str | None = None,
              notes: tuple[str, ...] = ()) -> dict[str, Any]:  # fmt: skip
        written.append({"trial": trial, "warnings": warnings, "rejected": rejected})
        return {}

    monkeypatch.setattr(outcome, "write_reports", write)
    monkeypatch.setattr(outcome, "measured", lambda evaluator, trial: None)
    monkeypatch.setattr(
        outcome, "describe", lambda b, e, t, a, verified, latency: {"file": [verified, latency and latency.tail[0]]}
    )
    monkeypatch.setattr(outcome, "write_card", lambda recipe, report, folder: (folder / "README.md").touch())
    return written


def end(folder: Path, measures: Measures) -> outcome.Result:
    builder = SimpleNamespace(artifact=lambda config, measured: Saved())
    notices = Notices()
    with notices.listening():
        return finish(TUNING, builder, measures, folder, notices)  # type: ignore[arg-type]


@pytest.mark.parametrize("accuracy", [1.0, 1 - 1 / IMAGES])
def test_a_file_that_answers_as_its_trial_did_is_the_best(
    tmp_path: Path, reports: list[dict[str, Any]], accuracy: float
) -> None:
    result = end(tmp_path, Measures(accuracy, 2.1))
    assert result.path == tmp_path / "best.vmfb"
    assert (tmp_path / "best.vmfb").read_bytes() == b"new"
    assert json.loads((tmp_path / "best.json").read_text())["file"] == [accuracy, 4.2]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["README.md", "best.json", "best.vmfb"]
    assert reports == [{"trial": TRIAL, "warnings": (), "rejected": None}]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (0.03, r"reaches top-1 3\.00% on 200 images, its trial reached 100\.00%"),
        (1 - 2 / IMAGES, r"reaches top-1 99\.00% on 200 images, its trial reached 100\.00%"),
        (RunFailed("it crashed"), "does not run as its trial did: it crashed"),
    ],
)
def test_a_file_that_does_not_is_called_nothing(
    tmp_path: Path, reports: list[dict[str, Any]], found: float | Exception, line: str
) -> None:
    (tmp_path / "best.vmfb").write_bytes(b"of an earlier session")
    (tmp_path / "best.json").write_text("{}")
    (tmp_path / "study.db").write_bytes(b"trials")
    with pytest.raises(RunFailed, match=line) as caught:
        end(tmp_path, Measures(found))
    assert caught.value.exit_code == 1
    assert f"kept as {tmp_path / 'rejected.vmfb'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["previous.json", "previous.vmfb", "rejected.vmfb", "study.db"]
    assert (tmp_path / "rejected.vmfb").read_bytes() == b"new"
    assert (tmp_path / "previous.vmfb").read_bytes() == b"of an earlier session"
    assert [(r["trial"], r["rejected"]) for r in reports] == [(None, str(caught.value))]


def test_an_interruption_leaves_the_earlier_answer(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    (tmp_path / "best.vmfb").write_bytes(b"of an earlier session")
    measures = Measures(1.0)
    measures.time_beside = lambda config, path: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    result = end(tmp_path, measures)
    assert result.tuning.interrupted
    assert result.path is None
    assert len(reports) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.vmfb"]
    assert (tmp_path / "best.vmfb").read_bytes() == b"of an earlier session"


def test_a_file_slower_than_its_trial_is_told(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    result = end(tmp_path, Measures(1.0, 3.0))
    told = "the artifact takes 3 ms, the program that its trial measured 2 ms, timed side by side"
    assert result.warnings == (told,)
    assert reports[0]["warnings"] == (told,)


@pytest.mark.parametrize("error", [RunFailed("killed"), EnvironmentFailure("no memory")])
def test_a_file_that_cannot_be_timed_stands(
    error: QuantuneError, tmp_path: Path, reports: list[dict[str, Any]]
) -> None:
    measures = Measures(1.0)
    measures.time_beside = lambda config, path: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
    result = end(tmp_path, measures)
    assert result.path == tmp_path / "best.vmfb"
    assert json.loads((tmp_path / "best.json").read_text()) == {"file": [1.0, None]}
    assert result.warnings == (f"the artifact could not be timed, the latency is that of its trial: {error}",)


def test_a_rejected_file_is_the_verdict() -> None:
    report = build_report(TUNING, model="net", target="cpu", rejected="3 % instead of 100 %", warnings=["odd images"])
    assert verdict(report) == "There is no answer: 3 % instead of 100 %."
    assert (report.best, report.best_quantized, report.feasible) == (None, None, False)
    assert report.warnings == ["odd images"]
    assert len(report.trials) == 1  # what was measured is shown


def test_warnings_are_kept_once_and_only_while_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    log, notices = logging.getLogger("quantune.data.splits"), Notices()
    top = logging.getLogger("quantune")
    before = top.level
    top.setLevel(logging.ERROR)
    try:
        log.warning("too early")
        with notices.listening():
            log.warning("%d images are copies\nof others", 3)
            log.warning("%d images are copies\nof others", 3)
            log.info("no warning")
            logging.getLogger("other").warning("not ours")
        log.warning("too late")
        assert top.level == logging.ERROR
    finally:
        top.setLevel(before)
    assert notices.texts == ("3 images are copies of others",)
    assert not top.handlers
