"""Ctrl-C, SIGTERM and SIGHUP as one thing: a KeyboardInterrupt that comes once, and not while results are written."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_WISH_S = 1.0
"""Signals that follow within this time of one that interrupted say the same once more."""
_MOMENT_S = 0.05


class _State:
    """What became of the signals of this process; handlers run in the main thread alone, so nothing is locked."""

    def __init__(self) -> None:
        self.depth = 0  # of `held` blocks
        self.waiting = False
        self.first: int | None = None
        self.raised_at = -SAME_WISH_S


_state = _State()


def received() -> int | None:
    """The first signal that interrupted this command, or None."""
    return _state.first


def pending() -> bool:
    """Whether an interruption waits for the end of a `held` block."""
    return _state.waiting


@contextlib.contextmanager
def installed(*, last: bool = False) -> Iterator[None]:
    """Make each of the signals a KeyboardInterrupt inside the block; one that is ignored (nohup) stays ignored.

    last: the process ends after the block, and no signal shall disturb that.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers, and only it is interrupted
        return
    before, _state = _state, _State()
    try:
        with _handling([s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN], last=last):
            yield
    finally:
        _state = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let interruptions wait until the end of the block, where one of them is raised.

    For what must be written whole. Without `installed` this holds for Ctrl-C, in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with _handling([signal.SIGINT] if default else []):
        _state.depth += 1
        try:
            yield
        finally:
            _state.depth -= 1
        if _state.waiting and not _state.depth:
            _state.waiting = False
            _interrupt()


def again() -> None:
    """Interrupt once more, a moment later: the first KeyboardInterrupt was raised where it could not be passed on."""
    _state.raised_at = -SAME_WISH_S
    number = _state.first or signal.SIGINT
    threading.Timer(_MOMENT_S, os.kill, (os.getpid(), number)).start()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _state.first = _state.first or number
    if _state.depth:
        _state.waiting = True
    elif time.monotonic() - _state.raised_at >= SAME_WISH_S:
        _interrupt()


def _interrupt() -> None:
    _state.raised_at = time.monotonic()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(numbers: Sequence[signal.Signals], *, last: bool = False) -> Iterator[None]:
    before = {number: signal.signal(number, _on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last else handler)
