"""Workers of a search as processes of their own that can be killed, and what they have to have done in the end."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna

from quantune.process import owner
from quantune.quantization.config import QuantConfig
from quantune.search import heartbeat
from quantune.search.progress import TuningEvent
from quantune.search.scores import Score
from quantune.search.storage import open_storage, release
from quantune.search.tuner import tune

_context = multiprocessing.get_context("forkserver")  # a worker starts in milliseconds: all is imported once
_context.set_forkserver_preload(["quantune.search.tuner", "psycopg"])


@dataclass(frozen=True)
class Job:
    """What a worker does. seconds: of one measurement. machine: another name than this one's, or its own."""

    url: str
    folder: Path
    max_trials: int = 24
    sampler: str = "random"
    seconds: float = 0.03
    machine: str = ""
    beat_s: float = 0.2
    grace_s: float = 3.0
    model: str = "toy"

    @property
    def log(self) -> Path:
        """Where all workers on a database write what they begin and what they end with."""
        return self.folder / "log"

    def start(self, name: str) -> BaseProcess:
        """A worker at work."""
        self.folder.mkdir(exist_ok=True, parents=True)
        process = _context.Process(target=work, args=(self, name, list(sys.path)), daemon=True)
        process.start()
        return process


def score(config: QuantConfig) -> Score:
    """A score that the configuration alone decides."""
    if config.is_float:
        return Score(0.8, 1.0, 4000, 1000)
    return Score(0.7 + 0.1 * int(hashlib.sha256(str(config).encode()).hexdigest()[:2], 16) / 256, 1.0, 1000, 1000)


def work(job: Job, name: str, path: list[str]) -> None:
    """The whole life of a worker."""
    sys.path[:] = path
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    heartbeat.BEAT_S, heartbeat.GRACE_S = job.beat_s, job.grace_s
    if job.machine:  # its processes cannot be looked up from here
        own = owner.lease()
        import quantune.search.claims as claims

        claims.lease = lambda: {**own, "host": job.machine, "boot": job.machine}

    def note(what: str, value: object) -> None:
        line = json.dumps([what, os.getpid(), value]) + "\n"
        with job.log.open("a", encoding="utf-8") as file:
            file.write(line)

    def evaluate(config: QuantConfig) -> Score:
        note("begin", str(config))
        time.sleep(job.seconds)
        return score(config)

    def heard(event: TuningEvent) -> None:
        if event.kind == "note":
            note("note", event.message)

    try:
        result = tune(
            evaluate, job.folder / name, max_trials=job.max_trials, sampler=job.sampler, storage=job.url,
            fingerprint={"model": job.model}, on_event=heard,
        )  # fmt: skip
        best = None if result.best is None else str(result.best.config)
        note("cpu", time.process_time())
        note("done", [sorted(str(t.config) for t in result.trials), best, result.stopped])
    except BaseException as error:
        note("error", f"{type(error).__name__}: {error}")
        raise


def lines(job: Job, what: str) -> list[Any]:
    """What the workers wrote under a word."""
    if not job.log.exists():
        return []
    found = (json.loads(line) for line in job.log.read_text(encoding="utf-8").splitlines() if line.endswith("]"))
    return [value for word, _, value in found if word == what]


def await_begun(job: Job, count: int, workers: list[BaseProcess]) -> None:
    """Wait until the workers have begun so many measurements."""
    while len(lines(job, "begin")) < count:
        assert any(worker.is_alive() for worker in workers), f"no worker is left: {lines(job, 'error')}"
        time.sleep(0.05)


def finish(workers: list[BaseProcess], timeout_s: float = 300) -> None:
    """Wait until all workers have ended by themselves."""
    deadline = time.monotonic() + timeout_s
    for worker in workers:
        worker.join(max(1.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            raise AssertionError(f"a worker was still at work after {timeout_s} s")


def broken_promises(job: Job) -> list[str]:
    """What the workers on a database did that they must not have done; empty where all is well."""
    backend = open_storage(job.url)
    try:
        names = [s.study_name for s in optuna.get_all_study_summaries(backend, include_best_trial=False)]
        (name,) = [n for n in names if n.startswith(f"quantune {job.model} ") and not n.endswith("baselines")]
        search = optuna.load_study(study_name=name, storage=backend).trials
        baselines = optuna.load_study(study_name=f"{name} baselines", storage=backend).trials
    finally:
        release(backend)
    found = [f"error: {text}" for text in lines(job, "error")]
    complete = Counter(str(t.user_attrs["config"]) for t in (*search, *baselines) if t.state.name == "COMPLETE")
    died = Counter(str(t.user_attrs["config"]) for t in (*search, *baselines) if t.user_attrs.get("void") == "died")
    begun = Counter(lines(job, "begin"))
    found += [f"{config} has {count} results" for config, count in complete.items() if count > 1]
    found += [f"{c} was begun {n} times, {died[c]} died" for c, n in begun.items() if n > complete[c] + died[c]]
    found += [f"trial {t.number} is {t.state.name}" for t in search if not t.state.is_finished()]
    quantized = [c for c in complete if "precision=f32" not in c]
    if len(quantized) != job.max_trials:
        found.append(f"{len(quantized)} trials, {job.max_trials} wanted")
    if complete[str(QuantConfig(precision="f32"))] != 1:
        found.append("f32 was not measured")
    done = lines(job, "done")
    if any(trials != sorted(quantized) for trials, _, _ in done) or len({best for _, best, _ in done}) != 1:
        found.append("workers give different answers")
    return found
