"""How many images a second a Dask cluster answers with 1, 2, … workers, and how many it would on more machines.

    python test/benchmark/sharding.py [--images 4000] [--workers 1 2] [--repeat 5]

Measures a quantized network on a cluster of this machine: images that the workers read where they lie, and images that
are sent to them (once: the next repetition finds them there). The rows have to be those of this machine's own runner.
Then it computes: W machines with one worker each answer W shards in the time of one, until the asking side or the
scheduler cannot keep up, each with one processor: what a shard costs them is measured with shards of one image.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dask_cluster
import numpy as np

from quantune import api
from quantune.cluster import runner as cluster
from quantune.cluster.runner import ClusterRunner
from quantune.runtime.engines import LocalRunner


def told(values: list[float], unit: str = "", digits: int = 0) -> str:
    """A median and the range around it."""
    return f"{statistics.median(values):.{digits}f}{unit} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def rates(runner: LocalRunner | ClusterRunner, program: Path, images: Path, count: int, repeat: int) -> list[float]:
    """Images a second; the first repetition begins with nothing running, and is told apart."""
    found = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        rows = runner.run(program, None, images, 0, count)
        found.append(count / (time.perf_counter() - began))
        if not np.array_equal(rows, _EXPECTED.setdefault(images, rows)):
            raise SystemExit("the cluster's rows differ from this machine's")
    return found


_EXPECTED: dict[Path, np.ndarray] = {}


def overhead(runner: ClusterRunner, scheduler: int, program: Path, images: Path, count: int) -> tuple[float, float]:
    """Processor seconds that a shard costs the asking side and the scheduler: shards of one image each."""
    from psutil import Process

    def used() -> tuple[float, float]:
        times = Process(scheduler).cpu_times()
        return time.process_time(), times.user + times.system

    with _shards_of(images, 1):
        runner.run(program, None, images, 0, count)
        before = used()
        runner.run(program, None, images, 0, count)
        mine, its = (after - first for after, first in zip(used(), before, strict=True))
        return mine / count, its / count


@contextlib.contextmanager
def _shards_of(images: Path, count: int) -> Iterator[None]:
    before = cluster._SHARD_BYTES
    cluster._SHARD_BYTES = count * np.load(images, mmap_mode="r")[:1].nbytes
    try:
        yield
    finally:
        cluster._SHARD_BYTES = before


def wait_for(runner: ClusterRunner, workers: int) -> None:
    """Until so many have come."""
    while len(runner._workers()) < workers:
        time.sleep(0.1)


def main() -> None:
    """Print what was measured, then what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:squeezenet1_1_shapes")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    artifact = api.quantize(arguments.model, "precision=int8", calib="builtin:shapes?count=64")
    with tempfile.TemporaryDirectory(prefix="quantune-sharding-") as name:
        folder = Path(name)
        program = folder / "program.vmfb"
        artifact.save(program)
        images, few = folder / "images.npy", folder / "few.npy"
        data = np.random.default_rng(0).standard_normal((arguments.images, 3, 64, 64), np.float32)
        np.save(images, data)
        np.save(few, data[:100])
        measure(arguments, program, images, few, folder)


def measure(arguments: argparse.Namespace, program: Path, images: Path, few: Path, folder: Path) -> None:
    """Both tables."""
    count = arguments.images
    size = max(1, cluster._SHARD_BYTES // np.load(images, mmap_mode="r")[:1].nbytes)
    print(
        f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.0f}; {arguments.model}, int8, "
        f"{count} images in {-(-count // size)} shards; {arguments.repeat} repetitions\n"
    )
    print("| workers | images are | images/s | the first time |\n|---|---|---|---|")
    one, costs = 0.0, (0.0, 0.0)
    for workers in arguments.workers:
        with contextlib.closing(LocalRunner(count=workers)) as local:
            first, *found = rates(local, program, images, count, arguments.repeat)
        print(f"| {workers}, no cluster | here | {told(found)} | {first:.0f} |", flush=True)
    for workers in arguments.workers:
        for shared in (True, False):
            with (
                dask_cluster.cluster(folder, *["shared" if shared else "unshared"] * workers) as (uri, _, scheduler),
                contextlib.closing(ClusterRunner(uri)) as runner,
            ):
                wait_for(runner, workers)
                first, *found = rates(runner, program, images, count, arguments.repeat)
                if workers == 1 and shared:
                    one, costs = statistics.median(found), overhead(runner, scheduler.pid, program, few, 100)
            kind = "shared" if shared else "sent"
            print(f"| {workers} | {kind} | {told(found)} | {first:.0f} |", flush=True)
    if not one:
        return
    mine, its = (1e3 * each for each in costs)
    print(
        f"\na shard costs the asking side {mine:.1f} ms of a processor, the scheduler {its:.1f} ms; computed from that"
    )
    print(f"and from one worker's {one:.0f} images/s:\n")
    machines = (1, 2, 4, 8, 16, 32, 64)
    print(f"| machines | {' | '.join(map(str, machines))} |\n|---|{'---|' * len(machines)}")
    print(f"| images/s | {' | '.join(f'{min(m * one, size / max(costs)):.0f}' for m in machines)} |")


if __name__ == "__main__":
    main()
