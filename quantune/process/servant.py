"""A child of Python that answers jobs, one JSON object a line: whatever a job does to it, who asked lives on."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from quantune.process import children, scratch

_KILL_AGAIN_S = 0.05


class Lost(Exception):
    """A servant did not answer; the reason is written to follow the name of what it was at."""


class Servant:
    """``python -m MODULE ARGUMENTS``, kept for many jobs and started anew after it was lost.

    It does one job at a time; any thread may stop it. The module reads a job from a line of standard input and answers
    with one line. memory_limit: bytes of data that the process may have.
    """

    def __init__(self, module: str, *arguments: str, memory_limit: int | None = None) -> None:
        self._module, self._arguments, self._memory_limit = module, arguments, memory_limit
        self._child: subprocess.Popen[bytes] | None = None
        self._job = threading.Lock()  # held by the thread that owns the child and its pipes
        self._log = tempfile.TemporaryFile(dir=scratch.root())  # noqa: SIM115 - closed by close()

    @property
    def pid(self) -> int | None:
        """The number of the process, or None when there is none."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the process ahead of its first job, without waiting for it."""
        with self._job:
            if self._child is None:
                self._start()

    def stop(self) -> None:
        """End the process, and at once the job that another thread may have it at; the next job starts another."""
        while True:
            # Only a signal: the thread that waits for the child would never hear of a pipe that is closed under it.
            if (child := self._child) is not None:
                children.kill(child)
            # That thread lets go as soon as it sees the end, or has a child that it was just starting killed as well.
            if self._job.acquire(timeout=_KILL_AGAIN_S):
                break
        try:
            self._end()
        finally:
            self._job.release()

    def close(self) -> None:
        """End the process, and the job it may be at."""
        self.stop()
        self._log.close()

    def request(self, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Send one job and return its answer. Raises Lost when the process ends, hangs or answers nonsense."""
        with self._job:
            try:
                line = self._exchange(self._child or self._start(), json.dumps(job), timeout_s)
                answer = _read(line) if line else {}
            except BaseException:
                self._end()  # an interrupted job must not answer the next request
                raise
            if line is None:
                self._end()
                raise Lost(f"the run took longer than {timeout_s:g} s and was stopped")
            if not line:
                raise Lost(f"the run ended with {self._end()}{self._last_words()}")
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._log.seek(0)
        self._log.truncate()
        pipe = subprocess.PIPE
        self._child = children.start_python(
            self._module, *self._arguments, stdin=pipe, stdout=pipe, stderr=self._log, memory_limit=self._memory_limit
        )
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], text: str, limit: float) -> bytes | None:
        """The child's answer, None after ``limit`` seconds, nothing when the child ended."""
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(text.encode() + b"\n")
            child.stdin.flush()
        answer = b""
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                part = os.read(child.stdout.fileno(), 1 << 16)
                if not part:
                    return b""
                answer += part
        return answer

    def _end(self) -> str:
        """End the child and return how it ended; for the thread that holds the job."""
        child, self._child = self._child, None
        if child is None:
            return "no process"
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)  # it may be ending: then its own status is the one to tell
        children.kill(child)
        return children.ending(child.wait())

    def _last_words(self) -> str:
        """What the child printed last, for the message."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


def _read(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not (
        {"error", "message"} <= set(answer) or isinstance(answer.get("result"), dict)
    ):
        raise Lost(f"answered something else than JSON of the expected form: {line[:80]!r}")
    return answer
