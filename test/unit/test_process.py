"""Child processes: they end with their owner, import nothing from the current folder, and leave no folder behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantune.errors import EnvironmentFailure
from quantune.process import children, owner, scratch, watcher

GENEROUS_S = 600.0

# An owner with a child and a grandchild, one of them stopped; prints their process numbers and its folder.
OWNER = """
import os, signal, sys, time
from quantune.process import children, scratch
body = "import os, time; os.fork(); os.write(1, str(os.getpid()).encode() + bytes([10])); time.sleep(600)"
child = children.start([sys.executable, "-S", "-c", body], stdout=-1)
pids = [int(child.stdout.readline()), int(child.stdout.readline())]
os.kill(max(pids), signal.SIGSTOP)
with scratch.folder("work") as folder:
    (folder / "file").write_text("x")
    print(*pids, scratch.root(), flush=True)
    {end}
"""


def until(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true; the limit is far beyond what it takes."""
    deadline = time.monotonic() + GENEROUS_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(name="temporary")
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, for this process and its children."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(folder))
    monkeypatch.setattr(scratch, "_root", None)
    return folder


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.killpg(0, signal.SIGKILL)", -signal.SIGKILL),
        ("os._exit(0)", 0),
        ("sys.exit(0)", 0),
    ],
    ids=["killed", "group-killed", "left", "done"],
)
def test_children_and_folder_end_with_their_owner(temporary: Path, end: str, status: int) -> None:
    command = [sys.executable, "-c", OWNER.format(end=end)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        *pids, folder = process.stdout.readline().split()
        assert process.wait(GENEROUS_S) == status
    assert until(lambda: not any(lives(int(pid)) for pid in pids))
    assert until(lambda: not Path(folder).exists())
    assert Path(folder).parent == temporary


def test_a_child_outlives_the_thread_that_started_it() -> None:
    from threading import Thread

    started: list[subprocess.Popen[bytes]] = []
    thread = Thread(target=lambda: started.append(children.start(["cat"], stdin=subprocess.PIPE, stdout=-1)))
    thread.start()
    thread.join()
    output, _ = started[0].communicate(b"still here", timeout=GENEROUS_S)
    assert (output, started[0].returncode) == (b"still here", 0)


def test_another_watcher_takes_over(temporary: Path) -> None:
    children.run(["true"], timeout_s=GENEROUS_S)
    first = children._watcher
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    children.run(["true"], timeout_s=GENEROUS_S)
    assert children._watcher is not None
    assert children._watcher.pid != first.pid
    assert lives(children._watcher.pid)


def test_a_fork_has_a_watcher_and_a_folder_of_its_own(temporary: Path) -> None:
    code = """
import os
from quantune.process import children, scratch
children.run(["true"], timeout_s=60)
mine = children._watcher, scratch.root()
if os.fork() == 0:
    children.run(["true"], timeout_s=60)
    os._exit(int(children._watcher == mine[0] or scratch.root() == mine[1]))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert mine[1].is_dir()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=GENEROUS_S)
    assert done.returncode == 0


def test_only_what_carries_the_token_is_killed() -> None:
    with (
        subprocess.Popen(["sleep", "600"], env={**os.environ, watcher.VARIABLE: "a:mine"}) as mine,
        subprocess.Popen(["sleep", "600"], env={**os.environ, watcher.VARIABLE: "a:mine2"}) as other,
    ):
        try:
            assert until(lambda: watcher._carries(Path(f"/proc/{other.pid}"), "mine2"))
            assert until(lambda: watcher._carries(Path(f"/proc/{mine.pid}"), "mine"))
            assert watcher.kill("mine") == 1
            assert mine.wait(GENEROUS_S) == -signal.SIGKILL
            assert other.poll() is None
        finally:
            mine.kill()
            other.kill()


def test_folders_of_dead_owners_are_swept(temporary: Path) -> None:
    mine = owner.name()
    host, boot, space, pid, started = mine.split("-")
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    dead = [f"{host}-{boot}-{space}-{gone.pid}-{started}", f"{host}-{boot}-{space}-{pid}-1", f"{host}-0-{space}-1-1"]
    unknown = [f"0-{boot}-{space}-{gone.pid}-1", f"{host}-{boot}-1-{gone.pid}-1", "artifact", "a-b-c-d-e", mine]
    for name in (*dead, *unknown):
        (temporary / f"quantune-{name}-x").mkdir()
        (temporary / f"quantune-{name}-x" / "file").touch()
    (temporary / f"quantune-{dead[0]}-y").symlink_to(temporary)
    root = scratch.root()
    kept = {path.name for path in temporary.iterdir()}
    assert kept == {*(f"quantune-{name}-x" for name in unknown), f"quantune-{dead[0]}-y", root.name}
    assert root.stat().st_mode & 0o777 == 0o700


def test_what_a_dead_owner_started_is_ended_when_its_folder_is_swept(temporary: Path) -> None:
    host, boot, space, *_ = owner.name().split("-")
    folder = temporary / f"quantune-{host}-{boot}-{space}-1-1-x"
    folder.mkdir()
    with subprocess.Popen(["sleep", "600"], env={**os.environ, watcher.VARIABLE: folder.name}) as orphan:
        assert until(lambda: watcher._carries(Path(f"/proc/{orphan.pid}"), folder.name))
        scratch.root()
        assert orphan.wait(GENEROUS_S) == -signal.SIGKILL


def test_no_folder_for_temporary_files(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(temporary / "none"))
    with pytest.raises(EnvironmentFailure, match=r"no temporary folder: .*none.*No such file.*set TMPDIR"):
        scratch.root()


def test_a_full_disk_is_told(temporary: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    line = rf"no space left in {temporary} \([\d.]+ MB are free\): .*set TMPDIR"
    with pytest.raises(EnvironmentFailure, match=line), scratch.told():
        raise full
    line = r"no space left in /dev .*: free some; the same"
    with (
        Path("/dev/full").open("wb", buffering=0) as file,
        pytest.raises(EnvironmentFailure, match=line),
        scratch.told(Path("/dev")),
    ):
        np.save(file, np.zeros(100_000))
    with pytest.raises(PermissionError), scratch.told():
        raise PermissionError(errno.EACCES, "no")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(EnvironmentFailure, match="/no/program cannot be started: No such file"):
        children.run(["/no/program"], timeout_s=1)


@pytest.mark.parametrize("variable", [None, "", ":/nonexistent", "."])
def test_nothing_is_imported_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    for name in ("json", "numpy", "zipfile", "sitecustomize", "quantune"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('{name}')")
    monkeypatch.chdir(tmp_path)
    if variable is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", variable)
    pipe = subprocess.PIPE
    with children.start_python("quantune.runtime.worker", stdin=pipe, stdout=pipe, stderr=pipe) as child:
        answer, errors = child.communicate(b'{"job": "signature", "program": "x.vmfb"}\n', timeout=GENEROUS_S)
    assert b"x.vmfb: no such file" in answer, errors
    assert not (tmp_path / "ran").exists()


def test_the_users_own_import_path_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:")
    assert str(tmp_path) in children._python_path().split(":")
    assert "" not in children._python_path().split(":")
