"""The table at the end of a search: no number and no part of a configuration is cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantune.cli.console import Console
from quantune.quantization.config import QuantConfig
from quantune.search.result import TuningTrial
from quantune.search.scores import Objective, Score

LONG = QuantConfig(
    calib=10000, scheme="symmetric_power2", clip="percentile", precision="mixed", weight_clip="power", bias="sequential"
)


def _show(capsys: pytest.CaptureFixture[str]) -> list[str]:
    f32 = TuningTrial(0, QuantConfig(precision="f32"), "complete", Score(0.9815, 0.134, 2_876_543, 1000))
    best = TuningTrial(1, LONG, "complete", Score(0.9765, 0.039, 818_000, 1000))
    tuning = SimpleNamespace(objective=Objective(), baseline=f32, trials=(best,), stopped="1 trial")
    result: Any = SimpleNamespace(tuning=tuning, best=best, artifact=None, report={"verdict": "good"})
    Console().show(result, Path("nowhere"))
    return capsys.readouterr().out.splitlines()


def test_piped_output_has_each_trial_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = [line for line in _show(capsys) if line.startswith("chosen")]
    assert [cell.strip() for cell in line.split("│")][1] == "97.65%"
    assert line.rstrip().endswith(str(LONG))


def test_a_narrow_terminal_breaks_configurations_and_no_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    lines = _show(capsys)
    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    numbers = {cell for row in rows for cell in row[1:5]}
    assert {"98.15%", "97.65%", "0.134", "0.039", "2.88", "0.82"} <= numbers
    start = next(i for i, row in enumerate(rows) if row[0] == "chosen")
    assert "".join(row[5] for row in rows[start:]) == str(LONG)
