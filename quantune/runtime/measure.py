"""Measuring calls in this process: interleaved slices, so that a slow moment of the machine hits all programs alike."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantune.errors import UsageError


@dataclass(frozen=True)
class Effort:
    """How long to measure each program: warm-up, then at least ``min_seconds`` spread over ``repetitions`` slices."""

    repetitions: int = 10
    min_seconds: float = 1.0
    warmup_seconds: float = 0.2

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise UsageError(f"repetitions={self.repetitions}: expected 1 or more")
        if not 0 <= self.min_seconds < 3600 or not 0 <= self.warmup_seconds < 3600:
            raise UsageError(
                f"a measuring time of {self.min_seconds} s (warm-up {self.warmup_seconds} s) is not in 0..3600"
            )


@dataclass(frozen=True)
class Samples:
    """What was measured of one program, in milliseconds: one median for each slice, and the quartiles of all calls.

    tail: what nine, and 99, of a hundred calls do not exceed.
    """

    medians: tuple[float, ...]
    minimum: float
    quartiles: tuple[float, float, float]
    calls: int
    tail: tuple[float, float]


def measure(calls: Sequence[Callable[[], object]], effort: Effort) -> list[Samples]:
    """Time the calls in turn (forwards, then backwards, and so on) and return one result for each."""
    counts = [_slice_length(call, effort) for call in calls]
    slices: list[list[np.ndarray]] = [[] for _ in calls]
    order = list(range(len(calls)))
    for _ in range(effort.repetitions):
        for index in order:
            slices[index].append(_time(calls[index], counts[index]))
        order.reverse()
    return [_summary(parts) for parts in slices]


@contextlib.contextmanager
def pinned(enabled: bool) -> Iterator[int | None]:
    """Keep this thread on one processor inside the block, and yield which; nothing happens where that is impossible."""
    if not enabled or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    processor = max(allowed)  # the first one often serves the interrupts
    os.sched_setaffinity(0, {processor})
    try:
        yield processor
    finally:
        os.sched_setaffinity(0, allowed)


def resident_bytes() -> tuple[int, int]:
    """This process's resident memory, now and at its peak."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak, peak


def _slice_length(call: Callable[[], object], effort: Effort) -> int:
    started = time.perf_counter()
    calls = 0
    while not calls or time.perf_counter() - started < effort.warmup_seconds:
        call()
        calls += 1
    once = _time(call, 1)[0] / 1e3 if calls == 1 else (time.perf_counter() - started) / calls
    return max(1, round(effort.min_seconds / effort.repetitions / max(once, 1e-7)))


def _time(call: Callable[[], object], count: int) -> np.ndarray:
    """The milliseconds of each of ``count`` calls."""
    stamps = np.empty(count + 1, np.int64)
    clock = time.perf_counter_ns
    stamps[0] = clock()
    for index in range(1, count + 1):
        call()
        stamps[index] = clock()
    return np.diff(stamps) / 1e6


def _summary(parts: list[np.ndarray]) -> Samples:
    every = np.concatenate(parts)
    low, middle, high, *tail = (float(value) for value in np.percentile(every, (25, 50, 75, 90, 99)))
    medians = tuple(float(np.median(part)) for part in parts)
    return Samples(medians, float(every.min()), (low, middle, high), len(every), (tail[0], tail[1]))
