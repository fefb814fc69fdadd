"""Images on disk: whole or not at all, and never taken up again when they are damaged."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest

from quantune.data import materialized
from quantune.data.base import ImageSource
from quantune.data.materialized import materialize, provide, take_up
from quantune.data.splits import Split
from quantune.errors import EnvironmentFailure, UsageError

KEY = "0123abcd"


class Numbers(ImageSource):
    """One-pixel images of the given values; the label is the value too."""

    shape, classes, name = (1, 1, 1), None, "numbers"

    def __init__(self, values: list[int]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((1, 1, 1), self._values[index], np.float32), self._values[index]


def whole(values: list[int]) -> Split:
    return Split(Numbers(values), tuple(range(len(values))))


def test_files_hold_the_split(tmp_path: Path) -> None:
    made = materialize(Split(Numbers([4, 2, 0, 7]), (3, 0, 1)), tmp_path, KEY, 8)
    images = np.load(made.images, mmap_mode="r", allow_pickle=False)
    assert images.shape == (3, 1, 1, 1)
    assert images.dtype == np.float32
    assert images.reshape(-1).tolist() == made.labels.tolist() == [7, 4, 2]
    stem = f"{KEY}.{made.digest}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"{stem}.labels.npy", f"{stem}.npy"]
    assert np.load(tmp_path / f"{stem}.labels.npy").tolist() == [7, 4, 2]
    again = take_up(tmp_path, KEY)
    assert again is not None
    assert (again.images, again.labels.tolist(), again.digest) == (made.images, [7, 4, 2], made.digest)
    assert take_up(tmp_path, "another") is None


def test_the_digest_is_of_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Relabelled(Numbers):
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return super().__getitem__(index)[0], 0

    one = materialize(whole([1, 2]), tmp_path, KEY).digest
    assert materialize(whole([2, 1]), tmp_path, KEY).digest != one
    assert materialize(Split(Relabelled([1, 2]), (0, 1)), tmp_path, KEY).digest != one
    monkeypatch.setattr(materialized, "_BLOCK", 50)  # several blocks, as large sets have
    blocks = materialize(whole([1, 2]), tmp_path, KEY).digest
    assert materialize(whole([1, 2]), tmp_path, KEY).digest == blocks != one


@pytest.mark.parametrize("suffix", [".npy", ".labels.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "grown", "garbage", "swap"])
def test_damage_is_set_aside_and_made_again(
    tmp_path: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = materialize(whole(list(range(9))), tmp_path, KEY)
    file = tmp_path / f"{KEY}.{made.digest}{suffix}"
    data = file.read_bytes()
    changed = {
        "flip": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "cut": data[:-5],
        "empty": b"",
        "grown": data + b"x",
        "garbage": b"\x93NUMPY" + b"?" * 100,
        "swap": data[:128] + data[128:][::-1],
    }[damage]
    file.write_bytes(changed)
    with caplog.at_level(logging.WARNING):
        assert take_up(tmp_path, KEY) is None
    assert f"{file} is damaged" in caplog.text
    assert any(entry.read_bytes() == changed for entry in tmp_path.glob("damaged-*"))
    assert materialize(whole(list(range(9))), tmp_path, KEY).digest == made.digest
    again = take_up(tmp_path, KEY)
    assert again is not None
    assert again.labels.tolist() == list(range(9))


@pytest.mark.parametrize("suffix", [".npy", ".labels.npy"])
@pytest.mark.parametrize("there", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["folder", "loop"])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, suffix: str, there: Callable[[Path], None]) -> None:
    made = materialize(whole([1, 2]), tmp_path, KEY)
    file = tmp_path / f"{KEY}.{made.digest}{suffix}"
    file.unlink()
    there(file)
    assert take_up(tmp_path, KEY) is None
    assert materialize(whole([1, 2]), tmp_path, KEY).images == made.images
    assert take_up(tmp_path, KEY) is not None


def test_half_a_set_is_none(tmp_path: Path) -> None:
    made = materialize(whole([1, 2]), tmp_path, KEY)
    made.images.with_name(made.images.name.replace(".npy", ".labels.npy")).unlink()
    assert take_up(tmp_path, KEY) is None
    assert materialize(whole([1, 2]), tmp_path, KEY).digest == made.digest
    made.images.unlink()
    assert take_up(tmp_path, KEY) is None


def test_a_bad_label_leaves_the_older_files_whole(tmp_path: Path) -> None:
    materialize(whole([1, 2]), tmp_path, KEY)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="label 9"):
        materialize(whole([1, 9]), tmp_path, KEY, 5)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_no_room_and_no_folder_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFailure, match=r"No such file"):
        materialize(whole([1]), tmp_path / "no", KEY)
    monkeypatch.setattr(materialized.shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
    with pytest.raises(EnvironmentFailure, match="1 images need 4 bytes, 3 are free"):
        materialize(whole([1]), tmp_path, KEY)
    assert list(tmp_path.iterdir()) == []


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        materialize(whole([1, 2]), tmp_path, KEY)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()} == {0o600}


def _blocked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("in the way")


def _small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        materialized.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 if path == folder else 99)
    )


def _read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Path, *arguments: int) -> int:
        if path.parent == folder:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, *arguments)

    monkeypatch.setattr(materialized.os, "open", refuse)


@pytest.mark.parametrize(
    ("prevent", "why"),
    [(_blocked, "File exists|Not a directory"), (_small, "3 are free"), (_read_only, "Read-only file system")],
)
def test_where_the_folder_cannot_be_written_another_serves(
    prevent: Callable[[Path, pytest.MonkeyPatch], None], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder, spare = tmp_path / "images", tmp_path / "spare"
    spare.mkdir()
    with monkeypatch.context() as patch:
        prevent(folder, patch)
        made = provide(whole([1, 2]), folder, spare, KEY)
    assert made.images.parent == spare
    assert made.labels.tolist() == [1, 2]
    [told] = caplog.messages
    assert re.search(f"{folder}.*({why}).*; the evaluation images are not kept for later", told)


def test_a_set_in_a_folder_that_can_only_be_read_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provide(whole([1, 2]), tmp_path / "images", tmp_path, KEY)

    def refuse(path: Path) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(materialized.os, "utime", refuse)
    assert provide(whole([1, 2]), tmp_path / "images", tmp_path, KEY).images == made.images


def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o777)
    with pytest.raises(EnvironmentFailure, match="others may write there"):
        provide(whole([1, 2]), tmp_path / "images", tmp_path, KEY)
