"""What a shared study costs, and how many trials an hour a number of workers measure together.

    python test/benchmark/workers.py [--postgres] [--storage URL …] [--workers 1 2 4 8] [--seconds 0.5] [--repeat 3]

Each worker "measures" by sleeping for a known time, so that what is left is the search's own: proposing, claiming,
storing, waiting. Workers that sleep do not compete for the processor; on one machine those that measure do, and a
second one pays only as far as a trial leaves the processors idle. So the second table computes: with t seconds of
measuring and c seconds of the processor for the search's own work in a trial, W machines measure 3600 W / (t + c)
trials an hour, while the database keeps up. Every worker reads the trials of all, so c grows with W: the line through
what was measured says how. Processor time depends less than the clock on what else runs here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "faults"))

import numpy as np
from postgres import Postgres, missing
from workers import Job, broken_promises, finish, lines

from quantune.search import heartbeat

TRIALS = 24


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="*", default=[], metavar="URL", help="besides SQLite in a temporary folder")
    parser.add_argument(
        "--postgres", action="store_true", help="besides SQLite, on a PostgreSQL server that is started"
    )
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement (0.5)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument("--sampler", default="random", help="random (default), tpe, genetic, grid or xgboost")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as held:
        if arguments.postgres:
            if reason := missing():
                raise SystemExit(f"PostgreSQL: {reason}")
            arguments.storage.append(held.enter_context(Postgres()).url())
        tables(arguments)


def tables(arguments: argparse.Namespace) -> None:
    """What was measured, then what follows from it."""
    load = f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.0f}"
    print(f"{TRIALS} trials of {arguments.seconds:g} s each, sampler {arguments.sampler}; {load}; medians (range)\n")
    print(
        "| storage | workers | s in all | trials/s | share of the ideal | processor ms of the search's own in a trial |"
    )
    print("|---|---|---|---|---|---|")
    own: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="quantune-workers-") as folder:
        for number, url in enumerate(["", *arguments.storage]):
            for count in arguments.workers:
                found, cpu = [], []
                for repetition in range(arguments.repeat):
                    place = Path(folder) / f"{number}-{count}-{repetition}"
                    place.mkdir()
                    address = url or f"sqlite:///{place}/study.db"
                    job = Job(
                        address, place, max_trials=TRIALS, seconds=arguments.seconds, sampler=arguments.sampler,
                        model=f"{time.time_ns()}", beat_s=heartbeat.BEAT_S, grace_s=heartbeat.GRACE_S,
                    )  # fmt: skip
                    found.append(measured(job, count))
                    cpu.append(sum(lines(job, "cpu")) / TRIALS)
                kind = address.partition("+")[0].partition(":")[0]
                seconds = statistics.median(found)
                ideal = (TRIALS + count) * arguments.seconds / count  # f32 holds all of them
                each = statistics.median(cpu)
                own.setdefault(kind, []).append((count, each))
                spread = f"{seconds:.1f} ({min(found):.1f}–{max(found):.1f})"
                cells = f"{spread} | {TRIALS / seconds:.2f} | {ideal / seconds:.0%} | {each * 1e3:.0f}"
                print(f"| {kind} | {count} | {cells} |", flush=True)
    computed(own)


def computed(own: dict[str, list[tuple[int, float]]]) -> None:
    """What follows for one worker on each of some machines; own: by storage, (workers, seconds of a processor)."""
    print("\ntrials an hour, computed\n")
    print("| storage | measuring takes | 1 machine | 2 | 4 | 8 | 16 |")
    print("|---|---|---|---|---|---|---|")
    for kind, points in own.items():
        counts, costs = zip(*points, strict=True)
        line = np.poly1d(np.polyfit(counts, costs, min(1, len(points) - 1)))
        for trial in (2, 10, 60):
            cells = " | ".join(
                f"{3600 * machines / (trial + max(0, line(machines))):.0f}" for machines in (1, 2, 4, 8, 16)
            )
            print(f"| {kind} | {trial} s | {cells} |")


def measured(job: Job, count: int) -> float:
    """Seconds from the first measurement to the end of the last worker, the workers' start not counted."""
    workers = [job.start(f"w{i}") for i in range(count)]
    while not job.log.exists():
        time.sleep(0.005)
    begin = time.monotonic()
    finish(workers)
    seconds = time.monotonic() - begin
    if found := broken_promises(job):
        raise SystemExit(f"the workers broke a promise: {found}")
    return seconds


if __name__ == "__main__":
    main()
