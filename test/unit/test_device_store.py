"""The files that a device keeps: found by their content, never damaged, never more than allowed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from quantune.device.store import Store
from quantune.errors import EnvironmentFailure, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 1000)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def add(store: Store, data: bytes, kind: str = ".npy", *, written: bytes | None = None) -> str:
    def write(stream: BinaryIO) -> str:
        stream.write(data if written is None else written)
        return digest(data if written is None else written)

    store.add(digest(data), kind, len(data), write)
    return digest(data)


def test_a_file_is_found_by_its_content_and_kind(store: Store) -> None:
    key = add(store, b"images")
    path = store.find(key, ".npy")
    assert path is not None
    assert path.read_bytes() == b"images"
    assert store.find(key, ".npz") is None
    assert store.find(digest(b"other"), ".npy") is None
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0


def test_those_used_least_recently_go(store: Store) -> None:
    first, second = add(store, bytes(400)), add(store, b"\1" * 400)
    os.utime(store.find(first, ".npy") or "", (1, 1))
    assert store.find(first, ".npy") is not None  # asked for: now the newest
    third = add(store, b"\2" * 400)
    assert [store.find(key, ".npy") is not None for key in (first, second, third)] == [True, False, True]
    assert store.size_bytes() == 800
    with pytest.raises(UsageError, match="a file of 1001 bytes; the device's store holds 1000"):
        add(store, bytes(1001))
    assert store.find(first, ".npy") is not None


def test_damage_is_noticed(tmp_path: Path, store: Store) -> None:
    key = add(store, b"images")
    path = store.find(key, ".npy")
    assert path is not None
    path.write_bytes(b"imagos")
    os.utime(path, (5, 5))
    assert store.find(key, ".npy") is None
    assert not path.exists()
    key = add(store, b"images")
    store.close()
    path.write_bytes(b"imagos")
    assert Store(tmp_path / "store", 1000).find(key, ".npy") is None  # found by an earlier server
    again = tmp_path / "again"
    other = Store(again, 1000)
    with pytest.raises(UsageError, match="a file arrived damaged"):
        add(other, b"images", written=b"imagos")
    assert [each.name for each in again.iterdir()] == ["lock"]


def test_a_store_has_one_server(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="belongs to another server"):
        Store(tmp_path / "store", 1000)
    torn = tmp_path / "store" / "x.partial"
    torn.write_bytes(b"half")
    key = add(store, b"kept")
    store.close()
    again = Store(tmp_path / "store", 1000)
    assert not torn.exists()
    assert again.find(key, ".npy") is not None


def test_a_disk_that_is_full(store: Store) -> None:
    def write(stream: BinaryIO) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentFailure, match="the device cannot keep a file: No space left on device"):
        store.add(digest(b"x"), ".npy", 1, write)
    assert store.size_bytes() == 0


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("../../etc/passwd", ".npy"),
        ("a" * 63, ".npy"),
        ("A" * 64, ".npy"),
        ("a" * 64, ".sh"),
        ("a" * 64, "/x"),
        (None, ".npy"),
    ],
)
def test_only_digests_and_known_kinds_are_names(store: Store, key: object, kind: str) -> None:
    with pytest.raises(UsageError, match=r"is no sha256|a file of kind"):
        store.find(key, kind)  # type: ignore[arg-type]
