"""Workers that share a search and die, on PostgreSQL, on Optuna's gRPC proxy and on SQLite."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import postgres
import pytest
import sizes
import sqlalchemy.exc
from obligations import Obligation
from optuna.storages._cached_storage import _CachedStorage
from postgres import Postgres
from workers import Job, await_begun, broken_promises, finish, lines

from quantune.search.storage import make_study, open_storage, release

pytestmark = [pytest.mark.slow]

Promise = Callable[[str], Obligation]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with Postgres() as running:
        yield running


def test_4_workers_with_random_kills(server: Postgres, tmp_path: Path, obligation: Promise) -> None:
    """Started together on a fresh database; three of them are killed at random moments and replaced."""
    promise = obligation("workers on PostgreSQL, random kills: no trial twice, budget exact, f32 once")
    for run in range(sizes.RUNS):
        rng = random.Random(run)
        # Every other run the workers cannot look up each other's processes, as on several machines.
        machine = "elsewhere" if run % 2 else ""
        job = Job(server.database(f"kills{run}"), tmp_path / str(run), machine=machine)
        workers = [job.start(f"w{i}") for i in range(4)]
        ended = []
        for kill in range(3):
            time.sleep(rng.uniform(0.0, 1.2))
            victim = workers.pop(rng.randrange(len(workers)))
            victim.kill()
            ended.append(victim)
            workers.append(job.start(f"again{kill}"))
        finish(workers)
        promise.tried(not (found := broken_promises(job)), f"run {run}: {found}")


def test_a_restarted_database(server: Postgres, tmp_path: Path, obligation: Promise) -> None:
    promise = obligation("workers on PostgreSQL, server stopped at once and started again: nothing lost")
    for run, away_s in enumerate((0.0, 3.0)):
        job = Job(server.database(f"restart{run}"), tmp_path / str(run), seconds=0.2, machine="elsewhere")
        workers = [job.start(f"w{i}") for i in range(4)]
        await_begun(job, 8, workers)
        server.stop()
        time.sleep(away_s)
        server.start()
        finish(workers)
        promise.tried(not (found := broken_promises(job)), f"away for {away_s} s: {found}")
        said = [text for text in lines(job, "note") if "does not answer" in text]
        promise.tried(bool(said) and not any("sesame" in text for text in said), "what was said")


def test_a_worker_that_hangs_is_replaced_and_does_no_harm_when_it_goes_on(
    server: Postgres, tmp_path: Path, obligation: Promise
) -> None:
    promise = obligation("a worker that stands still: its trial is taken over, and is not counted twice")
    job = Job(server.database("hangs"), tmp_path, seconds=0.3, machine="elsewhere", max_trials=10)
    workers = [job.start(f"w{i}") for i in range(3)]
    await_begun(job, 4, workers)
    pid = workers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    finish(workers[1:])
    os.kill(pid, signal.SIGCONT)
    finish(workers[:1])
    promise.tried(not (found := broken_promises(job)), str(found))


def test_the_locks_of_a_worker_that_stands_still_are_given_back(
    server: Postgres, obligation: Promise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may be suspended in the midst of a write: the others waited for ever."""
    monkeypatch.setattr("quantune.search.storage.IDLE_S", 1)
    url, lock = server.database("locks"), sqlalchemy.text("SELECT * FROM studies FOR UPDATE")
    still, other = open_storage(url), open_storage(url)
    make_study(still, "shared", "maximize")
    engines = [each._backend.engine for each in (still, other) if isinstance(each, _CachedStorage)]
    promise = obligation("a worker that stands still: its trial is taken over, and is not counted twice")
    with contextlib.suppress(sqlalchemy.exc.DBAPIError), engines[0].connect() as standing:
        standing.execute(lock)
        with promise.trial("a lock"), engines[1].begin() as waiting:
            waiting.execute(sqlalchemy.text("SET lock_timeout = '60s'"))
            waiting.execute(lock)
    promise.tried(len(still.get_all_studies()) == 1, "it does not go on")
    release(still)
    release(other)


def test_workers_started_together_on_every_kind_of_storage(
    server: Postgres, tmp_path: Path, obligation: Promise
) -> None:
    promise = obligation("4 workers started together on a fresh storage: none refuses, no trial twice, budget exact")
    for run in range(3):
        for kind, url in {
            "PostgreSQL": server.database(f"together{run}"),
            "SQLite": f"sqlite:///{tmp_path}/together{run}.db",
        }.items():
            job = Job(url, tmp_path / f"{kind}{run}", max_trials=12)
            finish([job.start(f"w{i}") for i in range(4)])
            promise.tried(not (found := broken_promises(job)), f"{kind}: {found}")
            promise.tried(len(lines(job, "done")) == 4, f"{kind}: {len(lines(job, 'done'))} of 4 were done")


def test_workers_on_the_grpc_proxy(server: Postgres, tmp_path: Path, obligation: Promise) -> None:
    pytest.importorskip("grpc")
    promise = obligation("workers on Optuna's gRPC proxy: no trial twice, budget exact, f32 once")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    proxy = multiprocessing.get_context("spawn").Process(target=serve, args=(server.database("proxied"), port))
    proxy.start()
    try:
        job = Job(f"grpc://127.0.0.1:{port}", tmp_path, machine="elsewhere")
        workers = [job.start(f"w{i}") for i in range(4)]
        await_begun(job, 6, workers)
        workers.pop().kill()
        finish(workers)
        promise.tried(not (found := broken_promises(job)), str(found))
        promise.tried(len(lines(job, "done")) == 3, f"{len(lines(job, 'done'))} of 3 were done")
    finally:
        proxy.kill()
        proxy.join()


def test_several_models_share_a_database(server: Postgres, tmp_path: Path, obligation: Promise) -> None:
    promise = obligation("several models in one database")
    url = server.database("models")
    jobs = [Job(url, tmp_path / model, model=model, max_trials=5) for model in ("first", "second")]
    finish([job.start(f"w{i}") for job in jobs for i in range(2)])
    for job in jobs:
        promise.tried(not (found := broken_promises(job)), str(found))


def serve(url: str, port: int) -> None:
    """Optuna's proxy, as docs/workers.md starts it."""
    import warnings

    from optuna.storages import get_storage, run_grpc_proxy_server

    warnings.simplefilter("ignore")
    run_grpc_proxy_server(get_storage(url), host="127.0.0.1", port=port)
