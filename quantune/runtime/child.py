"""Running compiled programs in a child process: a crash, a hang or exhausted memory there is a RunFailed here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from quantune import errors
from quantune.errors import QuantuneError, RunFailed, UsageError
from quantune.process import memory, scratch
from quantune.process.servant import Lost, Servant
from quantune.runtime.arrays import read_results
from quantune.runtime.measure import Effort, Samples


@dataclass(frozen=True)
class Evaluation:
    """What a program answered: one row an image, the seconds that took, and, when asked for, the latency samples."""

    logits: np.ndarray
    seconds: float
    timing: Samples | None


class Worker:
    """A child process that runs programs on one device; kept for many jobs, started anew after a crash.

    threads: for local-task. timeout_s: for a job. memory_limit: bytes of data that the child may have.
    Use it as a context manager, or call close. It does one job at a time; any thread may stop it.
    """

    def __init__(
        self,
        *,
        device: str = "local-sync",
        threads: int = 1,
        timeout_s: float = 600.0,
        memory_limit: int | None = None,
    ) -> None:
        if not timeout_s > 0:  # also true for NaN
            raise UsageError(f"run timeout {timeout_s}: expected seconds, more than 0")
        self.device = device
        self.threads = threads
        self.timeout_s = timeout_s
        self.memory_limit = memory_limit
        self.peak_bytes = 0
        arguments = [f"--device={device}", f"--threads={threads}"]
        self._servant = Servant("quantune.runtime.worker", *arguments, memory_limit=memory_limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The number of the child, or None when there is none."""
        return self._servant.pid

    def start(self) -> None:
        """Start the child ahead of its first job, without waiting for it."""
        self._servant.start()

    def stop(self) -> None:
        """End the child, and at once the job that another thread may have it at; the next job starts another."""
        self._servant.stop()

    def close(self) -> None:
        """End the child, and the job it may be at."""
        self._servant.close()

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

        parameters: named arrays, or an .npz file of them. effort: measure the latency too. Raises RunFailed when the
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
            logits = read_results(output, program)
        with _of_form(program):
            timing = result.get("timing")
            return Evaluation(logits, float(result.get("seconds", 0.0)), read_samples(timing) if timing else None)

    def compare(
        self, programs: Sequence[tuple[Path | str, Path | str | None]], images: Path | str | None, effort: Effort
    ) -> tuple[list[Samples], int | None]:
        """Time programs (each with its parameters, if any) in turn, on the first images of a file or on noise.

        Returns the samples, and the processor that the programs were pinned to, if to one.
        """
        job = {
            "job": "time",
            "programs": [str(program) for program, _ in programs],
            "parameters": [None if parameters is None else str(parameters) for _, parameters in programs],
            "input": None if images is None else str(images),
            "effort": asdict(effort),
        }
        answer = self.request(job)
        with _of_form("program"):
            samples = [read_samples(sample) for sample in answer["samples"]]
            if len(samples) != len(programs):
                raise ValueError(f"{len(samples)} samples of {len(programs)} programs")
            return samples, answer["processor"]

    def request(self, job: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Send one job and return its result; the error the child answered is raised here."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            answer = self._servant.request(job, timeout_s=limit)
        except Lost as error:
            message = f"{job.get('program', 'program')}: {error}{self._limit_told(str(error))}"
            raise RunFailed(message, transient=True) from error
        if "error" in answer:
            raise _error({**answer, "message": f"{answer['message']}{self._limit_told(str(answer['message']))}"})
        with _of_form(job.get("program", "program")):
            self.peak_bytes = max(self.peak_bytes, int(answer.get("peak", 0)))
        return answer["result"]

    def _limit_told(self, words: str) -> str:
        if self.memory_limit is None or not memory.is_exhaustion(words):
            return ""
        return f"; its memory limit is {memory.text(self.memory_limit)}, --memory-limit changes it"


def evaluate(
    program: Path | str,
    images: Path | str,
    *,
    device: str = "local-sync",
    threads: int = 1,
    timeout_s: float = 600.0,
    memory_limit: int | None = None,
    **options: Any,
) -> Evaluation:
    """Run a program on images in a child process of its own; see Worker.evaluate for the options."""
    with Worker(device=device, threads=threads, timeout_s=timeout_s, memory_limit=memory_limit) as worker:
        return worker.evaluate(program, images, **options)


@contextlib.contextmanager
def _of_form(program: object) -> Iterator[None]:
    """Turn what an answer that is not what was agreed upon raises when it is read into a RunFailed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"{type(error).__name__}: {error}"
        raise RunFailed(
            f"{program}: the run answered something of another form ({text:.100})", transient=True
        ) from error


def _error(answer: Mapping[str, Any]) -> QuantuneError:
    named = getattr(errors, str(answer["error"]), None)
    kind = named if isinstance(named, type) and issubclass(named, QuantuneError) else RunFailed
    return kind(str(answer["message"]), transient=answer.get("transient") is True)


def read_samples(answer: Mapping[str, Any]) -> Samples:
    """The samples a worker sent. Raises ValueError, TypeError or KeyError for anything else."""
    low, middle, high = map(float, answer["quartiles"])
    most, nearly_all = map(float, answer["tail"])
    medians, minimum = tuple(map(float, answer["medians"])), float(answer["minimum"])
    if not medians or not all(
        0 < value < math.inf for value in (*medians, minimum, low, middle, high, most, nearly_all)
    ):
        raise ValueError("times that are none")
    return Samples(medians, minimum, (low, middle, high), int(answer["calls"]), (most, nearly_all))
