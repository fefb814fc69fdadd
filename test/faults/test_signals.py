"""Signals at every stage of a search: one line, the signal's code, nothing measured lost, and the rerun goes on."""

from __future__ import annotations

import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from obligations import Obligation

from quantune.process import interrupts

PROMISE = "an interrupted command ends with one line and the signal's code, and the same command finishes the search"
Obliged = Callable[[str], Obligation]

MOMENTS = {  # name -> the function at whose call the signals come, and at which of the calls
    "import": ("quantune.api.import_any", 1),
    "calibration": ("quantune.quantization.calibration.collect", 1),
    "lowering": ("quantune.compiler.pipelines.lower", 1),
    "compilation": ("quantune.process.job.Job.run", 1),
    "first evaluation": ("quantune.runtime.engines.LocalRunner.run", 1),
    "third evaluation": ("quantune.runtime.engines.LocalRunner.run", 3),
    "timing": ("quantune.runtime.engines.LocalTimer.time", 2),
    "finalists": ("quantune.tuning.evaluator.Evaluator.retime", 1),
    "artifact": ("quantune.tuning.builder.Builder.artifact", 1),
    "saving": ("quantune.runtime.artifact.write_atomically", 1),
    "check of the file": ("quantune.tuning.evaluator.Evaluator.verify", 1),
    "recipe": ("quantune.process.places.write", 1),
    "report": ("quantune.tuning.describe.write_report", 1),
    "last table": ("quantune.cli.console.Console.show", 1),
}

CLOSING = (
    "quantune.tuning.builder.Builder.artifact",
    "quantune.tuning.evaluator.Evaluator.__exit__",
    "quantune.tuning.builder.Builder.close",
)


def _signal_at(monkeypatch: pytest.MonkeyPatch, moment: str, numbers: Sequence[signal.Signals]) -> list[str]:
    """Send a signal to this process at a moment, and the others while it closes; returns a list of what came."""
    came: list[str] = []
    rest = list(numbers[1:])

    def first(calls: int) -> None:
        if calls == MOMENTS[moment][1]:
            came.append(moment)
            signal.raise_signal(numbers[0])

    def later(calls: int) -> None:
        if came and rest:
            signal.raise_signal(rest.pop())

    _before(monkeypatch, MOMENTS[moment][0], first)
    for target in CLOSING:
        _before(monkeypatch, target, later)
    return came


def _before(monkeypatch: pytest.MonkeyPatch, target: str, act: Callable[[int], None]) -> None:
    """Call ``act`` with the number of the call before each call of a function."""
    original: Callable[..., Any] = pkgutil.resolve_name(target)
    calls = [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        act(calls[0])
        return original(*arguments, **options)

    monkeypatch.setattr(target, call)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found in a cache, or the moment would not come."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _interrupt(
    folder: Path, promise: Obligation, moment: str, numbers: Sequence[signal.Signals],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tiny.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts, "SAME_WISH_S", 0.0)  # every signal counts, however fast they follow
        came = _signal_at(patch, moment, numbers)
        code = tiny.search(folder)
    told = capsys.readouterr().err.splitlines()
    names = "+".join(number.name for number in numbers)
    promise.tried(bool(came), f"{names} at {moment}: the moment did not come")
    promise.tried(code == 128 + numbers[0], f"{names} at {moment}: exit code {code}: {told}")
    lines = [line for line in told if not line.startswith("quantune-compile: interrupted")]
    promise.tried(len(told) == 1 and not lines, f"{names} at {moment}: printed {told}")
    before = tiny.trials(folder / "out") if (folder / "out" / "report.json").exists() else []
    again = tiny.search(folder)
    said = capsys.readouterr().err
    promise.tried(again == 0 and not said, f"{names} at {moment}: the rerun gives {again}: {said}")
    found = tiny.trials(folder / "out")
    kept = set(before) <= set(found) and len(found) == tiny.TRIALS + 1  # f32 too
    promise.tried(kept, f"{names} at {moment}: {before} were measured, then {found}")


@pytest.mark.parametrize(
    "moment",
    ["report", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("third evaluation", "artifact"))],
)
def test_one_signal(moment: str, tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str]) -> None:
    _interrupt(tmp_path, obligation(PROMISE), moment, [signal.SIGTERM], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM] * 2, [signal.SIGINT] * 3])
@pytest.mark.parametrize("moment", MOMENTS)
def test_signals_at_every_stage(
    moment: str, numbers: list[signal.Signals], tmp_path: Path, obligation: Obliged,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _interrupt(tmp_path, obligation(PROMISE), moment, numbers, capsys)


def test_a_second_signal_while_the_artifact_is_checked_leaves_the_report(
    tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make(tmp_path)
    monkeypatch.setattr(interrupts, "SAME_WISH_S", 0.0)
    _signal_at(monkeypatch, "third evaluation", [signal.SIGINT])
    _signal_at(monkeypatch, "artifact", [signal.SIGINT])
    code = tiny.search(tmp_path)
    promise = obligation("a second signal while results are written loses none")
    promise.tried(code == 130, f"exit code {code}")
    promise.tried(bool(tiny.trials(tmp_path / "out")), "nothing in the report")
    promise.tried((tmp_path / "out" / "report.html").is_file(), "no report.html")
    promise.tried("Traceback" not in capsys.readouterr().err, "a traceback")


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True], ids=["plain", "nohup"])
def test_a_hangup_of_a_process(tmp_path: Path, obligation: Obliged, ignored: bool) -> None:
    tiny.make(tmp_path)
    command = [*(["nohup"] if ignored else []), sys.executable, "-m", "quantune.cli.compile", *tiny.arguments(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path)
    while not (tmp_path / "out" / "study.db").exists() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGHUP)
    _, told = child.communicate(timeout=600)
    promise = obligation("SIGHUP interrupts, and is ignored under nohup")
    promise.tried(child.returncode == (0 if ignored else 129), f"exit code {child.returncode}: {told.decode()}")
    promise.tried(b"Traceback" not in told, told.decode())
