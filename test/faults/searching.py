"""A real search that takes seconds: a network of two layers in text, drawn images, short measurements of latency."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import short

HERE = Path(__file__).parent
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])

NETWORK = """
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
func.func @main(%x: tensor<1x3x8x8xf32>) -> tensor<1x4xf32> {{
  %zero = arith.constant 0.0 : f32
  %w0 = arith.constant dense<"0x{first}"> : tensor<6x3x3x3xf32>
  %w1 = arith.constant dense<"0x{last}"> : tensor<4x6x6x6xf32>
  %e0 = tensor.empty() : tensor<1x6x6x6xf32>
  %i0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<1x6x6x6xf32>) -> tensor<1x6x6x6xf32>
  %0 = linalg.conv_2d_nchw_fchw {{dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "first"}} ins(%x, %w0 : tensor<1x3x8x8xf32>, tensor<6x3x3x3xf32>)
    outs(%i0 : tensor<1x6x6x6xf32>) -> tensor<1x6x6x6xf32>
  %1 = linalg.generic {{indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
    ins(%0 : tensor<1x6x6x6xf32>) outs(%e0 : tensor<1x6x6x6xf32>) attrs = {{quantune.layer = "relu"}} {{
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ugt, %a, %zero : f32
    %s = arith.select %c, %a, %zero : f32
    linalg.yield %s : f32
  }} -> tensor<1x6x6x6xf32>
  %e1 = tensor.empty() : tensor<1x4x1x1xf32>
  %i1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<1x4x1x1xf32>) -> tensor<1x4x1x1xf32>
  %2 = linalg.conv_2d_nchw_fchw {{dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "last"}} ins(%1, %w1 : tensor<1x6x6x6xf32>, tensor<4x6x6x6xf32>)
    outs(%i1 : tensor<1x4x1x1xf32>) -> tensor<1x4x1x1xf32>
  %3 = tensor.collapse_shape %2 [[0], [1, 2, 3]] : tensor<1x4x1x1xf32> into tensor<1x4xf32>
  return %3 : tensor<1x4xf32>
}}
"""

DATA = """
import numpy as np

def _draw(count, seed):
    random = np.random.default_rng(seed)
    return [(random.standard_t(4, (3, 8, 8)).astype(np.float32), int(random.integers(4))) for _ in range(count)]

def calib():
    return _draw(16, 1)

def evaluation():
    return _draw(500, 2)
