"""A Dask cluster for tests and benchmarks: a scheduler and workers, as processes of this machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_WORKER = """
import sys
from quantune.cluster import shards
if "unshared" in sys.argv:
    sys.argv.remove("unshared")
    shards._Site._is_shared = lambda self, part: False
from distributed.cli.dask_worker import main
main()
"""


@contextlib.contextmanager
def cluster(folder: Path, *modes: str) -> Iterator[tuple[str, list[subprocess.Popen], subprocess.Popen]]:
    """A scheduler and a worker for each mode (shared: it sees the images' folder; unshared), all processes."""
    with contextlib.ExitStack() as held:

        def start(*command: str) -> subprocess.Popen:
            child = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, cwd=folder, text=True)
            held.callback(child.wait)
            held.callback(child.kill)
            return child

        here = ("--host", "127.0.0.1", "--no-dashboard")
        scheduler = start("-m", "distributed.cli.dask_scheduler", *here, "--port", "0")
        assert scheduler.stderr is not None
        line = next(line for line in scheduler.stderr if "Scheduler at:" in line)
        address = line.split()[-1]
        workers = [
            start(
                "-c", _WORKER, *({mode} - {"shared"}), address, *here, "--no-nanny", "--nthreads", "1", "--name", str(i)
            )
            for i, mode in enumerate(modes)
        ]
        yield address.replace("tcp://", "dask://"), workers, scheduler
