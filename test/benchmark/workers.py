"""What a shared study costs, and how many trials an hour a number of workers measure together.

    python test/benchmark/workers.py [--storage URL …] [--workers 1 2 4 8] [--seconds 0.2] [--markdown]

Each worker "measures" by sleeping for a known time, so that what is left is the search's own: proposing, claiming,
storing, waiting. Workers that sleep do not compete for the processor; on one machine those that measure do, and a
second one pays only as far as a trial leaves the processors idle. So the second table computes: with t seconds of
measuring and c of the search's own in a trial, W machines measure 3600 W / (t + c) trials an hour, while the database
answers as fast as it does here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "faults"))

from workers import Job, broken_promises, finish

TRIALS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="*", default=[], metavar="URL", help="besides SQLite in a temporary folder")
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--seconds", type=float, default=0.2, help="of one measurement (0.2)")
    parser.add_argument("--sampler", default="random", help="random (default), tpe, genetic, grid or xgboost")
    arguments = parser.parse_args()
    print(f"{TRIALS} trials of {arguments.seconds:g} s each, sampler {arguments.sampler}\n")
    print("| storage | workers | s in all | trials/s | share of the ideal | s of the search's own in a trial |")
    print("|---|---|---|---|---|---|")
    own: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="quantune-workers-") as folder:
        for number, url in enumerate(["", *arguments.storage]):
            for count in arguments.workers:
                place = Path(folder) / f"{number}-{count}"
                place.mkdir()
                address = url or f"sqlite:///{place}/study.db"
                kind = address.partition("+")[0].partition(":")[0]
                job = Job(address, place, max_trials=TRIALS, seconds=arguments.seconds, sampler=arguments.sampler,
                          model=f"{time.time_ns()}")  # fmt: skip
                seconds = measured(job, count)
                ideal = (TRIALS + count) * arguments.seconds / count  # f32 holds all of them
                each = count * seconds / TRIALS - (1 + count / TRIALS) * arguments.seconds
                own.setdefault(kind, each)
                cells = f"{seconds:.2f} | {TRIALS / seconds:.2f} | {ideal / seconds:.0%} | {each:.3f}"
                print(f"| {kind} | {count} | {cells} |", flush=True)
    print("\ntrials an hour, computed\n")
    print("| storage | measuring takes | 1 machine | 2 | 4 | 8 | 16 |")
    print("|---|---|---|---|---|---|---|")
    for kind, each in own.items():
        for trial in (2, 10, 60):
            cells = " | ".join(f"{3600 * machines / (trial + max(each, 0)):.0f}" for machines in (1, 2, 4, 8, 16))
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