"""

TRIALS = 5


def write(folder: Path) -> None:
    """Put the network and its data into a folder."""
    random = np.random.default_rng(0)
    first, last = (random.normal(0, 0.3, shape).astype("<f4") for shape in ((6, 3, 3, 3), (4, 6, 6, 6)))
    first *= np.exp2(random.normal(0, 1.5, (6, 1, 1, 1))).astype("<f4")
    text = NETWORK.format(first=first.tobytes().hex().upper(), last=last.tobytes().hex().upper())
    (folder / "net.mlir").write_text(text, encoding="utf-8")
    (folder / "tiny_data.py").write_text(DATA, encoding="utf-8")


class Child(Protocol):
    """What a Popen and a Fork have in common."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Fork:
    """A search in a fork of a process that has imported everything, in a session of its own."""

    def __init__(self, words: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
        self._process = _context.Process(target=short.fork, args=(words, environment, folder, log))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number, which is also that of its group."""
        return self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code, less than 0 for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended; raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("quantune-compile", timeout or 0)
        return code


@dataclass
class Search:
    """A command line with folders of its own, and everything that it starts marked by a word in the environment.

    environment, options: besides those that every search has. ready: begin in a fork of a process that has imported
    everything, which takes half the time.
    """

    folder: Path
    cache: Path
    data: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    ready: bool = False

    @property
    def out(self) -> Path:
        """Where the results go."""
        return self.folder / "out"

    @property
    def temporary(self) -> Path:
        """The folder for temporary files."""
        return self.folder / "tmp"

    def start(self) -> Child:
        """Start the search in a session of its own; what it prints is ``said``."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        words = [str(self.data / "net.mlir"), "--calib", "tiny_data:calib", "--eval", "tiny_data:evaluation"]
        words += ["--max-trials", str(TRIALS), "--no-transfer", "-o", str(self.out), *self.options]
        environment = {
            **os.environ, "PYTHONPATH": str(self.data), "XDG_CACHE_HOME": str(self.cache),
            "TMPDIR": str(self.temporary), "QUANTUNE_TEST_TOKEN": self.token, **self.environment,
        }  # fmt: skip
        log = self.folder / "log.txt"
        if self.ready:
            return Fork(words, environment, self.folder, log)
        with log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, str(HERE / "short.py"), *words], env=environment, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip

    def run(self, timeout_s: float = 3600) -> int:
        """The exit code of a search that is left alone."""
        with ended(self.start()) as child:
            return child.wait(timeout_s)

    def said(self) -> str:
        """All that the last run printed."""
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def processes(self, name: str = "") -> list[int]:
        """The living processes that this search started and whose command line has ``name`` in it."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if self._owns(pid, name)]

    def _owns(self, pid: int, name: str) -> bool:
        with contextlib.suppress(OSError):
            if self.token.encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                return False
            return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def wait_until_gone(self, seconds: float = 600.0) -> list[int]:
        """The processes that are still there after some time; ideally none."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        return left

    def finished(self) -> dict[int, tuple[float, str]]:
        """Number -> (value, when it was finished) of the trials that the study has as complete."""
        file = self.out / "study.db"
        if not file.is_file():
            return {}
        query = (
            "select t.number, v.value, t.datetime_complete from trials t join trial_values v on v.trial_id = t.trial_id"
            " where t.state = 'COMPLETE'"
        )
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            try:
                return {number: (value, when) for number, value, when in database.execute(query)}
            except sqlite3.OperationalError:  # the tables are not made yet
                return {}

    def answer(self) -> dict[str, object]:
        """What a finished search answers, less what a clock measured."""
        report = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        rows = [row for row in report["trials"] if row["state"] == "complete"]
        return {
            "trials": [
                (row["kind"], row["config"], row["measurement"]["accuracy"], row["measurement"]["images"])
                for row in sorted(rows, key=lambda row: (row["kind"], row["number"]))
            ],
            "best": report["best"]["config"],
            "images": report["best"]["measurement"]["images"],
        }


@dataclass(frozen=True)
class Uninterrupted:
    """What a search that nobody disturbs answers and leaves, and its time with an empty and with a full cache."""

    data: Path
    cache: Path
    out: Path
    answer: dict[str, object]
    cold_s: float
    warm_s: float


def uninterrupted(folder: Path) -> Uninterrupted:
    """Search twice, with an empty cache and again with what the first search left there, to the same answer."""
    data = folder / "data"
    data.mkdir()
    write(data)
    seconds, answers = [], []
    for name in ("cold", "warm"):
        search = Search(folder / name, folder / "cache", data)
        search.folder.mkdir()
        start = time.monotonic()
        assert search.run() == 0, search.said()
        seconds.append(time.monotonic() - start)
        answers.append(search.answer())
        assert search.wait_until_gone() == []
        assert list(search.temporary.iterdir()) == []
    assert answers[0] == answers[1]
    told = json.loads((folder / "cold" / "out" / "report.json").read_text(encoding="utf-8"))["environment"]
    for phase in ("import", "calibration", "search", "compilation", "evaluation", "measurement"):
        assert re.fullmatch(r"[\d.]+ [MG]B", told[f"peak memory, {phase}"])
    return Uninterrupted(data, folder / "cache", search.out, answers[0], *seconds)


@contextlib.contextmanager
def ended(child: Child) -> Iterator[Child]:
    """Leave no child behind, whatever the body does."""
    try:
        yield child
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
