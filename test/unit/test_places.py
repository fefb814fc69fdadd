"""Places for results are tried before the work, and written whole."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from quantune.errors import EnvironmentFailure, UsageError
from quantune.process import places

LONG = "n" * 300


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert list(places.folder(tmp_path / "a" / "b", "output folder").iterdir()) == []
    assert places.file(tmp_path / "a" / "x.json", "output") == tmp_path / "a" / "x.json"
    assert not (tmp_path / "a" / "x.json").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/c", "Not a directory"),
        ("file", "File exists"),
        (LONG, "File name too long"),
        (f"{'d/' * 3000}x", "File name too long"),
        (f"{'d/' * 1500}x", "too many folders in one another"),
        ("/proc/nowhere", "No such file or directory"),
        ("/proc/self", "No such file or directory"),
    ],
)
def test_wrong_folders_are_one_line(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        places.folder(tmp_path / place, "output folder")
    assert str(caught.value) == f"output folder '{tmp_path / place}': {reason}; expected a writable folder"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("none/x", "No such file or directory; expected a file in a writable folder"),
        ("file/x", "Not a directory; expected a file in a writable folder"),
        (LONG, "File name too long; expected a file in a writable folder"),
        ("", "is a folder; expected a file"),
        ("/proc/x", "No such file or directory; expected a file in a writable folder"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError) as tried:
        places.file(tmp_path / place, "--json")
    assert str(tried.value) == f"--json '{tmp_path / place}': {reason}"


def test_a_full_disk_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    for attempt in (places.folder, places.file):
        with pytest.raises(EnvironmentFailure, match="No space left on device; make room and run the same command"):
            attempt(tmp_path if attempt is places.folder else tmp_path / "x", "output")
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(EnvironmentFailure):
        places.write(tmp_path / "x", b"after", "output")
    assert (tmp_path / "x").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_devices_and_pipes_are_written_in_place(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="'/dev/full': No space left on device"):
        places.write("/dev/full", b"data", "output")
    assert places.file("/dev/null", "output") == Path("/dev/null")
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    places.write(pipe, b"data", "output")
    reader.join()
    assert read == [b"data"]
