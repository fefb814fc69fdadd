"""Latency and memory of artifacts, measured in a fresh child process; comparisons are interleaved."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from quantune.artifact.records import Processor
from quantune.errors import EnvironmentFailure, RunFailed, UsageError
from quantune.process import children, scratch
from quantune.runtime.artifact import Artifact, load
from quantune.runtime.child import Worker
from quantune.runtime.devices import check_processor
from quantune.runtime.engines import Files
from quantune.runtime.measure import Effort, Samples

_RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """The latency of one program, in milliseconds a call.

    spread_ms: distance of the quartiles. calls: how many were measured, in ``repetitions`` interleaved slices.
    processor: the one it was pinned to, None when it ran free. resident_bytes: what loading and running added to the
    process's peak memory. device_bytes: peak of the device's allocator (weights mapped from the file not counted).
    """

    median_ms: float
    minimum_ms: float
    spread_ms: float
    calls: int
    repetitions: int
    threads: int
    device: str
    processor: int | None
    resident_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the first program, with the 95 % interval over the interleaved slices."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Programs measured against each other; the first is the one the others are compared with."""

    names: tuple[str, ...]
    timings: tuple[Timing, ...]
    speedups: tuple[Speedup, ...]


class Bench(Protocol):
    """A machine that programs are measured on."""

    @property
    def name(self) -> str:
        """Which it is, for the timing."""
        ...

    def check(self, required: Processor | None, where: str) -> None:
        """Raise EnvironmentFailure, with ``where`` in the message, when it cannot run what was compiled for that."""
        ...

    def compare(
        self, programs: Sequence[Files], images: Path | None, effort: Effort, *, threads: int
    ) -> tuple[list[Samples], int | None]:
        """Time programs in turn; the samples, and the processor they were pinned to, if to one."""
        ...

    def memory(self, program: Path, images: Path | None, *, threads: int) -> dict[str, int]:
        """What a program adds to a fresh process's memory: bytes, resident and on the device."""
        ...

    def dispatch_times(self, program: Path, *, min_seconds: float) -> dict[str, float]:
        """Dispatch name -> milliseconds a call of the program spends in it."""
        ...


class LocalBench:
    """This machine, by fresh worker processes. device: driver or URI. timeout_s: for a job."""

    def __init__(self, device: str, *, timeout_s: float = 600.0) -> None:
        self.name, self._timeout_s = device, timeout_s

    def check(self, required: Processor | None, where: str) -> None:
        """Raise EnvironmentFailure when this machine's processor lacks what was compiled for."""
        if required is not None and self.name.startswith("local-"):
            check_processor(required, where)

    def compare(
        self, programs: Sequence[Files], images: Path | None, effort: Effort, *, threads: int
    ) -> tuple[list[Samples], int | None]:
        """Time programs in turn in one worker."""
        with Worker(device=self.name, threads=threads, timeout_s=self._timeout_s) as worker:
            return worker.compare(programs, images, effort)

    def memory(self, program: Path, images: Path | None, *, threads: int) -> dict[str, int]:
        """What a program adds to a fresh worker's memory."""
        with Worker(device=self.name, threads=threads, timeout_s=self._timeout_s) as worker:
            return worker.request({"job": "memory", "program": str(program), "input": _text(images)})

    def dispatch_times(self, program: Path, *, min_seconds: float) -> dict[str, float]:
        """Measure the dispatches by IREE's own tool."""
        return dispatch_times(program, device=self.name, min_seconds=min_seconds, timeout_s=self._timeout_s)


def benchmark(
    artifact: Artifact | Path | str,
    *,
    threads: int = 1,
    device: str | None = None,
    effort: Effort | None = None,
    images: Path | str | None = None,
    timeout_s: float = 600.0,
) -> Timing:
    """Measure one artifact; see compare for the arguments."""
    compared = compare([artifact], threads=threads, device=device, effort=effort, images=images, timeout_s=timeout_s)
    return compared.timings[0]


