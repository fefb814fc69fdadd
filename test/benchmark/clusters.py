"""What an engine costs to share out an evaluation: size, start, each task, each byte, a killed worker; Dask and Ray.

    pip install distributed ray && python test/benchmark/clusters.py [dask] [ray] [--repeat 3]

Tasks sleep, so that what is compared is the engine and not what else runs on the machine. Figures are medians of the
repetitions, with their range behind them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WORKERS = 2
TASKS = 200
SLEEP_S = 0.02
PAYLOAD = 8 << 20
Run = Callable[[Callable, list[tuple]], list[Any]]


def nothing(payload: bytes = b"") -> int:
    """The least a task can do: its time is the engine's own."""
    return len(payload)


def sleep(seconds: float) -> int:
    """A task of a known length; the process that answers."""
    time.sleep(seconds)
    return os.getpid()


def dask(workers: int) -> tuple[Run, Callable[[], None]]:
    """A function that runs tasks on a fresh local cluster, and one that ends it."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)

    def run(function: Callable, arguments: list[tuple]) -> list[Any]:
        return client.gather([client.submit(function, *given, pure=False) for given in arguments])

    def end() -> None:
        client.close()
        cluster.close()

    return run, end


def ray(workers: int) -> tuple[Run, Callable[[], None]]:
    """The same for Ray."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

    def run(function: Callable, arguments: list[tuple]) -> list[Any]:
        remote = ray.remote(max_retries=3)(function)
        return ray.get([remote.remote(*given) for given in arguments])

    return run, ray.shutdown


ENGINES = {"dask": (dask, ("distributed", "dask")), "ray": (ray, ("ray",))}


def megabytes(names: tuple[str, ...]) -> float:
    """What the files of these distributions, and of all that they need, take on disk."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    todo, total = [*names], 0
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        needed = (Requirement(text) for text in importlib.metadata.requires(name) or ())
        todo += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
        places = (importlib.metadata.distribution(name).locate_file(f) for f in importlib.metadata.files(name) or ())
        total += sum(os.stat(place).st_size for place in places if os.path.isfile(place))  # noqa: PTH113, PTH116
    return total / 1e6


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(name: str) -> dict[str, float]:
    """One repetition: everything in seconds, or tasks a second."""
    make, (module, *_) = ENGINES[name]
    found = {"import": seconds(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True))}
    for workers in (1, WORKERS):
        started: list[tuple[Run, Callable[[], None]]] = []

        def start(workers: int = workers, started: list = started) -> None:
            started.append(make(workers))
            started[0][0](nothing, [()] * workers)

        found[f"start {workers}"] = seconds(start)
        run, end = started[0]
        run(sleep, [(SLEEP_S,)] * workers * 2)  # each worker has begun
        found[f"task {workers}"] = seconds(lambda run=run: run(nothing, [()] * TASKS)) / TASKS
        found[f"rate {workers}"] = TASKS / seconds(lambda run=run: run(sleep, [(SLEEP_S,)] * TASKS))
        payload = os.urandom(PAYLOAD)
        found[f"payload {workers}"] = seconds(lambda run=run, p=payload: run(nothing, [(p,)] * 10)) / 10
        if workers == WORKERS:
            found |= after_a_kill(run)
        end()
    return found


def after_a_kill(run: Run) -> dict[str, float]:
    """Kill a worker in the middle of 40 tasks: whether all are answered, and how long that takes."""
    import threading

    victim = run(sleep, [(SLEEP_S,)] * 8)[0]
    killer = threading.Timer(0.2, lambda: os.kill(victim, signal.SIGKILL))
    killer.start()
    answers: list[int] = []
    taken = seconds(lambda: answers.extend(run(sleep, [(0.05,)] * 40)))
    killer.join()
    return {"survived": float(len(answers) == 40), "killed": taken}


def told(values: list[float], unit: str, factor: float = 1, digits: int = 1) -> str:
    """A median and the range around it."""
    low, middle, high = (factor * x for x in (min(values), statistics.median(values), max(values)))
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f}–{high:.{digits}f})"


def main() -> None:
    """Print a table with a row for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=[*ENGINES], help="dask, ray (default: both)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (3)")
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.0f}; {arguments.repeat} repetitions\n")
    titles = (
        "engine", "on disk", "import", f"start with {WORKERS} workers", "an empty task", "a task with 8 MiB",
        f"{SLEEP_S * 1e3:.0f} ms tasks a second, 1 worker", f"{WORKERS} workers", "2 s of tasks, a worker killed",
    )  # fmt: skip
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name in arguments.engines:
        found = [measure(name) for _ in range(arguments.repeat)]
        columns = {key: [each[key] for each in found] for key in found[0]}
        distributions = ENGINES[name][1]
        cells = (
            f"{name} {importlib.metadata.version(distributions[0])}", f"{megabytes(distributions):.0f} MB",
            told(columns["import"], "s"), told(columns[f"start {WORKERS}"], "s"),
            told(columns["task 1"], "ms", 1e3, 2), told(columns[f"payload {WORKERS}"], "ms", 1e3, 0),
            told(columns["rate 1"], "/s"), told(columns[f"rate {WORKERS}"], "/s"),
            ("survived, " if all(columns["survived"]) else "tasks lost, ") + told(columns["killed"], "s"),
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
