"""Disks that are full, small or read-only: one line, nothing finished lost, and a rerun with room recovers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import sizes
import tiny
from obligations import Obligation

from quantune.errors import UsageError
from quantune.process.private import write_atomically
from quantune.search.scores import Score
from quantune.search.tuner import tune
from quantune.tuning import outcome

Obliged = Callable[[str], Obligation]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes small file systems in memory; skips where this user may mount none."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield make
    for place in reversed(mounted):
        subprocess.run(["umount", "-l", str(place)], check=False)


def _remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def _told(promise: Obligation, what: str, code: int, wanted: int, told: str) -> None:
    promise.tried(code == wanted, f"{what}: exit code {code}: {told}")
    promise.tried(told.count("\n") <= 2 and "Traceback" not in told and "internal error" not in told, f"{what}: {told}")


def test_an_output_folder_that_can_only_be_read(
    disk: Callable[[str], Path], tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk("size=1m,ro")
    tiny.make(tmp_path)
    promise = obligation("a place that cannot be written is refused before the work")
    for more, out in (((), place), (("--config=clip=max",), place / "x.vmfb"), (("--emit=linalg",), place / "x.mlir")):
        code = tiny.search(tmp_path, *(more or ()), out=out) if not more else _one(tmp_path, *more, out=out)
        told = capsys.readouterr().err
        _told(promise, f"{more} -o {out.name}", code, 2, told)
        promise.tried("Read-only file system" in told, told)


def _one(folder: Path, *more: str, out: Path) -> int:
    from quantune.cli import compile as command
    from quantune.cli import entry

    words = [str(folder / "net.mlir"), "--calib", f"npz:{folder / 'calib.npz'}", "-q", "-o", str(out), *more]
    return entry.run("quantune-compile", command.command, words)


def test_a_full_output_folder_is_refused_before_the_work(
    disk: Callable[[str], Path], tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk("size=64k")
    tiny.make(tmp_path)
    (place / "fill").write_bytes(bytes(64 << 10))
    promise = obligation("a place that cannot be written is refused before the work")
    code = tiny.search(tmp_path, out=place)
    told = capsys.readouterr().err
    _told(promise, "a full disk", code, 4, told)
    promise.tried("No space left on device; make room" in told, told)


@pytest.mark.parametrize(
    "name",
    [
        "best.vmfb",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("best.json", "report.json", "report.html")),
    ],
)
def test_a_disk_that_fills_while_results_are_written(
    name: str, tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make(tmp_path)
    write, write_text = write_atomically, Path.write_text
    first = {outcome.BEST: outcome._UNVERIFIED}.get(name, name)  # the artifact gets its name once it is verified

    def fill(path: Path, data: bytes, **options: int) -> None:
        if path.name == first:
            raise OSError(28, os.strerror(28))
        write(path, data, **options)

    def fill_text(path: Path, *arguments: object, **options: object) -> int:
        if path.name.startswith(f".{name}"):
            raise OSError(28, os.strerror(28))
        return write_text(path, *arguments, **options)  # type: ignore[arg-type]

    promise = obligation("a disk that fills while results are written loses nothing that is finished")
    with monkeypatch.context() as full:
        for owner in ("runtime.artifact", "process.places"):
            full.setattr(f"quantune.{owner}.write_atomically", fill)
        full.setattr(Path, "write_text", fill_text)
        code = tiny.search(tmp_path)
    told = capsys.readouterr().err
    _told(promise, name, code, 4, told)
    promise.tried(first in told and "No space left on device" in told, told)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    order = ["best.vmfb", "best.json", "report.json", "report.html"]
    promise.tried(set(order[: order.index(name)]) <= written, f"{name}: only {written}")
    again = tiny.search(tmp_path)
    promise.tried(again == 0 and set(order) <= {p.name for p in (tmp_path / "out").iterdir()}, f"{name}: rerun {again}")


def test_a_cache_that_cannot_be_written_costs_no_trial(
    tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = write_atomically

    def fill(path: Path, data: bytes, **options: int) -> None:
        if path.is_relative_to(tmp_path / "cache"):
            raise OSError(28, os.strerror(28))
        write(path, data, **options)

    monkeypatch.setattr("quantune.cache.write_atomically", fill)
    code = tiny.search(tmp_path)
    told = capsys.readouterr().err
    promise = obligation("a cache that cannot be written costs no trial")
    promise.tried(code == 0 and len(tiny.trials(tmp_path / "out")) >= 4, f"exit code {code}: {told}")
    promise.tried(told.count("\n") == 1 and "what is made now is not kept for later" in told, told)


def test_a_study_on_a_disk_that_can_only_be_read(
    disk: Callable[[str], Path], obligation: Obliged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed writer left a journal, so that opening the study has to write: it stays, and goes on later."""
    place = disk("size=4m")
    space = {"scheme": optuna.distributions.CategoricalDistribution(("symmetric", "asymmetric"))}

    def search() -> list[float]:
        result = tune(lambda config: Score(0.5, 1.0, 1, 1), place, space=space, max_trials=2, first=())
        return [trial.score.accuracy for trial in result.trials if trial.score]

    search()
    study = place / "study.db"
    whole = study.read_bytes()
    _leave_a_journal(study)
    _remount(place, "ro")
    promise = obligation("a study that the system does not let be opened stays as it is")
    with promise.trial("the lock"), pytest.raises(UsageError, match=r"output folder .*: Read-only file system; choose"):
        search()
    monkeypatch.setattr("quantune.search.store._acquire", lambda path: io.StringIO())
    with promise.trial("the database"), pytest.raises(UsageError, match="attempt to write a readonly database; it st"):
        search()
    promise.tried(sorted(path.name for path in place.glob("study.db*")) == ["study.db", "study.db-journal"], "moved")
    _remount(place, "rw")
    promise.tried(search() == [0.5, 0.5] and study.read_bytes() == whole, "the study is another")


def _leave_a_journal(study: Path) -> None:
    """What a process leaves that is killed while it commits."""
    script = (
        "import os, signal, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\nc.execute('PRAGMA cache_spill = 1')\nc.execute('BEGIN')\n"
        "c.execute('CREATE TABLE more (x)')\n"
        "for _ in range(100): c.execute('INSERT INTO more VALUES (zeroblob(5000))')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(study)], check=False)
    assert study.with_name("study.db-journal").stat().st_size


@pytest.mark.slow
def test_a_disk_that_fills_at_any_size(
    disk: Callable[[str], Path], tmp_path: Path, obligation: Obliged, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of every size: the search ends with one line where the disk is full, and goes on with more room."""
    tiny.make(tmp_path)
    promise = obligation("a search on a disk that is too small ends with one line, and goes on with more room")
    for kilobytes in sizes.DISKS:
        place = disk(f"size={kilobytes}k")
        code = tiny.search(tmp_path, out=place)
        told = capsys.readouterr().err
        if code != 0:
            _told(promise, f"{kilobytes} kB", code, 4, told)
        _remount(place, "size=20m")
        again = tiny.search(tmp_path, out=place)
        promise.tried(again == 0, f"{kilobytes} kB, more room: {again}: {capsys.readouterr().err}")
        promise.tried(len(tiny.trials(place)) == tiny.TRIALS + 1, f"{kilobytes} kB: {tiny.trials(place)}")
