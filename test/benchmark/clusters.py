"""What an engine costs to share out an evaluation: start-up, each task, each byte, a killed worker; Dask and Ray.

Run it with the engines that are to be compared installed:

    pip install distributed ray && python test/benchmark/clusters.py
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import time
from collections.abc import Callable
from typing import Any

WORKERS = 2
TASKS = 300
PAYLOAD = 8 << 20


def nothing(payload: bytes = b"") -> int:
    """The least a task can do: its time is the engine's own."""
    return len(payload)


def process() -> int:
    """Which process answers."""
    return os.getpid()


def slow(seconds: float) -> int:
    """A task that a killed worker leaves unfinished."""
    time.sleep(seconds)
    return os.getpid()


def dask() -> tuple[Callable[..., list[Any]], Callable[[], None]]:
    """A function that runs tasks on a fresh local cluster, and one that ends it."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)

    def run(function: Callable, arguments: list[tuple]) -> list[Any]:
        return client.gather([client.submit(function, *given, pure=False) for given in arguments])

    def end() -> None:
        client.close()
        cluster.close()

    return run, end


def ray() -> tuple[Callable[..., list[Any]], Callable[[], None]]:
    """The same for Ray."""
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

    def run(function: Callable, arguments: list[tuple]) -> list[Any]:
        remote = ray.remote(max_retries=3)(function)
        return ray.get([remote.remote(*given) for given in arguments])

    return run, ray.shutdown


ENGINES = {"dask": (dask, ("distributed", "dask")), "ray": (ray, ("ray",))}


def closure(names: tuple[str, ...]) -> set[str]:
    """The distributions that installing these brings along, themselves included."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    todo = [*names]
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        needed = (Requirement(text) for text in importlib.metadata.requires(name) or ())
        todo += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def megabytes(names: set[str]) -> float:
    """What the files of these distributions take on disk."""
    files = (file for name in names for file in importlib.metadata.files(name) or ())
    return sum(path.stat().st_size for path in (file.locate() for file in files) if path.is_file()) / 1e6  # type: ignore[attr-defined]


def measure(name: str) -> str:
    """One row of the table."""
    make, distributions = ENGINES[name]
    began = time.perf_counter()
    run, end = make()
    run(nothing, [()] * WORKERS)
    started = time.perf_counter() - began
    began = time.perf_counter()
    run(nothing, [()] * TASKS)
    task = (time.perf_counter() - began) / TASKS
    payload = os.urandom(PAYLOAD)
    began = time.perf_counter()
    run(nothing, [(payload,)] * 10)
    byte = (time.perf_counter() - began) / 10
    pids = set(run(process, [()] * 20))
    victim = pids.pop()
    began = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    answers = run(slow, [(0.05,)] * 20)
    killed = time.perf_counter() - began
    end()
    size = megabytes(closure(distributions))
    survived = "yes" if len(answers) == 20 and victim not in answers else "no"
    version = importlib.metadata.version(distributions[0])
    return (
        f"| {name} {version} | {size:.0f} MB | {started:.1f} s | {task * 1e3:.2f} ms | {byte * 1e3:.0f} ms "
        f"| {survived}, {killed:.1f} s |"
    )


def main() -> None:
    """Print a table with a row for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=[*ENGINES], help="dask, ray (default: both)")
    print("| engine | on disk | start-up | a task | a task with 8 MiB | after a kill |\n|---|---|---|---|---|---|")
    for name in parser.parse_args().engines:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
