"""kill -9 at random moments of a real search, and the same command again: nothing finished is lost or repeated.

QUANTUNE_KILLS says how many (see sizes.py), QUANTUNE_SEED from which seed the moments are drawn, QUANTUNE_JOBS how
many searches run at a time. Every other search begins with an empty cache, where there is more to interrupt.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import sizes
from obligations import Obligation
from searching import Child, Search, Uninterrupted, ended

VICTIMS = ("parent", "group", "worker", "compiler")
CHILDREN = {"worker": "quantune.runtime.worker", "compiler": "iree-compile"}
KEPT = "kill -9 loses and repeats no finished trial"
SAME = "after kill -9 the same command gives the trials and the answer of an uninterrupted search"
GONE = "kill -9 leaves no process and no temporary folder"


@dataclass(frozen=True)
class Moment:
    """Whom to kill, so many seconds after the start or once there is one, and whether the cache is full by then.

    ready: the search is forked from a process that has imported everything.
    """

    victim: str
    warm: bool
    seconds: float
    ready: bool = False

    def __str__(self) -> str:
        return f"{self.victim} at {self.seconds:.2f} s, {'full' if self.warm else 'empty'} cache"


@dataclass(frozen=True)
class Outcome:
    """What became of one: in words, and for each promise how it was broken, if it was."""

    line: str
    broken: dict[str, str]


def moments(whole: Uninterrupted, seed: int, count: int) -> Iterator[Moment]:
    """As many moments as asked for, anywhere in a search, each victim as often; the compiler needs an empty cache."""
    random_ = random.Random(seed)
    for number in range(count):
        victim, warm = VICTIMS[number % 4], number // 4 % 2 == 0
        warm = warm and victim != "compiler"
        yield Moment(victim, warm, random_.uniform(0, whole.warm_s if warm else whole.cold_s))


def strike(search: Search, child: Child, victim: str, moment: float) -> bool:
    """Kill the victim so many seconds after the start, or as soon as there is one; False if the search ends before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(moment)
    while child.poll() is None:
        if victim == "parent":
            os.kill(child.pid, signal.SIGKILL)
            return True
        if victim == "group":
            os.killpg(child.pid, signal.SIGKILL)
            return True
        for pid in search.processes(CHILDREN[victim]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        time.sleep(0.005)
    return False


def one(whole: Uninterrupted, folder: Path, moment: Moment) -> Outcome:
    """Kill once, start the same command again, and compare with the search that nobody disturbed."""
    folder.mkdir()
    if moment.warm:
        shutil.copytree(whole.cache, folder / "cache")
    search = Search(folder, folder / "cache", whole.data, ready=moment.ready)
    with ended(search.start()) as child:
        hit = strike(search, child, moment.victim, moment.seconds)
        code = child.wait(3600)
    left = search.wait_until_gone()
    before = search.finished()
    again = search.run()
    after, broken = search.finished(), {}
    if any(after.get(number) != trial for number, trial in before.items()):
        broken[KEPT] = f"{before} became {after}"
    answer = search.answer() if again == 0 else {"exit code": again, "said": search.said()[-300:]}
    if answer != whole.answer:
        broken[SAME] = str(answer)
    left += search.wait_until_gone()
    folders = [path.name for path in search.temporary.iterdir()]
    if left or folders:
        broken[GONE] = f"processes {left}, folders {folders}"
    if not broken:
        shutil.rmtree(folder)
    how = "hit" if hit else "ended before"
    return Outcome(f"{moment}, {len(before)} trials finished: {how}, exit code {code}, then {again}", broken)


def kill_all(
    chosen: list[Moment], whole: Uninterrupted, folder: Path, obligation: Callable[[str], Obligation],
    tell: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Kill at every moment, some searches at a time."""
    promises = [obligation(name) for name in (KEPT, SAME, GONE)]
    with ThreadPoolExecutor(int(os.environ.get("QUANTUNE_JOBS", "2"))) as pool:
        folders = (folder / str(number) for number in range(len(chosen)))
        for number, outcome in enumerate(
            pool.map(lambda each: one(whole, *each), zip(folders, chosen, strict=True)), 1
        ):
            for promise in promises:
                found = outcome.broken.get(promise.name)
                promise.tried(found is None, f"{outcome.line}: {found}")
            held = " ".join(f"{promise.held}/{promise.count}" for promise in promises)
            tell(f"kill {number} of {len(chosen)}: {outcome.line}; held {held}")


def test_kill_9(obligation: Callable[[str], Obligation], whole: Uninterrupted, tmp_path: Path) -> None:
    """One moment in the midst of a search for the parent, its group and a worker."""
    chosen = [Moment(victim, True, 0.3 * whole.warm_s, ready=True) for victim in ("parent", "group", "worker")]
    kill_all(chosen, whole, tmp_path, obligation)


@pytest.mark.slow
def test_kill_9_at_random_moments(
    obligation: Callable[[str], Obligation], whole: Uninterrupted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed, count = int(os.environ.get("QUANTUNE_SEED", "0")), sizes.KILLS

    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    tell(f"QUANTUNE_SEED={seed} QUANTUNE_KILLS={count}")
    kill_all(list(moments(whole, seed, count)), whole, tmp_path, obligation, tell)
