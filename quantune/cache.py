"""A content-addressed store of build products: safe to share between processes, checked when read, bounded in size.

One entry is one file ``objects/<k2>/<key>.<sha256><kind>``: the digest of the bytes is in the name, so an entry
appears whole by one rename and needs no index that could disagree with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from quantune.errors import EnvironmentFailure, QuantuneError, UsageError
from quantune.process import private, scratch
from quantune.process.private import write_atomically

logger = logging.getLogger(__name__)

DEFAULT_LIMIT_BYTES = 2 << 30
_STALE_SECONDS = 24 * 3600.0
_QUARANTINE_KEPT = 16

T = TypeVar("T")


def default_root() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/quantune, or ~/.cache/quantune.

    Raises EnvironmentFailure for a user without a home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path is to be ignored.
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "quantune"
    except RuntimeError as error:
        raise EnvironmentFailure("this user has no home folder; set XDG_CACHE_HOME to a writable folder") from error


def content_key(*parts: bytes | str) -> str:
    """The sha256 (hex) of the parts; their boundaries count, so ("a", "b") and ("ab",) differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class ArtifactCache:
    """A folder of blobs found by key and kind (a file suffix such as ``.vmfb``).

    limit_bytes: when the entries exceed it the least recently used ones go; the newest entry always stays.
    What lies there is trusted: folders and files are for their user alone, whatever the umask.
    Raises EnvironmentFailure when the folder cannot be made, belongs to another user, or can be written by others.
    """

    def __init__(self, root: Path | str | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        if limit_bytes < 0:
            raise UsageError(f"cache limit {limit_bytes}: expected a number of bytes, 0 or more")
        self.root = Path(root) if root is not None else default_root()
        self.limit_bytes = limit_bytes
        self._spare: Path | None = None  # where entries go once the folder cannot be written
        try:
            for folder in (self.root, self._objects, self._quarantine):
                private.check(private.folder(folder))
        except OSError as error:
            raise EnvironmentFailure(
                f"cache folder {self.root}: {error.strerror or error}; set XDG_CACHE_HOME to a writable folder"
            ) from error

    @property
    def _objects(self) -> Path:
        return self.root / "objects"

    @property
    def _quarantine(self) -> Path:
        return self.root / "quarantine"

    def get(self, key: str, kind: str = "") -> Path | None:
        """The file of an entry, or None. An entry whose bytes changed is moved aside and counts as absent."""
        for path in self._candidates(key, kind):
            if self._checked(path) is not None:
                return path
        return None

    def get_bytes(self, key: str, kind: str = "") -> bytes | None:
        """The bytes of an entry, or None; like get, for small blobs."""
        for path in self._candidates(key, kind):
            if (data := self._checked(path)) is not None:
                return data
        return None

    def _checked(self, path: Path) -> bytes | None:
        """The bytes of an entry, marked as used; None where they changed or cannot be read, and it is moved aside."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # another process evicted it
            return None
        except OSError as error:
            self._set_aside(path, error.strerror or str(error))
            return None
        if hashlib.sha256(data).hexdigest() != _digest_in(path.name):
            self._set_aside(path)
            return None
        _mark_used(path)
        return data

    def read(self, key: str, kind: str, parse: Callable[[bytes], T]) -> T | None:
        """What ``parse`` makes of an entry's bytes, or None. What it refuses (ValueError) is moved aside."""
        data = self.get_bytes(key, kind)
        if data is None:
            return None
        try:
            return parse(data)
        except (ValueError, QuantuneError) as error:
            for path in self._candidates(key, kind):
                self._set_aside(path, " ".join(str(error).split())[:200])
            return None

    def put(self, key: str, data: bytes, kind: str = "") -> Path:
        """Store an entry and return its file; older entries may be evicted.

        Where the folder cannot be written the file lies among this process's temporary ones, which is told once.
        Raises EnvironmentFailure where these have no room either.
        """
        _check_name(key, kind)
        folder = self._objects / key[:2]
        path = folder / f"{key}.{hashlib.sha256(data).hexdigest()}{kind}"
        try:
            private.folder(folder)
            write_atomically(path, data, mode=private.FILE_MODE)
            self._evict(path)
        except OSError as error:
            return self._put_aside(path.name, data, error)
        return path

    def _put_aside(self, name: str, data: bytes, why: OSError) -> Path:
        if self._spare is None:
            self._spare = scratch.kept("cache")
            logger.warning(
                "cache folder %s: %s; what is made now is not kept for later", self.root, why.strerror or why
            )
        with scratch.told(self._spare):
            write_atomically(self._spare / name, data)
        return self._spare / name

    def size_bytes(self) -> int:
        """The bytes all entries occupy."""
        return sum(size for _, size, _ in self._entries())

    def _candidates(self, key: str, kind: str) -> list[Path]:
        _check_name(key, kind)
        length = len(key) + 1 + 64 + len(kind)
        folders = (self._objects / key[:2], *([self._spare] if self._spare else []))
        found = (path for folder in folders for path in folder.glob(f"{key}.*"))
        return sorted(path for path in found if path.name.endswith(kind) and len(path.name) == length)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._objects.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.lstat()
                yield status.st_mtime, status.st_size, path

    def _evict(self, newest: Path) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for used, size, path in entries:
            torn = path.name.startswith(".") and time.time() - used > _STALE_SECONDS  # left by a killed writer
            if not torn and (total <= self.limit_bytes or path == newest or path.name.startswith(".")):
                continue
            with contextlib.suppress(IsADirectoryError):  # what somebody else put there
                path.unlink(missing_ok=True)
            total -= size
        kept = sorted(self._quarantine.iterdir(), key=lambda p: p.name)
        for path in kept[:-_QUARANTINE_KEPT]:
            with contextlib.suppress(IsADirectoryError):
                path.unlink(missing_ok=True)

    def _set_aside(self, path: Path, why: str = "its sha256 differs") -> None:
        target = self._quarantine / f"{time.time_ns()}.{path.name}"
        logger.warning("cache entry %s is damaged (%s); moved to %s", path.name, why, target)
        with contextlib.suppress(OSError):  # another process was first, or nothing can be moved here
            path.replace(target)


def trim(folder: Path, limit_bytes: int, *, newest: str) -> None:
    """Delete the least recently used files of ``folder`` that make it exceed the limit, and what writers left behind.

    newest: files whose name begins so stay. A process that has a deleted file open keeps its content.
    """
    entries = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir() if path.is_file())
    total = sum(size for _, size, _ in entries)
    for used, size, path in entries:
        torn = path.name.endswith(".partial")
        stale = torn and time.time() - used > _STALE_SECONDS
        if not stale and (torn or total <= limit_bytes or path.name.startswith(newest)):
            continue
        with contextlib.suppress(OSError):  # a folder that can only be read serves as well
            path.unlink(missing_ok=True)
        total -= size


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that can only be read serves as well
        os.utime(path)


def _digest_in(name: str) -> str:
    return name.split(".", 2)[1][:64]


def _check_name(key: str, kind: str) -> None:
    if not key.isalnum() or len(key) < 8:
        raise ValueError(f"cache key {key!r}: expected a hexadecimal digest")
    if kind and not (kind.startswith(".") and kind.replace(".", "").isalnum()):
        raise ValueError(f"cache kind {kind!r}: expected a suffix such as .vmfb")
