from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantune import cache as cache_module
from quantune.cache import ArtifactCache, content_key, default_root, trim
from quantune.errors import EnvironmentFailure
from quantune.process.private import write_atomically

KEY = content_key("a")


def _writer(root: str, seed: int) -> None:
    cache = ArtifactCache(root, limit_bytes=20_000)
    for step in range(40):
        key = content_key(str((seed + step) % 7))
        cache.put(key, key.encode() * 50, ".blob")
        data = cache.get_bytes(content_key(str(step % 7)), ".blob")
        assert data is None or data == content_key(str(step % 7)).encode() * 50


def test_round_trip(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    assert cache.get(KEY, ".vmfb") is None
    path = cache.put(KEY, b"data", ".vmfb")
    assert cache.get(KEY, ".vmfb") == path
    assert cache.get_bytes(KEY, ".vmfb") == b"data"
    assert cache.get(KEY, ".json") is None
    assert cache.get(content_key("b"), ".vmfb") is None
    assert ArtifactCache(tmp_path).get(KEY, ".vmfb") == path


def test_kinds_of_one_key_are_apart(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    cache.put(KEY, b"one", ".vmfb")
    cache.put(KEY, b"two", ".facts.gz")
    assert cache.get_bytes(KEY, ".gz") is None
    assert (cache.get_bytes(KEY, ".vmfb"), cache.get_bytes(KEY, ".facts.gz")) == (b"one", b"two")


def test_key_depends_on_boundaries() -> None:
    assert content_key("a", "b") != content_key("ab")
    assert content_key("a", b"b") == content_key(b"a", "b")


@pytest.mark.parametrize("damage", [b"", b"dat", b"dota"], ids=["empty", "torn", "garbled"])
def test_damaged_entry_is_set_aside(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    cache = ArtifactCache(tmp_path)
    path = cache.put(KEY, b"data", ".vmfb")
    path.write_bytes(damage)
    assert cache.get(KEY, ".vmfb") is None
    assert not path.exists()
    assert [p.read_bytes() for p in (tmp_path / "quarantine").iterdir()] == [damage]
    assert "damaged" in caplog.text
    assert cache.get_bytes(KEY, ".vmfb") is None
    assert cache.put(KEY, b"data", ".vmfb") == path
    assert cache.get_bytes(KEY, ".vmfb") == b"data"


@pytest.mark.parametrize("there", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["folder", "loop"])
def test_what_cannot_be_read_is_set_aside(
    tmp_path: Path, there: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_QUARANTINE_KEPT", 0)
    cache = ArtifactCache(tmp_path)
    for find in (cache.get, cache.get_bytes):
        path = cache.put(KEY, b"data", ".vmfb")
        path.unlink()
        there(path)
        assert find(KEY, ".vmfb") is None
        assert "is damaged (" in caplog.text
        assert cache.put(KEY, b"data", ".vmfb") == path
        assert find(KEY, ".vmfb") is not None


def test_a_folder_among_the_entries_stays(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, limit_bytes=0)
    path = cache.put(KEY, b"data")
    (path.parent / "somebody's").mkdir()
    other = content_key("b")
    assert cache.put(other, b"more").parent.parent == path.parent.parent
    assert cache.get(KEY) is None
    assert cache.get(other) is not None


def test_what_cannot_be_parsed_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ArtifactCache(tmp_path)
    assert cache.read(KEY, ".txt", float) is None
    cache.put(KEY, b"1.5", ".txt")
    assert cache.read(KEY, ".txt", float) == 1.5
    cache.put(KEY, b"1.5", ".number")
    assert cache.read(KEY, ".number", lambda data: int(data)) is None
    assert "is damaged (invalid literal for int()" in caplog.text
    assert cache.get(KEY, ".number") is None
    assert cache.get(KEY, ".txt") is not None
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, limit_bytes=250)
    keys = [content_key(str(i)) for i in range(3)]
    for age, key in zip((300, 200), keys, strict=False):
        path = cache.put(key, b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert cache.get(keys[0]) is not None  # used now: younger than keys[1]
    cache.put(keys[2], b"x" * 100)
    assert [cache.get(key) is not None for key in keys] == [True, False, True]
    assert cache.size_bytes() == 200


def test_an_entry_larger_than_the_limit_stays_until_the_next(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, limit_bytes=10)
    path = cache.put(KEY, b"x" * 100)
    assert path.exists()
    cache.put(content_key("b"), b"y")
    assert cache.get(KEY) is None


def test_leftover_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    folder = cache.put(KEY, b"data").parent
    old, young = folder / ".old.1", folder / ".young.2"
    for leftover in (old, young):
        leftover.write_bytes(b"part")
    os.utime(old, (0, 0))
    cache.put(KEY, b"data")
    assert not old.exists()
    assert young.exists()  # may belong to a live writer


def test_several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_writer, args=(str(tmp_path), seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert not list((tmp_path / "quarantine").iterdir())


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_root() == Path("/somewhere/quantune")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root() == Path.home() / ".cache/quantune"


def test_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match=r"cache folder .*file"):
        ArtifactCache(tmp_path / "file")


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "ab"])
def test_keys_are_digests(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="cache key"):
        ArtifactCache(tmp_path).put(key, b"")


def test_trim_deletes_what_was_used_longest_ago(tmp_path: Path) -> None:
    for age, name in ((40, "a.npy"), (30, "b.npy"), (20, "c.npy"), (200_000, "d.npy.partial"), (10, "e.npy.partial")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    trim(tmp_path, 400, newest="a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy", "c.npy", "e.npy.partial"]
    trim(tmp_path, 250, newest="a")  # the newest stays although it is the oldest, and so does what is being written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "e.npy.partial"]


@pytest.fixture(name="open_umask")
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_folders_and_files_are_for_their_user_alone(tmp_path: Path, open_umask: None) -> None:
    cache = ArtifactCache(tmp_path / "above" / "cache")
    cache.put(KEY, b"data", ".vmfb")
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "above").rglob("*")}
    assert (tmp_path / "above").stat().st_mode & 0o777 == 0o700
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert [mode for path, mode in modes.items() if path.is_file()] == [0o600]


@pytest.mark.parametrize("name", [".", "objects", "quarantine"])
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    ArtifactCache(tmp_path / "cache")
    (tmp_path / "cache" / name).chmod(mode)
    with pytest.raises(EnvironmentFailure, match=rf"others may write there \(mode {mode:o}\).*chmod -R go-w"):
        ArtifactCache(tmp_path / "cache")
    (tmp_path / "cache" / name).chmod(0o755)
    ArtifactCache(tmp_path / "cache")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ArtifactCache(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(EnvironmentFailure, match=r"belongs to another user .*set XDG_CACHE_HOME to a folder of your"):
        ArtifactCache(tmp_path)


def _refuse(monkeypatch: pytest.MonkeyPatch, root: Path, number: int) -> None:
    """Let nothing be written under ``root``, as on a disk that is full or can only be read."""
    write = write_atomically

    def guarded(path: Path, data: bytes, *, mode: int = 0o666) -> None:
        if path.is_relative_to(root):
            raise OSError(number, os.strerror(number))
        write(path, data, mode=mode)

    monkeypatch.setattr("quantune.cache.write_atomically", guarded)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_told_once_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    cache = ArtifactCache(tmp_path)
    before = cache.put(KEY, b"kept", ".vmfb")
    _refuse(monkeypatch, tmp_path, number)
    first, second = cache.put(content_key("b"), b"data", ".vmfb"), cache.put(content_key("c"), b"more", ".gz")
    assert first.read_bytes() == b"data"
    assert cache.get(content_key("b"), ".vmfb") == first
    assert cache.get_bytes(content_key("c"), ".gz") == b"more"
    assert cache.get(KEY, ".vmfb") == before
    assert not first.is_relative_to(tmp_path)
    assert not second.is_relative_to(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"cache folder {tmp_path}: {os.strerror(number)}; what is made now is not kept for later"
    ]


def test_without_any_room_the_machine_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ArtifactCache(tmp_path)
    _refuse(monkeypatch, Path("/"), errno.ENOSPC)
    with pytest.raises(EnvironmentFailure, match="no space left in "):
        cache.put(KEY, b"data", ".vmfb")


def test_a_cache_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ArtifactCache(tmp_path)
    path = cache.put(KEY, b"data", ".vmfb")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get(KEY, ".vmfb") == path
    assert cache.get_bytes(KEY, ".vmfb") == b"data"
    path.write_bytes(b"changed")
    monkeypatch.setattr(Path, "replace", refuse)
    assert cache.get(KEY, ".vmfb") is None


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(EnvironmentFailure, match="set XDG_CACHE_HOME"):
        default_root()
