"""Files that crash or hang a library cost the process that reads them, and one line here."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from quantune.errors import ImportFailed, UsageError
from quantune.frontend import files
from quantune.process import guard

VALID = "func.func @main(%x: tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> { return %x : tensor<1x3x4x4xf32> }"
DEEP = "#a = " + "[" * 200_000
"""Text on which MLIR's parser, which calls itself for each bracket, overflows its stack."""


def _in_fork(body: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process whose work, in a fork, is ``body``."""
    code = (
        "import os, signal, sys, time\nfrom quantune.process import guard\ndef work():\n"
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\n    return 7\nsys.exit(guard.in_fork(work, lambda text: print(text, file=sys.stderr)))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd, timeout=120
    )


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("print('done')", 7, ""),
        ("sys.exit(3)", 3, ""),
        ("with guard.reading('a.x', 9): os.write(2, b'x\\nLLVM ERROR: no\\n'); os.abort()", 2,
         "a.x cannot be read: crashed (SIGABRT): LLVM ERROR: no"),
        ("with guard.reading('a', 9): signal.raise_signal(signal.SIGSEGV)", 2, "a cannot be read: crashed (SIGSEGV)"),
        ("with guard.reading('a.x', 9): pass\nos.abort()", 1, "it: crashed (SIGABRT)"),
        ("with guard.working('the passes'): os.kill(os.getpid(), 9)", 1, "the passes: crashed (SIGKILL)"),
        ("guard.PROCESSOR_SECONDS = 0\nwith guard.bounded(0, 0):\n    while True: pass", 1,
         "it: takes too long (the time for it ran out)"),
        ("try:\n    with guard.bounded(0): bytearray(1 << 36)\nexcept MemoryError: print('small')", 7, ""),
        ("with guard.reading('a', 0): pass\nos.write(2, b'seen\\n')", 7, "seen"),
        ("os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)", 143, ""),
    ],
)  # fmt: skip
def test_a_fork_ends_in_one_line(body: str, code: int, told: str, tmp_path: Path) -> None:
    ran = _in_fork(body, tmp_path)
    assert (ran.returncode, ran.stderr.strip()) == (code, told)


def test_a_fork_ends_with_the_process_that_waits(tmp_path: Path) -> None:
    ran = _in_fork("open('pid', 'w').write(str(os.getpid()))\nos.kill(os.getppid(), 9)\ntime.sleep(60)", tmp_path)
    assert ran.returncode == -signal.SIGKILL  # its pipes are closed by then: the fork, which had them too, is gone
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert (
        not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"
    )  # nobody may have waited for it


def test_bounds_are_taken_back() -> None:
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_CPU)
    before = [resource.getrlimit(kind) for kind in kinds]
    with guard.bounded(1 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS)[0] < 1 << 46
        assert 0 < resource.getrlimit(resource.RLIMIT_CPU)[0] < 1 << 20
    assert [resource.getrlimit(kind) for kind in kinds] == before
    with guard.reading("x", 1):  # where there is no fork nothing is bounded
        assert [resource.getrlimit(kind) for kind in kinds] == before


@pytest.mark.parametrize("tool", ["quantune.cli.opt", "quantune.cli.compile"])
def test_a_file_that_crashes_the_parser_is_one_line(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.mlir"
    path.write_text(DEEP)
    more = ["--emit=linalg", "--quiet"] if tool.endswith("compile") else []
    command = [sys.executable, "-m", tool, str(path), *more]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 2
    [line] = ran.stderr.splitlines()
    assert "deep.mlir'" in line
    assert "(SIGSEGV)" in line


def test_models_in_files(tmp_path: Path) -> None:
    path = tmp_path / "net.mlir"
    path.write_text(VALID)
    assert files.import_file(str(path)).name == "net"
    path.write_text(VALID.replace("tensor<1x3x4x4xf32>", "i32"))
    with pytest.raises(ImportFailed, match="model 'net'"):
        files.import_file(str(path))
    path.write_text("func.func @main(")
    with pytest.raises(UsageError, match=r"model 'net' is not a module of the linalg dialects: 1:16: error: expected"):
        files.import_file(str(path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.mlir", "No such file"),
        (".", "is no file"),
        ("a" * 300 + ".mlir", "File name too long"),
        ("a\0.mlir", "No such file"),
        ("\ud800.pt2", "No such file|surrogates not allowed"),
    ],
)
def test_names_that_are_no_file(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        files.import_file(name)


def test_a_reader_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.mlir"
    path.write_text(VALID)
    monkeypatch.setattr(files, "_SECONDS", 0.01)
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"net\.mlir': takes too long to read"):
        files.import_file(str(path))
    assert time.monotonic() - started < 60


SAMPLES = sorted(Path(os.environ.get("QUANTUNE_CRASHES", "/nowhere")).glob("*"))


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLES, reason="QUANTUNE_CRASHES names no folder of files")
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_files_that_crashed_a_parser(sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.mlir"
    path.write_bytes(sample.read_bytes())
    command = [sys.executable, "-m", "quantune.cli.opt", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
    assert ran.returncode in (0, 2)
    assert len(ran.stderr.splitlines()) == (ran.returncode == 2)
    with pytest.raises((UsageError, ImportFailed)):
        files.import_file(str(path))
