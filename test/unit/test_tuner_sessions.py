"""Searches that are killed, shared and continued by other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from quantune.errors import UsageError
from quantune.process.owner import lease, lease_is_dead
from quantune.search.scores import Score
from quantune.search.tuner import tune


def test_lease_tells_living_from_dead() -> None:
    mine = lease()
    assert not lease_is_dead(mine)
    assert not lease_is_dead({**mine, "host": "elsewhere"})
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    for dead in ({**mine, "pid": child.pid}, {**mine, "started": "1"}, {**mine, "boot": "other"}, None, "x"):
        assert lease_is_dead(dead)


SESSION = """
import json, sys, time, hashlib, optuna
from pathlib import Path
from quantune.quantization import space
from quantune.search.scores import Objective, Score
from quantune.search.tuner import tune
from optuna.distributions import CategoricalDistribution
optuna.logging.set_verbosity(optuna.logging.ERROR)
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
def note(what, config):
    with log.open("a") as file:
        file.write(json.dumps([what, str(config)]) + chr(10))
def evaluate(config):
    note("begin", config)
    time.sleep(0.1)
    return Score(0.5, 1.0, 1, 10)
def on_event(event):
    if event.kind == "finished":
        note("end", event.trial.config)
small = {n: CategoricalDistribution(v if n == "scheme" else v[:2] if n == "clip" else v[:1])
         for n, v in space.PARAMETERS.items()}
result = tune(evaluate, folder, objective=Objective("size", 0.1), space=small, on_event=on_event)
print(len(result.trials), len({t.config for t in result.trials}))
"""


def _session(folder: Path, log: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", textwrap.dedent(SESSION), str(folder), str(log)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _lines(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _wait_for(log: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while len(_lines(log)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_session_loses_only_the_running_trial(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for count in (3, 8):
        process = _session(tmp_path / "out", log)
        _wait_for(log, count, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = _session(tmp_path / "out", log)
    output, errors = process.communicate(timeout=120)
    assert output.split() == ["8", "8"], errors
    ended = [config for what, config in _lines(log) if what == "end"]
    assert len(ended) == len(set(ended))
    begun = [config for what, config in _lines(log) if what == "begin"]
    assert len(set(begun)) == 9
    assert len(begun) - 9 <= 2  # at most the trial that each kill interrupted


def test_second_process_on_the_folder_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _session(tmp_path / "out", log)
    try:
        _wait_for(log, 1, process)
        with pytest.raises(UsageError, match=f"process {process.pid} is searching there"):
            tune(lambda config: Score(0.5, 1.0, 1, 100), tmp_path / "out")
    finally:
        process.kill()
        process.communicate()
