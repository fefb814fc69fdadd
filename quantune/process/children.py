"""Starting child processes, the same way everywhere: each one ends with this process, and imports nothing from here.

*Ends with it*, however this process ends, kill -9 included, and also what is stopped: a watcher beside it
(quantune.process.watcher) kills every process that carries this one's token. *Imports nothing from here*: a child of
Python does not look for modules in the current folder.

Why a watcher: the kernel's own signal for this (PR_SET_PDEATHSIG) comes when the *thread* that started a child ends,
which threads of a pool do, does not reach the children's children, and would need code between fork and exec, where
little is allowed in a process with threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from quantune.errors import EnvironmentFailure
from quantune.process import memory, scratch, watcher

_PACKAGES = str(Path(__file__).resolve().parent.parent.parent)  # where `import quantune` finds this one
_lock = threading.Lock()
_python = sys.executable
_watcher: _Watcher | None = None


@dataclass(frozen=True)
class _Watcher:
    """The watcher at work: its process number, and the end of its pipe that it waits for to be closed."""

    pid: int
    pipe: int

    def lives(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False


def start(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    memory_limit: int | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; it ends with this process.

    environment: what differs from this process's. memory_limit: bytes of data that it, and each of its own children,
    may have (quantune.process.memory). options: of subprocess.Popen. Raises EnvironmentFailure when the program cannot
    be started.
    """
    token = _watched()
    owners = os.pathsep.join(filter(None, (os.environ.get(watcher.VARIABLE), token)))
    variables = {**os.environ, **(environment or {}), watcher.VARIABLE: owners}
    try:
        child = subprocess.Popen([*map(str, command)], env=variables, start_new_session=True, **options)
    except OSError as error:
        raise EnvironmentFailure(f"{command[0]} cannot be started: {error.strerror or error}") from error
    if memory_limit is not None:
        memory.limit(child.pid, memory_limit)
    return cast("subprocess.Popen[bytes]", child)


def start_python(module: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start ``python -m MODULE ARGUMENTS`` like `start`; what lies in the current folder is not imported."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    return start(command, environment={"PYTHONPATH": _python_path(), "PYTHONSAFEPATH": "1"}, **options)


def run(command: Sequence[str | Path], *, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, without input, and return what it printed; it has ended when this returns or raises.

    Raises subprocess.TimeoutExpired, and EnvironmentFailure when it cannot be started.
    """
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with start(command, stdin=none, stdout=pipe, stderr=pipe) as child:
        try:
            output, errors = child.communicate(timeout=timeout_s)
        finally:
            kill(child)
    return subprocess.CompletedProcess(child.args, child.returncode, output, errors)


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and what it started, stopped or not. Any thread may; whoever waits for the child reaps it."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def ending(status: int) -> str:
    """How a process ended, in words: SIGSEGV, or exit status 3."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _watched() -> str:
    """The token of this process; there is a watcher that knows it."""
    global _watcher
    folder = scratch.root()
    with _lock:
        if _watcher is not None and not _watcher.lives():
            os.close(_watcher.pipe)
            _watcher = None
        if _watcher is None:
            _watcher = _start_watcher(folder)
    return folder.name


def _start_watcher(folder: Path) -> _Watcher:
    # Isolated and without site packages: nothing of the user's is imported, and it is there within milliseconds.
    command = [_python, "-I", "-S", watcher.__file__, folder.name, str(folder)]
    reading, writing = os.pipe()
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    try:
        pid = os.posix_spawn(
            _python, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0), *nowhere], setsid=True
        )
    except OSError as error:
        os.close(writing)
        raise EnvironmentFailure(f"{_python} cannot be started: {error.strerror or error}") from error
    finally:
        os.close(reading)
    return _Watcher(pid, writing)


def _python_path() -> str:
    """PYTHONPATH for a child: this quantune before others, and no current folder.

    An empty entry, which ``PYTHONPATH=$PYTHONPATH:more`` leaves behind, stands for the current folder.
    """
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    given = [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [entry for entry in given if entry != str(Path.cwd())]
    return os.pathsep.join(dict.fromkeys([*([] if _PACKAGES in installed else [_PACKAGES]), *kept]))


def _forget() -> None:
    """A fork must not hold its parent's watcher up, and has one of its own."""
    global _watcher, _lock
    if _watcher is not None:
        os.close(_watcher.pipe)
    _watcher, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
