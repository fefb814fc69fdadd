"""Standard output and error of a command: they may be closed, full, or know fewer characters than the messages."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast

from quantune.process import interrupts

_LONGEST = 1000
_PLAIN = {"±": "+-", "–": "-", "—": "-", "…": "...", "×": "x", "−": "-", "·": "*"}
_OWN = ("quantune", "mlir_passes")


class OutputFailed(Exception):
    """Standard output cannot be written; the text says why."""


def one_line(text: str) -> str:
    """``text`` for a terminal: what is no printable character is escaped, and the end of a very long text left out."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


@contextlib.contextmanager
def opened_streams() -> Iterator[None]:
    """Make both streams safe to write to inside the block.

    Where standard output fails, OutputFailed (a reader who left: BrokenPipeError) is raised; standard error fails in
    silence, since what is told there must not end the work it tells of.
    """
    _open_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = cast(TextIO, sys.stdin or open(0, closefd=False))  # noqa: SIM115 - descriptors outlive the block
    sys.stdout = cast(TextIO, _Stream(sys.stdout or open(1, "w", closefd=False), strict=True))  # noqa: SIM115
    sys.stderr = cast(TextIO, _Stream(sys.stderr or open(2, "w", closefd=False), strict=False))  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def own_stderr() -> TextIO:
    """Standard error under a descriptor of its own: what is told there is seen while a library's noise is kept out."""
    stream = sys.stderr
    try:
        copy = os.fdopen(os.dup(stream.fileno()), "w", buffering=1, encoding=stream.encoding)
    except (OSError, ValueError, AttributeError):
        return stream
    return cast(TextIO, _Stream(copy, strict=False))


@contextlib.contextmanager
def shown_as_notes(name: str) -> Iterator[Notes]:
    """Show log records, Python's warnings and what threads and finalizers fail with as one line each, or not at all."""
    handler, root = Notes(name), logging.getLogger()
    level, showing, unraisable, threads = root.level, warnings.showwarning, sys.unraisablehook, threading.excepthook
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    warnings.showwarning = _log_warning
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        warnings.showwarning, sys.unraisablehook, threading.excepthook = showing, unraisable, threads


class Notes(logging.Handler):
    """Prints records as notes: our own warnings, errors of the libraries, and everything that is told with verbose."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._own, self._others = name, logging.WARNING, logging.ERROR

    def verbose(self) -> None:
        """Show what happens, too."""
        self._own = self._others = logging.INFO
        logging.getLogger().setLevel(logging.INFO)

    def errors_only(self) -> None:
        """Leave out our own warnings."""
        self._own = logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record as one line."""
        if record.levelno < (self._own if record.name.partition(".")[0] in _OWN else self._others):
            return
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            text += f": {type(error).__name__}: {error}"
        print(f"{self._name}: {record.levelname.lower()}: {one_line(text)}", file=sys.stderr)


class _Stream:
    """A text stream whose failures are either told or passed over, and that can show every character somehow."""

    def __init__(self, stream: TextIO, *, strict: bool) -> None:
        self._stream, self._strict = stream, strict
        if hasattr(stream, "reconfigure"):
            cast(Any, stream).reconfigure(errors="quantune-plain")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._failing():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._drain()
            if self._strict and isinstance(error, BrokenPipeError):
                raise
            if self._strict:
                raise OutputFailed(getattr(error, "strerror", None) or str(error)) from error

    def _drain(self) -> None:
        """Let what is still buffered go nowhere, or Python complains of it once more at the end."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _open_descriptors() -> None:
    """Open the standard descriptors that are closed, or the next file would get their numbers and our messages.

    The input cannot be read then, and the output cannot be written.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What to print for characters that the encoding of a stream has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("unicode_escape").decode("ascii") for c in missing)
    return "".join(plain), error.end


codecs.register_error("quantune-plain", _plain)


def _log_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)


def _log_unraisable(failed: Any) -> None:
    if issubclass(failed.exc_type, KeyboardInterrupt):
        interrupts.again()  # it came in a finalizer or a callback, which cannot pass it on
        return
    logging.getLogger("py.ignored").warning("%s: %s", failed.exc_type.__name__, failed.exc_value)


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    logging.getLogger("py.threads").error("a thread failed: %s: %s", failed.exc_type.__name__, failed.exc_value)
