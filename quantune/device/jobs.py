"""What a device does for its client: it runs, times and describes programs that lie in its store."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from quantune.artifact.provenance import split
from quantune.device.store import Store
from quantune.errors import UsageError
from quantune.process import memory
from quantune.runtime.benchmark import dispatch_times
from quantune.runtime.child import Worker
from quantune.runtime.devices import check_processor, processors
from quantune.runtime.engines import LocalRunner
from quantune.runtime.measure import Effort

Answer = tuple[dict[str, Any], bytes | None]
LOCAL = "local"
"""The device of a server that runs programs on its processor."""
_MOST_PROGRAMS = 64
_MOST_THREADS = 1024
_FRESH = 0


class Jobs:
    """Runs jobs in guarded child processes: what a program does there is an answer.

    device: LOCAL, or a driver or URI that all programs run on. timeout_s: for a job. memory_limit: of each child
    ("2GB", "none"; by default what the machine has left for it).
    """

    def __init__(
        self, store: Store, *, device: str = LOCAL, timeout_s: float = 600.0, memory_limit: str | None = None
    ) -> None:
        self._store, self._device, self._timeout_s = store, device, timeout_s
        count = None if device == LOCAL else 1  # a GPU serves one
        # What a driver reserves is no measure.
        self._limit = memory.chosen(memory_limit, compilers=processors() + 1, workers=0) if device == LOCAL else None
        self._runner = LocalRunner(device=self._driver(1), count=count, timeout_s=timeout_s, memory_limit=self._limit)
        self._others: dict[int, Worker] = {}  # those that measure, by their threads, and _FRESH
        self._vouched: set[str] = set()  # programs whose processor was checked

    def __call__(self, job: Mapping[str, Any]) -> Answer:
        """Do one job; returns its answer, and bytes that belong to it. Raises QuantuneError."""
        work = {
            "run": self._run, "time": self._time, "memory": self._memory, "signature": self._signature,
            "dispatches": self._dispatches,
        }.get(str(job.get("type")))  # fmt: skip
        if work is None:
            raise UsageError(f"a device does no {job.get('type')!r:.40}; is the client of another version?")
        return work(job)

    def stop(self) -> None:
        """End all children, and with them the job they may be at; the next job begins in fresh ones."""
        self._runner.renew()
        for worker in tuple(self._others.values()):
            worker.stop()

    def close(self) -> None:
        """End all children for good."""
        self._runner.close()
        for worker in self._others.values():
            worker.close()

    def _run(self, job: Mapping[str, Any]) -> Answer:
        program, numbers = self._program(job.get("program")), self._file(job.get("numbers"), ".npz")
        images = self._file(job.get("images"), ".npy")
        if images is None:
            raise UsageError("a job without images")
        first, end = _whole(job, "first", 0, 1 << 40), _whole(job, "end", 1, 1 << 40)
        if first >= end:
            raise UsageError(f"images [{first}, {end}): expected some")
        file = io.BytesIO()
        np.save(file, self._runner.run(program, numbers, images, first, end), allow_pickle=False)
        return {}, file.getvalue()

    def _time(self, job: Mapping[str, Any]) -> Answer:
        programs = job.get("programs")
        if not isinstance(programs, list) or not 0 < len(programs) <= _MOST_PROGRAMS:
            raise UsageError(f"a job to time {programs!r:.60}; expected a list of 1 to {_MOST_PROGRAMS} programs")
        if not all(isinstance(each, list) and len(each) == 2 for each in programs):
            raise UsageError("a job to time what are no pairs of a program and its numbers")
        pairs = [(self._program(program), self._file(numbers, ".npz")) for program, numbers in programs]
        images, effort = self._file(job.get("images"), ".npy"), _effort(job.get("effort"))
        threads = _whole(job, "threads", 1, _MOST_THREADS)
        if threads not in self._others:
            self._others[threads] = self._worker(threads)
        samples, processor = self._others[threads].compare(pairs, images, effort)
        return {"samples": [asdict(sample) for sample in samples], "processor": processor}, None

    def _memory(self, job: Mapping[str, Any]) -> Answer:
        request = {
            "job": "memory", "program": str(self._program(job.get("program"))), "input": self._text(job.get("images")),
        }  # fmt: skip
        threads = _whole(job, "threads", 1, _MOST_THREADS)
        with self._worker(threads) as worker:
            self._others[_FRESH] = worker
            try:
                return worker.request(request), None
            finally:
                del self._others[_FRESH]

    def _signature(self, job: Mapping[str, Any]) -> Answer:
        numbers = self._file(job.get("numbers"), ".npz")
        request = {
            "job": "signature", "program": str(self._program(job.get("program"))),
            "parameters": None if numbers is None else str(numbers),
        }  # fmt: skip
        if 1 not in self._others:
            self._others[1] = self._worker(1)
        return self._others[1].request(request), None

    def _dispatches(self, job: Mapping[str, Any]) -> Answer:
        seconds = job.get("seconds")
        if not isinstance(seconds, int | float) or not 0 < seconds <= 60:
            raise UsageError(f"dispatches measured for {seconds!r:.40} s; expected more than 0, at most 60")
        program = self._program(job.get("program"))
        times = dispatch_times(program, device=self._driver(1), min_seconds=float(seconds), timeout_s=self._timeout_s)
        return {"times": times}, None

    def _worker(self, threads: int) -> Worker:
        driver, limit = self._driver(threads), self._limit
        return Worker(device=driver, threads=threads, timeout_s=self._timeout_s, memory_limit=limit)

    def _driver(self, threads: int) -> str:
        if self._device != LOCAL:
            return self._device
        return "local-sync" if threads == 1 else "local-task"

    def _program(self, digest: object) -> Path:
        path = self._file(digest, ".vmfb")
        if path is None:
            raise UsageError("a job without a program")
        if self._device == LOCAL and path.name not in self._vouched:
            provenance = split(path.read_bytes(), path.name).provenance
            if provenance is not None and provenance.processor is not None:
                check_processor(provenance.processor, path.name)
            self._vouched.add(path.name)
        return path

    def _file(self, digest: object, kind: str) -> Path | None:
        if digest is None:
            return None
        path = self._store.find(str(digest), kind)
        if path is None:
            raise UsageError(
                f"no {kind} file {str(digest)[:12]}… is here; where the store is too small: --store-size of the server"
            )
        return path

    def _text(self, digest: object) -> str | None:
        path = self._file(digest, ".npy")
        return None if path is None else str(path)


def _whole(job: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = job.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name}={value!r:.40}: expected a whole number, {low} to {high}")
    return value


def _effort(value: object) -> Effort:
    names = ("repetitions", "min_seconds", "warmup_seconds")
    if not isinstance(value, dict) or set(value) != set(names):
        raise UsageError(f"effort {value!r:.60}: expected {', '.join(names)}")
    if not isinstance(value["repetitions"], int) or not 0 < value["repetitions"] <= 10_000:
        raise UsageError(f"repetitions {value['repetitions']!r:.40}: expected a whole number, 1 to 10000")
    if not all(isinstance(value[name], int | float) for name in names):
        raise UsageError(f"effort {value!r:.80}: expected numbers")
    return Effort(**value)
