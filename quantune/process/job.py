"""One run of iree-compile as a child process, in a folder of its own; all runs can be held for a moment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantune.process import children, memory, scratch

_LOG_LIMIT = 1 << 20
_LOOK_S = 0.2
_BYTECODE_MAGIC = b"ML\xefR"
# The same compilation, stopped where the dispatches are formed and printed with locations.
_EVIDENCE_FLAGS = (
    "--compile-to=flow",
    "--mlir-print-debuginfo",
    "--mlir-elide-elementsattrs-if-larger=16",
    "--mlir-elide-resource-strings-if-larger=16",
)
# Verifying the IR after each of IREE's passes takes 40 % of the time. Its input is verified all the same, and a
# compilation that fails is run again with these checks, for the sake of its message.
_FAST_FLAGS = ("--verify=false",)
_WHOLE_TEXT = re.compile(r"\A(#|module).*\n(\} loc\(|#loc)[^\n]*\s*\Z", re.DOTALL)
_starting = threading.Lock()
_running: set[int] = set()  # process groups of the compilers at work
_stopped: set[int] = set()  # those that were told to end


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Hold all compilations of this process inside the block: a measurement of time wants the machine to itself."""
    with _starting:
        _signal(signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(signal.SIGCONT)


def stop_all() -> None:
    """End all compilations of this process: nobody waits for them any more."""
    with _starting:
        _stopped.update(_running)
        _signal(signal.SIGKILL)


def _signal(number: signal.Signals) -> None:
    for group in tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


class Job:
    """One run of iree-compile in a folder of its own."""

    def __init__(self, folder: Path, binary: Path, module: bytes, flags: Sequence[str], dump: Path | None) -> None:
        # A fixed name and a relative path: the input's name is part of a text module's locations.
        self.source = folder / ("module.mlirbc" if module.startswith(_BYTECODE_MAGIC) else "module.mlir")
        self.source.write_bytes(module)
        self.folder = folder
        self.seconds = 0.0
        self.peak_bytes = 0
        self.stopped = False  # by `stop_all`
        self.output = folder / "module.vmfb"
        self.command = [str(binary), self.source.name, "-o", self.output.name, *flags]
        if dump:
            self.command.append(f"--iree-hal-dump-executable-files-to={dump.resolve()}")

    def run(self, timeout_s: float, memory_limit: int | None, *, checks: bool) -> int | None:
        """The exit status (negative: the signal that ended it), or None when it ran out of time.

        checks: verify the IR after each pass.
        """
        command = self.command if checks else [*self.command, *_FAST_FLAGS]
        with (self.folder / "log").open("wb") as log:
            with _starting:
                child = children.start(
                    command,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    environment={"TMPDIR": "."},  # what its linker leaves when it is killed goes with the folder
                    memory_limit=memory_limit,
                )
                _running.add(child.pid)
            started = time.monotonic()
            with _killed_at_exit(child):
                try:
                    return self._wait(child, started + timeout_s)
                finally:
                    self.seconds = time.monotonic() - started
                    self.stopped = child.pid in _stopped

    def _wait(self, child: subprocess.Popen[bytes], deadline: float) -> int | None:
        """Wait for the child and look at its peak meanwhile: what the system tells of an ended one includes ours."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                return child.wait(min(_LOOK_S, left))
            except subprocess.TimeoutExpired:
                self.peak_bytes = max(self.peak_bytes, memory.peak(child.pid))
        return None

    def log(self) -> str:
        """What the compiler printed (its first MiB), whatever bytes it was."""
        with (self.folder / "log").open("rb") as stream:
            return stream.read(_LOG_LIMIT).decode("utf-8", "replace")


def form_dispatches(
    binary: Path, module: bytes, flags: Sequence[str], timeout_s: float, memory_limit: int | None
) -> str:
    """The program as text with its dispatches formed, or nothing where the compilation fails before."""
    with scratch.folder("compile") as folder:
        job = Job(folder, binary, module, (*flags, *_EVIDENCE_FLAGS), None)
        for _ in range(2):
            status = job.run(timeout_s, memory_limit, checks=True)
            text = job.output.read_text(errors="replace") if status == 0 and job.output.is_file() else ""
            # Half a text would be told of for ever after.
            if _WHOLE_TEXT.search(text):
                return text
        return ""


@contextlib.contextmanager
def _killed_at_exit(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the child's process group when the block is left early; Ctrl-C reaches this process only."""
    try:
        yield
    finally:
        _running.discard(child.pid)
        _stopped.discard(child.pid)
        children.kill(child)
        child.wait()