def compare(
    artifacts: Sequence[Artifact | Path | str],
    *,
    threads: int = 1,
    device: str | None = None,
    effort: Effort | None = None,
    images: Path | str | None = None,
    timeout_s: float = 600.0,
    bench: Bench | None = None,
) -> Comparison:
    """Measure artifacts in turn, slice by slice, so that a slow moment of the machine hits all of them.

    threads: 1 runs pinned to one processor. device: by default what the first artifact's target runs on.
    images: an .npy file whose first images are the input; without it the input is noise of a fixed seed. bench: another
    machine that measures. Raises what loading and running raise: UsageError, RunFailed, EnvironmentFailure.
    """
    if not artifacts:
        raise UsageError("nothing to measure; expected one or more artifacts")
    effort = effort or Effort()
    loaded = [a if isinstance(a, Artifact) else load(a, device=device, threads=threads) for a in artifacts]
    names = tuple(str(a.path or f"artifact {i}") for i, a in enumerate(loaded))
    bench = bench or LocalBench(device or _device_for(loaded[0], threads), timeout_s=timeout_s)
    for artifact, name in zip(loaded, names, strict=True):
        bench.check(artifact.provenance and artifact.provenance.processor, name)
    shown = None if images is None else Path(images)
    with scratch.folder("benchmark") as folder:
        paths = [_file(artifact, folder / f"{i}.vmfb") for i, artifact in enumerate(loaded)]
        samples, processor = bench.compare([(path, None) for path in paths], shown, effort, threads=threads)
        memory = [bench.memory(path, shown, threads=threads) for path in paths]
    timings = tuple(
        Timing(
            median_ms=sample.quartiles[1],
            minimum_ms=sample.minimum,
            spread_ms=sample.quartiles[2] - sample.quartiles[0],
            calls=sample.calls,
            repetitions=len(sample.medians),
            threads=threads,
            device=bench.name,
            processor=processor,
            resident_bytes=used["resident"],
            device_bytes=used["device"],
        )
        for sample, used in zip(samples, memory, strict=True)
    )
    return Comparison(names, timings, tuple(_speedup(samples[0], sample) for sample in samples))


def dispatch_times(
    path: Path | str, *, device: str = "local-sync", min_seconds: float = 0.5, timeout_s: float = 600.0
) -> dict[str, float]:
    """Dispatch name -> milliseconds a call of the program spends in it; empty when the device does not tell.

    Measured by IREE's own benchmark tool. Raises EnvironmentFailure without the tool, RunFailed when it fails.
    """
    command = [
        _benchmark_tool(),
        f"--module={path}",
        f"--device={device}",
        "--function=main",
        *(f"--input={shape}" for shape in _input_shapes(path, device)),
        "--benchmark_format=json",
        f"--benchmark_min_time={min_seconds}s",
        "--dispatch_statistics=true",
    ]
    try:
        done = children.run(command, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{path}: measuring its dispatches took longer than {timeout_s:g} s") from None
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = told[0] if told else children.ending(done.returncode)
        raise RunFailed(f"{path}: its dispatches cannot be measured: {reason}")
    rows = json.loads(done.stdout)["benchmarks"]
    return {row["name"].partition("/")[2]: row["real_time"] for row in rows if "percent" in row}


def _file(artifact: Artifact, spare: Path) -> Path:
    """The artifact's file; one that was never saved, or whose file is gone, is saved for the measurement."""
    return artifact.path if artifact.path and artifact.path.exists() else artifact.save(spare)


def _speedup(first: Samples, other: Samples) -> Speedup:
    """Compare slice by slice: the two slices of one round saw the same machine."""
    ratios = np.array(first.medians) / np.array(other.medians)
    random = np.random.default_rng(0)
    resampled = np.median(random.choice(ratios, (_RESAMPLES, len(ratios))), axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Speedup(float(np.median(ratios)), float(low), float(high))


def _input_shapes(path: Path | str, device: str) -> list[str]:
    with Worker(device=device) as worker:
        return worker.request({"job": "signature", "program": str(path)})["inputs"]


def _benchmark_tool() -> Path:
    spec = importlib.util.find_spec("iree._runtime_libs")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        tool = Path(folder) / "iree-benchmark-module"
        if os.access(tool, os.X_OK):
            return tool
    raise EnvironmentFailure("iree-benchmark-module is missing; install the package iree-base-runtime")


def _device_for(artifact: Artifact, threads: int) -> str:
    if artifact.device.startswith("local-"):
        return "local-sync" if threads == 1 else "local-task"
    return artifact.device


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)
