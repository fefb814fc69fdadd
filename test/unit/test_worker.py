"""Workers that die, hang or lie, and workers that another thread stops: told at once, whatever they are at."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from quantune.errors import RunFailed
from quantune.runtime.child import Worker
from quantune.runtime.engines import LocalRunner

JOB_S, GENEROUS_S = 7200.0, 600.0
"""The time-out of a job, and how long a test waits for what takes a moment."""

# Answers a job with an array of its images' numbers; hangs, dies or lies at the image that a file names.
FAKE = """
import json, os, sys, time
import numpy as np
for line in sys.stdin:
    job = json.loads(line)
    open(sys.argv[0] + ".at." + str(job["first"]), "w").close()
    fault = sys.argv[0] + "." + str(job["first"])
    answered = False
    if os.path.exists(fault):
        exec(open(fault).read())
    if answered:
        continue
    np.save(job["output"], np.arange(job["first"], job["first"] + job["count"])[:, None].astype(np.float32))
    print(json.dumps({"result": {"seconds": 0, "timing": None}}), flush=True)
"""


@pytest.fixture(name="fault")
def _fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Puts a fake into the workers' place; what is returned sets what it does at the job that begins at an image."""
    program = tmp_path / "worker"
    program.write_text(f"#!{sys.executable}\n{FAKE}")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def fault(first: int, code: str) -> None:
        (tmp_path / f"worker.{first}").write_text(code)

    return fault


def _is_at(tmp_path: Path, first: int) -> bool:
    """Wait until the fake is at the job that begins at an image."""
    deadline = time.monotonic() + GENEROUS_S
    while not (tmp_path / f"worker.at.{first}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


HANG = "time.sleep(7200)"


def test_stopping_a_worker_from_another_thread_ends_its_job(fault, tmp_path: Path) -> None:
    fault(0, HANG)
    with Worker(timeout_s=JOB_S) as worker, ThreadPoolExecutor(1) as pool:
        job = pool.submit(worker.evaluate, "p", "i", first=0, count=2)
        assert _is_at(tmp_path, 0)
        worker.stop()
        with pytest.raises(RunFailed, match="ended with SIGKILL"):
            job.result(GENEROUS_S)
        assert worker.evaluate("p", "i", first=1, count=2).logits.tolist() == [[1], [2]]


def test_stopping_while_the_child_is_being_started(fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread holds the job but has no child yet when it is stopped."""
    fault(0, HANG)
    starting, go_on = threading.Event(), threading.Event()
    with Worker(timeout_s=JOB_S) as worker, ThreadPoolExecutor(2) as pool:
        start = worker._servant._start

        def slowly():
            starting.set()
            assert go_on.wait(GENEROUS_S)
            return start()

        monkeypatch.setattr(worker._servant, "_start", slowly)
        job = pool.submit(worker.evaluate, "p", "i", first=0, count=2)
        assert starting.wait(GENEROUS_S)
        stopped = pool.submit(worker.stop)
        go_on.set()
        stopped.result(GENEROUS_S)
        with pytest.raises(RunFailed, match="ended with SIGKILL"):
            job.result(GENEROUS_S)


@pytest.mark.parametrize("dies", [0, 1], ids=["first", "second"])
def test_a_worker_that_dies_ends_the_jobs_of_the_others(fault, tmp_path: Path, dies: int) -> None:
    other = tmp_path / f"worker.at.{1 - dies}"
    fault(dies, f"while not os.path.exists({str(other)!r}): time.sleep(0.01)\nos.abort()")
    fault(1 - dies, HANG)
    runner = LocalRunner(count=2, timeout_s=JOB_S)
    done: list[Exception] = []

    def run() -> None:
        try:
            runner.run(Path("p"), None, Path("i"), 0, 2)
        except RunFailed as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(GENEROUS_S)
    assert not thread.is_alive()
    assert "ended with SIGABRT" in str(done[0])  # what happened, not what it was answered with
    fault(dies, "")
    fault(1 - dies, "")
    assert runner.run(Path("p"), None, Path("i"), 0, 2).tolist() == [[0], [1]]
    runner.close()


def test_an_interrupt_ends_every_job(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantune.runtime import engines

    fault(0, HANG)
    fault(1, HANG)
    waited = engines.wait

    def interrupted(futures, **options):
        if "return_when" in options:
            assert _is_at(tmp_path, 0)
            assert _is_at(tmp_path, 1)
            raise KeyboardInterrupt
        return waited(futures, **options)

    monkeypatch.setattr(engines, "wait", interrupted)
    runner = LocalRunner(count=2, timeout_s=JOB_S)
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(runner.run, Path("p"), None, Path("i"), 0, 2).result(GENEROUS_S)
    runner.close()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("print('nonsense', flush=True); answered = True", "answered something else.*nonsense"),
        ("print('[1]', flush=True); answered = True", "answered something else"),
        ("print(json.dumps({'error': 'SystemExit', 'message': 'x'}), flush=True); answered = True", "^x$"),
        ("os.unlink(job['output']) if os.path.exists(job['output']) else None; "
         "print(json.dumps({'result': {}}), flush=True); answered = True", "the run wrote no results"),
        ("open(job['output'], 'w').write('x'); print(json.dumps({'result': {}}), flush=True); answered = True",
         "the run wrote no results"),
    ],
    ids=["noise", "list", "unknown-error", "nothing", "garbage"],
)  # fmt: skip
def test_a_worker_that_lies(fault, lie: str, message: str) -> None:
    fault(0, lie)
    with Worker(timeout_s=JOB_S) as worker:
        with pytest.raises(RunFailed, match=message):
            worker.evaluate("p", "i", first=0, count=2)
        np.testing.assert_array_equal(worker.evaluate("p", "i", first=3, count=1).logits, [[3]])


def test_a_worker_that_leaves_images_out(fault) -> None:
    fault(0, "job['count'] -= 1")
    runner = LocalRunner(count=1, timeout_s=JOB_S)
    with pytest.raises(RunFailed, match="gave 1 results for 2 images"):
        runner.run(Path("p"), None, Path("i"), 0, 2)
    runner.close()
