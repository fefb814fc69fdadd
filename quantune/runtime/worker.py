"""The child process that runs compiled programs: ``python -m quantune.runtime.worker --device local-sync``.

One JSON object a line: a job on standard input, its answer on standard output. Whatever a program does to this process,
the process that asked lives on (quantune.runtime.child).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quantune.errors import QuantuneError, RunFailed, UsageError, first_line
from quantune.process import memory, scratch
from quantune.runtime.arrays import map_images
from quantune.runtime.measure import Effort, measure, pinned, resident_bytes
from quantune.runtime.program import Program


def main(arguments: list[str] | None = None) -> int:
    """Answer jobs until standard input ends."""
    parser = argparse.ArgumentParser(prog="quantune.runtime.worker")
    parser.add_argument("--device", default="local-sync")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    # Standard output belongs to the protocol: what a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answer = _answer(json.loads(line), options.device, options.threads) | {"peak": memory.peak()}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _answer(job: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    try:
        return {"result": _JOBS[job["job"]](job, device, threads)}
    except QuantuneError as error:
        return {"error": type(error).__name__, "message": str(error), "transient": error.transient}
    except MemoryError:
        message = f"{job.get('program', 'the job')}: out of memory"
        return {"error": RunFailed.__name__, "message": message, "transient": True}
    except Exception as error:  # an answer, whatever happens: the other side decides what a failure means
        message = f"{job.get('program', 'the job')}: {type(error).__name__}: {first_line(error)}"
        return {"error": RunFailed.__name__, "message": message}


def _evaluate(job: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    """Run the program on images [first, first + count) and write the results, one row an image."""
    program = _loaded(job["program"], device, threads, job["parameters"])
    images = read_images(job["images"], program)
    first = job["first"]
    chosen = images[first:] if job["count"] is None else images[first : first + job["count"]]
    if not len(chosen):
        raise UsageError(f"{job['images']}: no image at {first}; the file holds {len(images)}")
    started = time.perf_counter()
    results = run_batches(program, chosen)
    seconds = time.perf_counter() - started
    output = Path(job["output"])
    with scratch.told(output.parent, "TMPDIR"):
        np.save(output, results)
    timing = None
    if job["effort"]:
        with pinned(device == "local-sync") as processor:
            call = program.caller(_batch(chosen[: program.inputs[0].shape[0]], program))
            timing = asdict(measure([call], Effort(**job["effort"]))[0]) | {"processor": processor}
    return {"seconds": seconds, "timing": timing}


def _time(job: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    """Time several programs against each other."""
    parameters = job.get("parameters") or [None] * len(job["programs"])
    calls = [
        _caller(job, path, device, threads, numbers) for path, numbers in zip(job["programs"], parameters, strict=True)
    ]
    with pinned(device == "local-sync") as processor:
        samples = measure(calls, Effort(**job["effort"]))
    return {"samples": [asdict(sample) for sample in samples], "processor": processor}


def _memory(job: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    """Load and run one program, and tell what that needed; meant for a fresh process."""
    before, _ = resident_bytes()
    program = Program(job["program"], device=device, threads=threads)
    call = program.caller(*_inputs(job, program))
    for _ in range(3):
        call()
    _, peak = resident_bytes()
    return {"resident": max(0, peak - before), "device": program.device_statistics().get("device_bytes_peak", 0)}


def _signature(job: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    """Tell a program's inputs in the form IREE's tools take: 1x3x32x32xf32=1."""
    kinds = Program(job["program"], device=device, threads=threads, parameters=job.get("parameters")).inputs
    short = {"f": "f", "i": "i", "b": "i"}
    bits = [1 if kind.dtype == bool else kind.dtype.itemsize * 8 for kind in kinds]
    return {
        "inputs": [
            f"{'x'.join([*map(str, kind.shape), short[kind.dtype.kind]])}{width}=1"
            for kind, width in zip(kinds, bits, strict=True)
        ]
    }


def read_images(path: Path | str, program: Program) -> np.ndarray:
    """Map an .npy file of images f32[n,…] and check that the program takes such images; raises UsageError."""
    images = map_images(path)
    if len(program.inputs) != 1 or len(program.outputs) != 1:
        raise UsageError(
            f"the program has {len(program.inputs)} inputs and {len(program.outputs)} outputs; expected 1 and 1"
        )
    expected = program.inputs[0]
    if images.ndim != len(expected.shape) or images.shape[1:] != expected.shape[1:] or images.dtype != expected.dtype:
        raise UsageError(f"{path}: {images.dtype}{list(images.shape)}; the program takes {expected}")
    return images


def run_batches(program: Program, images: np.ndarray) -> np.ndarray:
    """Run the images in batches of the program's size (the last one padded); returns one row an image."""
    size = program.inputs[0].shape[0]
    rows = []
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        result = program(_batch(chunk, program))
        if isinstance(result, tuple) or result.ndim == 0 or len(result) != size:
            raise RunFailed(f"the program gives {program.outputs[0]} for {size} images; expected one row an image")
        rows.append(result[: len(chunk)])
    return np.concatenate(rows)


def _batch(images: np.ndarray, program: Program) -> np.ndarray:
    expected = program.inputs[0]
    if images.shape == expected.shape:
        return np.ascontiguousarray(images)
    batch = np.zeros(expected.shape, expected.dtype)
    batch[: len(images)] = images
    return batch


def _caller(job: dict[str, Any], path: str, device: str, threads: int, parameters: str | None) -> Callable[[], object]:
    program = Program(path, device=device, threads=threads, parameters=parameters)
    return program.caller(*_inputs(job, program))


@lru_cache(maxsize=1)
def _loaded(path: str, device: str, threads: int, parameters: str | None) -> Program:
    """The program, kept for the next job: the images of a trial come in several."""
    return Program(path, device=device, threads=threads, parameters=parameters)


def _inputs(job: dict[str, Any], program: Program) -> list[np.ndarray]:
    """The program's inputs: the given file, or numbers of a fixed seed."""
    if job["input"]:
        return [_batch(read_images(job["input"], program)[: program.inputs[0].shape[0]], program)]
    random = np.random.default_rng(0)
    return [random.standard_normal(kind.shape).astype(kind.dtype) for kind in program.inputs]


_JOBS = {"evaluate": _evaluate, "time": _time, "memory": _memory, "signature": _signature}

if __name__ == "__main__":
    sys.exit(main())
