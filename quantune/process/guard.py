"""Reading what comes from outside with libraries that may crash, hang or take all memory on it.

Whoever reads does so in a process that may end; this module bounds what the reading takes there, and says in one line
how it ended. Two ways: `in_fork` for a command whose whole work is about one file, and `bounded` alone for a child that
was started for the reading (quantune.frontend.files).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

PROCESSOR_SECONDS = 10.0
"""Processor time for reading a small file; a network's text takes some hundredths."""

_SECONDS_PER_BYTE = 1e-6
_MEMORY, _MEMORY_PER_BYTE = 4 << 30, 40
_NOTE = 4096
_PR_SET_PDEATHSIG = 1
_Ended = Callable[[str, int], int]


@contextlib.contextmanager
def bounded(size: int, seconds: float = PROCESSOR_SECONDS) -> Iterator[None]:
    """Bound processor time and memory of this process inside the block, for reading ``size`` bytes.

    seconds: for a small file.
    Beyond the time the process ends with SIGXCPU, beyond the memory allocations fail. For processes that may end.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = used.ru_utime + used.ru_stime + seconds + size * _SECONDS_PER_BYTE
    memory = _mapped() + _MEMORY + size * _MEMORY_PER_BYTE
    with _limit(resource.RLIMIT_CPU, int(end) + 1), _limit(resource.RLIMIT_AS, memory):
        yield


@contextlib.contextmanager
def reading(what: str, size: int) -> Iterator[None]:
    """Bound the reading of ``size`` bytes inside the block; in `in_fork`, a crash there is told as one of ``what``."""
    if _fork is None:
        yield
        return
    _fork.note(f"{what} cannot be read", 2)
    kept = os.dup(2)
    os.dup2(_fork.said, 2)  # what a library says when it gives up belongs into the line
    try:
        with bounded(size):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        _fork.note("", 1)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """In `in_fork`, tell a crash inside the block as one of ``what``."""
    if _fork is not None:
        _fork.note(what, 1)
    yield
    if _fork is not None:
        _fork.note("", 1)


def in_fork(work: Callable[[], int], tell: Callable[[str], None]) -> int:
    """Do a command's work in a fork of this process, and return its exit code.

    A fork that a signal ends is told in one line: 2 where it was reading, 1 else. Only for a process without threads.
    """
    global _fork
    shared = _Fork()
    owner = os.getpid()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    child: list[int] = []
    for number, handler in handlers.items():  # the fork has them, and ends as they say
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: [os.kill(each, number) for each in child] and None)
    pid = os.fork()
    if pid == 0:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _end_with(owner)
        _fork = shared
        return work()
    child.append(pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code >= 0:
        return code
    what, code_of_crash = shared.noted()
    if code in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP):
        return 128 - code
    tell(f"{what or 'it'}: {ended(-code)}{shared.last_words()}")
    return code_of_crash


def ended(number: int) -> str:
    """How a process ended by a signal, in words."""
    if number == signal.SIGXCPU:
        return "takes too long (the time for it ran out)"
    try:
        return f"crashed ({signal.Signals(number).name})"
    except ValueError:
        return f"crashed (signal {number})"


class _Fork:
    """What a fork leaves behind for the process that waits for it: what it was at, and what a library said."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NOTE)
        first = os.memfd_create("said")
        self.said = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, 3)  # 0, 1 and 2 may be closed, and stay so
        os.close(first)

    def note(self, what: str, code: int) -> None:
        text = json.dumps([what[:400], code]).encode()
        self._memory[: len(text) + 1] = text + b"\0"

    def noted(self) -> tuple[str, int]:
        text = self._memory[:].partition(b"\0")[0]
        what, code = json.loads(text) if text else ("", 1)
        return what, code

    def last_words(self) -> str:
        os.lseek(self.said, 0, os.SEEK_SET)
        lines = os.read(self.said, 1 << 16).decode("utf-8", "replace").splitlines()
        telling = next((line.strip() for line in lines if "ERROR" in line or "error" in line), "")
        return f": {telling[:200]}" if telling else ""


_fork: _Fork | None = None


@contextlib.contextmanager
def _limit(kind: int, value: int) -> Iterator[None]:
    before, most = resource.getrlimit(kind)
    known = [each for each in (before, most) if each != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min([value, *known]), most))
    try:
        yield
    finally:
        resource.setrlimit(kind, (before, most))


def _mapped() -> int:
    """The address space of this process in bytes; much more than is resident."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 64 << 30


def _end_with(owner: int) -> None:
    """Let the system end this process when the one that waits for it ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(1)
