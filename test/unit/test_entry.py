"""What surrounds each command: one line and an exit code for whatever goes wrong, whatever becomes of its streams."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from quantune.cli.entry import run
from quantune.cli.streams import Notes, one_line
from quantune.errors import EnvironmentFailure, PassFailed, UsageError

COMMANDS = ("compile", "benchmark", "opt", "verify")


def _raising(error: BaseException) -> Callable[[list[str] | None, Notes], int]:
    def command(argv: list[str] | None, notes: Notes) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no such thing"), 2, "error: no such thing"),
        (PassFailed("pass x"), 1, "error: pass x"),
        (EnvironmentFailure("no GPU"), 4, "error: no GPU"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 4, "error: a/b: No space left on device; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 4, "error: system: Disk quota exceeded; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "error: a/b: Permission denied"),
        (MemoryError(), 4, "error: not enough memory"),
        (
            ModuleNotFoundError("No module", name="torch.nn"),
            4,
            "error: a package cannot be imported: No module; pip install 'quantune[compile]' brings",
        ),
        (KeyError("x"), 1, "internal error: KeyError: 'x' (test_entry.py:"),
        (RecursionError("too deep\nby far"), 1, r"internal error: RecursionError: too deep\nby far ("),
        (UsageError("\x1b[31mred\x00\ud800\n"), 2, r"error: \x1b[31mred\x00\ud800\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ],
)
def test_every_error_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quantune-x", _raising(error), None) == code
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"quantune-x: {line}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_exit_code_names_the_signal(number: int, code: int) -> None:
    def command(argv: list[str] | None, notes: Notes) -> int:
        signal.raise_signal(number)
        return 0

    assert run("quantune-x", command, None) == code


def test_tracebacks_are_printed_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QUANTUNE_DEBUG", "1")
    assert run("quantune-x", _raising(UsageError("no")), None) == 2
    assert "Traceback" in capsys.readouterr().err


def test_records_and_warnings_are_one_line_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: list[str] | None, notes: Notes) -> int:
        logging.getLogger("quantune.x").warning("ours\nof two lines")
        logging.getLogger("library").warning("noise")
        logging.getLogger("library").error("serious", exc_info=ValueError("why"))
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        thread = threading.Thread(target=lambda: 1 // 0)
        thread.start()
        thread.join()
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("quantune-x", command, None) == 0
    assert capsys.readouterr().err.splitlines() == [
        r"quantune-x: warning: ours\nof two lines",
        "quantune-x: error: serious: ValueError: why",
        "quantune-x: error: a thread failed: ZeroDivisionError: integer division or modulo by zero",
    ]


def test_everything_is_told_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: list[str] | None, notes: Notes) -> int:
        notes.verbose()
        logging.getLogger("library").info("noise")
        return 0

    assert run("quantune-x", command, None) == 0
    assert capsys.readouterr().err == "quantune-x: info: noise\n"


class Broken(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_output_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())

    def command(argv: list[str] | None, notes: Notes) -> int:
        print("a result")
        return 0

    assert run("quantune-x", command, None) == 1
    assert "standard output cannot be written: No space left on device" in capsys.readouterr().err


def test_an_error_stream_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())

    def command(argv: list[str] | None, notes: Notes) -> int:
        print("progress", file=sys.stderr)
        logging.getLogger("quantune.x").warning("a warning")
        return 3

    assert run("quantune-x", command, None) == 3


def test_characters_that_a_stream_has_not_are_shown_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

    def command(argv: list[str] | None, notes: Notes) -> int:
        print("1 ± 2 – ß \ud800")
        return 0

    assert run("quantune-x", command, None) == 0
    assert raw.getvalue() == b"1 +- 2 - \\xdf \\ud800\n"


def test_one_line_shows_what_a_terminal_would_obey() -> None:
    assert one_line("Größe 1\t2\x1b]0;title\x07\u202ex") == r"Größe 1\t2\x1b]0;title\x07\u202ex"
    assert len(one_line("x" * 10**6)) <= 1001


def _command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"quantune.cli.{name}", *arguments]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ('exec "$@" --help', 0),
        ('exec "$@" --version', 0),
        ('exec "$@" --help >/dev/full', 1),
        ('exec "$@" --version >&-', 1),
        ('exec "$@" --no-such-option 2>&-', 2),
        ('exec "$@" --no-such-option 2>/dev/full', 2),
        ('exec "$@" --version <&- 2>&- | head -0', 0),
        ('LC_ALL=C PYTHONIOENCODING=ascii COLUMNS=20 TERM=dumb exec "$@" --help', 0),
        ('unset HOME; XDG_CACHE_HOME=/proc/nowhere TMPDIR=/nowhere exec "$@" --help', 0),
        ('mkdir gone && cd gone && rmdir ../gone && exec "$@" --version', 0),
        ('exec "$@" "$(printf \'\\377\')"', 2),
    ],
)
def test_streams_and_surroundings_of_a_process(name: str, shell: str, code: int, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *_command(name)], capture_output=True, check=False, cwd=tmp_path, timeout=60
    )
    assert ran.returncode == code, ran.stderr.decode()
    assert b"Traceback" not in ran.stderr
    assert ran.stderr.count(b"\n") <= 1
    assert b"Exception ignored" not in ran.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_while_a_command_is_loaded(name: str, tmp_path: Path) -> None:
    # Stands for a signal in the middle of the imports, whichever the scheduler would have chosen.
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8")
    code = f"from quantune.cli import entry; entry.quantune_{name}()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr == f"quantune-{name}: interrupted; the same command resumes\n"
