"""Where programs are run and timed: the two questions a search asks, and the worker processes of this machine.

Whatever answers them, here or elsewhere, gives the same numbers: a Runner's results do not depend on where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantune.errors import RunFailed
from quantune.process.job import paused
from quantune.runtime.child import Worker
from quantune.runtime.devices import processors
from quantune.runtime.measure import Effort, Samples

MOST_WORKERS = 8

Files = tuple[Path, Path | None]
"""A program and, where they are outside, its numbers (.npz)."""


class Runner(Protocol):
    """Answers what a program gives for images."""

    @property
    def peak_bytes(self) -> int:
        """The most memory that one of its processes had resident on this machine."""
        ...

    def start(self) -> None:
        """Get ready ahead of the first job, without waiting."""
        ...

    def run(self, program: Path, numbers: Path | None, images: Path, first: int, end: int) -> NDArray[np.floating]:
        """The results on images [first, end) of an .npy file, one row an image."""
        ...

    def renew(self) -> None:
        """Forget every process: the next job begins in fresh ones."""
        ...

    def close(self) -> None:
        """End everything this started."""
        ...


class Timer(Protocol):
    """Measures how long programs take."""

    def start(self) -> None:
        """Get ready ahead of the first job, without waiting."""
        ...

    def time(self, programs: Sequence[Files], images: Path, effort: Effort) -> list[Samples]:
        """Time programs against each other on the first images of an .npy file."""
        ...

    def close(self) -> None:
        """End everything this started."""
        ...


class LocalRunner:
    """Worker processes of this machine that share out the images.

    device: driver or URI. count: of workers; by default one a processor, at most MOST_WORKERS. timeout_s: for a job.
    memory_limit: bytes of data that each may have.
    """

    def __init__(
        self,
        *,
        device: str = "local-sync",
        count: int | None = None,
        timeout_s: float = 1200.0,
        memory_limit: int | None = None,
    ) -> None:
        number = min(processors(), MOST_WORKERS) if count is None else count
        self._workers = [Worker(device=device, timeout_s=timeout_s, memory_limit=memory_limit) for _ in range(number)]

    def start(self) -> None:
        """Start the workers without waiting for them."""
        for worker in self._workers:
            worker.start()

    def run(self, program: Path, numbers: Path | None, images: Path, first: int, end: int) -> NDArray[np.floating]:
        """The program's results on images [first, end) of a file; each worker takes a stretch of them."""
        borders = np.linspace(first, end, len(self._workers) + 1).astype(int)
        pairs = zip(self._workers, borders, borders[1:], strict=False)
        parts = [(worker, int(a), int(b)) for worker, a, b in pairs if a < b]

        def run(worker: Worker, a: int, b: int) -> NDArray[np.floating]:
            logits = worker.evaluate(program, images, parameters=numbers, first=a, count=b - a).logits
            if len(logits) != b - a:
                raise RunFailed(f"{program}: the run gave {len(logits)} results for {b - a} images")
            return logits

        pool = ThreadPoolExecutor(len(parts))
        futures = [pool.submit(run, *part) for part in parts]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if failed := [error for future in done if (error := future.exception())]:
                raise failed[0]
            return np.concatenate([future.result() for future in futures])
        except BaseException:
            self._abandon(futures)  # else they would go on until they are done, or out of time
            raise
        finally:
            pool.shutdown(wait=False)  # all are done, unless a second Ctrl-C came: then `close` ends them

    def _abandon(self, futures: Sequence[Future[NDArray[np.floating]]]) -> None:
        """End the jobs at work; a thread that is only about to begin one is caught at the next turn."""
        for future in futures:
            future.cancel()
        while not all(future.done() for future in futures):
            self.renew()
            wait(futures, timeout=0.05)

    @property
    def peak_bytes(self) -> int:
        """The most memory that one of the workers had resident."""
        return max(worker.peak_bytes for worker in self._workers)

    def renew(self) -> None:
        """End the workers, and the jobs they may be at."""
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()


class LocalTimer:
    """A worker process of this machine that has it to itself: compilations are held while it measures."""

    def __init__(
        self,
        *,
        device: str = "local-sync",
        threads: int = 1,
        timeout_s: float = 1200.0,
        memory_limit: int | None = None,
    ) -> None:
        self._worker = Worker(device=device, threads=threads, timeout_s=timeout_s, memory_limit=memory_limit)

    def start(self) -> None:
        """Start the worker without waiting for it."""
        self._worker.start()

    def time(self, programs: Sequence[Files], images: Path, effort: Effort) -> list[Samples]:
        """Time programs against each other on the first images of a file."""
        with paused():
            return self._worker.compare(programs, images, effort)[0]

    @property
    def peak_bytes(self) -> int:
        """The most memory that the worker had resident."""
        return self._worker.peak_bytes

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
