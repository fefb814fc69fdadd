"""What surrounds each command: signals, streams that are closed or full, and one line for whatever goes wrong.

Little is imported before the signals are taken: an interruption may come while the command is still being loaded.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from quantune.cli.streams import Notes, OutputFailed, one_line, opened_streams, shown_as_notes
from quantune.errors import EnvironmentFailure, QuantuneError, missing, refused
from quantune.process import interrupts

Command = Callable[[list[str] | None, Notes], int]

FAILED, SIGNALLED = 1, 128


def quantune_compile() -> NoReturn:
    """The process ``quantune-compile``."""
    _process("quantune-compile", "quantune.cli.compile")


def quantune_benchmark() -> NoReturn:
    """The process ``quantune-benchmark``."""
    _process("quantune-benchmark", "quantune.cli.benchmark")


def quantune_opt() -> NoReturn:
    """The process ``quantune-opt``; its work is done in a fork, since MLIR may crash or hang on what it reads."""
    from quantune.process import guard

    name = "quantune-opt"
    sys.exit(guard.in_fork(lambda: _code(name, "quantune.cli.opt"), lambda text: _tell(name, f"error: {text}")))


def quantune_device() -> NoReturn:
    """The process ``quantune-device``."""
    _process("quantune-device", "quantune.cli.device")


def quantune_verify() -> NoReturn:
    """The process ``quantune-verify``."""
    _process("quantune-verify", "quantune.cli.verify")


def _process(name: str, module: str) -> NoReturn:
    code = _code(name, module)
    if code > SIGNALLED:  # threads that are still at work are not waited for, and their children end with this process
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)


def _code(name: str, module: str) -> int:
    def command(argv: list[str] | None, notes: Notes) -> int:
        return importlib.import_module(module).command(argv, notes)

    return run(name, command, None, last=True)


def run(name: str, command: Command, argv: list[str] | None, *, last: bool = False) -> int:
    """Run a command and return its exit code; whatever it raises becomes one line on standard error.

    The code is the error's own (see docs/architecture.md), and 128 more than the signal that interrupted the command.
    last: the process ends when this returns.
    """
    with interrupts.installed(last=last):
        try:
            with opened_streams(), shown_as_notes(name) as notes:
                return _guarded(name, lambda: command(argv, notes))
        except KeyboardInterrupt:  # between the blocks
            return interrupted()


def _guarded(name: str, command: Callable[[], int]) -> int:
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _tell(name, "interrupted; the same command resumes")
        return interrupted()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return FAILED
    except OutputFailed as error:
        _tell(name, f"error: standard output cannot be written: {error}; files that were written are whole")
        return FAILED
    except Exception as error:
        return _failed(name, error)


def interrupted() -> int:
    """The exit code of an interrupted command: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return SIGNALLED + (interrupts.received() or signal.SIGINT)


def _failed(name: str, error: Exception) -> int:
    if os.environ.get("QUANTUNE_DEBUG"):
        import traceback

        traceback.print_exc()
    known = _known(error)
    if known is not None:
        _tell(name, f"error: {known}")
        return known.exit_code
    _tell(
        name,
        f"internal error: {type(error).__name__}: {error} ({_place(error)}); "
        "please report it, with the traceback that QUANTUNE_DEBUG=1 prints",
    )
    return FAILED


def _known(error: Exception) -> QuantuneError | None:
    """The error as one whose message is written for the user, or None for a mistake of this program."""
    if isinstance(error, QuantuneError):
        return error
    if isinstance(error, MemoryError):
        return EnvironmentFailure("not enough memory")
    if isinstance(error, ImportError):
        return missing(error)
    if isinstance(error, OSError) and error.errno is not None:
        return refused(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "system", error)
    return None


def _place(error: Exception) -> str:
    """The last line of our own that the error came through."""
    import traceback

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - pathlib is not loaded yet
    last = next((frame for frame in reversed(frames) if frame.filename.startswith(package)), frames[-1])
    return f"{os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119


def _tell(name: str, text: str) -> None:
    print(f"{name}: {one_line(text)}", file=sys.stderr)
