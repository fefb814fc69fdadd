"""Running compiled programs in a child process: a crash, a hang or exhausted memory there is a RunFailed here."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from quantune import errors
from quantune.errors import QuantuneError, RunFailed, UsageError
from quantune.process import children, scratch
from quantune.runtime.measure import Effort, Samples

_KILL_AGAIN_S = 0.05


@dataclass(frozen=True)
class Evaluation:
    """What a program answered: one row an image, the seconds that took, and, when asked for, the latency samples."""

    logits: np.ndarray
    seconds: float
    timing: Samples | None


class Worker:
    """A child process that runs programs on one device; kept for many jobs, started anew after a crash.

    threads: for local-task. timeout_s: for a job. memory_limit_gib: address space of the child. Use it as a context
    manager, or call close. It does one job at a time; any thread may stop it.
    """

    def __init__(
        self,
        *,
        device: str = "local-sync",
        threads: int = 1,
        timeout_s: float = 600.0,
        memory_limit_gib: float | None = None,
    ) -> None:
        if not timeout_s > 0:  # also true for NaN
            raise UsageError(f"run timeout {timeout_s}: expected seconds, more than 0")
        self.device = device
        self.threads = threads
        self.timeout_s = timeout_s
        self.memory_limit_gib = memory_limit_gib
        self._child: subprocess.Popen[bytes] | None = None
        self._job = threading.Lock()  # held by the thread that owns the child and its pipes
        self._log = tempfile.TemporaryFile(dir=scratch.root())  # noqa: SIM115 - closed by close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the child ahead of its first job, without waiting for it."""
        with self._job:
            if self._child is None:
                self._start()

    def stop(self) -> None:
        """End the child, and at once the job that another thread may have it at; the next job starts another."""
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
        """End the child, and the job it may be at."""
        self.stop()
        self._log.close()

    def evaluate(
        self,
        program: Path | str,
        images: Path | str,
        *,
        parameters: Mapping[str, np.ndarray] | Path | str | None = None,
        first: int = 0,
        count: int | None = None,
        effort: Effort | None = None,
        timeout_s: float | None = None,
    ) -> Evaluation:
        """Run the program on the images [first, first + count) of an .npy file f32[n,c,h,w].

        parameters: named arrays, an .npz or an .irpa file. effort: measure the latency too. Raises RunFailed when the
        program cannot be loaded, crashes, hangs or needs too much memory, UsageError when the images do not fit it.
        """
        with scratch.folder("run") as folder:
            output = folder / "logits.npy"
            if isinstance(parameters, Mapping):
                file = folder / "parameters.npz"
                np.savez(file, **parameters)  # type: ignore[arg-type]
                parameters = file
            job = {
                "job": "evaluate",
                "program": str(program),
                "parameters": None if parameters is None else str(parameters),
                "images": str(images),
                "output": str(output),
                "first": first,
                "count": count,
                "effort": asdict(effort) if effort else None,
            }
            result = self.request(job, timeout_s=timeout_s)
            try:
                logits = np.load(output, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise RunFailed(f"{program}: the run wrote no results: {error}") from error
        timing = result.get("timing")
        return Evaluation(logits, float(result.get("seconds", 0.0)), read_samples(timing) if timing else None)

    def time(
        self,
        programs: Sequence[tuple[Path | str, Path | str | None]],
        images: Path | str,
        effort: Effort,
    ) -> list[Samples]:
        """Time programs against each other on the first images of a file; each with its parameters, if it has any."""
        job = {
            "job": "time",
            "programs": [str(program) for program, _ in programs],
            "parameters": [None if parameters is None else str(parameters) for _, parameters in programs],
            "input": str(images),
            "effort": asdict(effort),
        }
        return [read_samples(sample) for sample in self.request(job)["samples"]]

    def request(self, job: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Send one job and return its result; the error the child answered is raised here."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        name = str(job.get("program", "program"))
        with self._job:
            try:
                line = self._exchange(self._child or self._start(), json.dumps(job), limit)
                answer = _answer(line) if line else {}
            except BaseException:
                self._end()  # an interrupted job must not answer the next request
                raise
            if line is None:
                self._end()
                raise RunFailed(f"{name}: the run took longer than {limit:g} s and was stopped")
            if not line:
                raise RunFailed(f"{name}: the run ended with {self._end()}{self._last_words()}")
        if "error" in answer:
            raise _error(answer)
        return answer["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = [f"--device={self.device}", f"--threads={self.threads}"]
        if self.memory_limit_gib is not None:
            arguments.append(f"--memory-limit-gib={self.memory_limit_gib}")
        self._log.seek(0)
        self._log.truncate()
        pipe = subprocess.PIPE
        self._child = children.start_python(
            "quantune.runtime.worker", *arguments, stdin=pipe, stdout=pipe, stderr=self._log
        )
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], text: str, limit: float) -> bytes | None:
        """Return the child's answer, None after ``limit`` seconds, nothing when the child ended."""
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
        """Return what the child printed last, for the message."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


def evaluate(
    program: Path | str,
    images: Path | str,
    *,
    device: str = "local-sync",
    threads: int = 1,
    timeout_s: float = 600.0,
    memory_limit_gib: float | None = None,
    **options: Any,
) -> Evaluation:
    """Run a program on images in a child process of its own; see Worker.evaluate for the options."""
    with Worker(device=device, threads=threads, timeout_s=timeout_s, memory_limit_gib=memory_limit_gib) as worker:
        return worker.evaluate(program, images, **options)


def _answer(line: bytes) -> dict[str, Any]:
    """Read what a worker answered. Raises RunFailed when it is not of the protocol."""
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not (
        {"error", "message"} <= set(answer) or isinstance(answer.get("result"), dict)
    ):
        raise RunFailed(f"the worker answered something else than JSON of the expected form: {line[:80]!r}")
    return answer


def _error(answer: Mapping[str, Any]) -> QuantuneError:
    kind = getattr(errors, str(answer["error"]), None)
    if isinstance(kind, type) and issubclass(kind, QuantuneError):
        return kind(answer["message"])
    return RunFailed(str(answer["message"]))


def read_samples(answer: Mapping[str, Any]) -> Samples:
    """Return the samples a worker sent."""
    low, middle, high = answer["quartiles"]
    return Samples(tuple(answer["medians"]), answer["minimum"], (low, middle, high), answer["calls"])
