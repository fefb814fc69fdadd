"""Files that clients sent, by their content: kept between jobs, checked when used, bounded in size."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from quantune.errors import EnvironmentFailure, UsageError

KINDS = (".vmfb", ".npz", ".npy")
"""What a client may send: a program, its numbers, images."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial"


class Store:
    """A folder of files named by their sha256. One process has it at a time.

    limit_bytes: when the files exceed it, those used least recently go. Raises EnvironmentFailure when the folder
    cannot be made, UsageError when another process has it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._checked: dict[Path, tuple[int, int]] = {}  # when each was found to be what its name says
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for torn in folder.glob(f"*{_PARTIAL}"):
                torn.unlink(missing_ok=True)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"the store {folder} belongs to another server; give this one another --store") from None
        except OSError as error:
            raise EnvironmentFailure(f"the store {folder}: {error.strerror or error}") from error

    def close(self) -> None:
        """Let another process have the folder; what is in it stays."""
        self._lock.close()

    def find(self, digest: str, kind: str) -> Path | None:
        """The file with this content, or None; one that is damaged is deleted."""
        path = self._path(digest, kind)
        try:
            stat = path.stat()
            seen = stat.st_mtime_ns, stat.st_size
            if self._checked.get(path) != seen:
                with path.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                        path.unlink(missing_ok=True)
                        return None
            os.utime(path)
            stat = path.stat()
        except OSError:
            return None
        self._checked[path] = stat.st_mtime_ns, stat.st_size
        return path

    def add(self, digest: str, kind: str, size: int, write: Callable[[BinaryIO], str]) -> None:
        """Store what ``write`` writes, ``size`` bytes whose sha256 it returns, if that is ``digest``.

        Raises UsageError when it is another, EnvironmentFailure when the disk is full.
        """
        path = self._path(digest, kind)
        if size > self.limit_bytes:
            raise UsageError(f"a file of {size} bytes; the device's store holds {self.limit_bytes}")
        self._make_room(size)
        partial = self.folder / f"{uuid.uuid4().hex}{_PARTIAL}"
        try:
            with partial.open("xb") as stream:
                found = write(stream)
            if found != digest:
                raise UsageError(f"a file arrived damaged: its sha256 is {found[:12]}…, expected {digest[:12]}…")
            partial.replace(path)
            stat = path.stat()
            self._checked[path] = stat.st_mtime_ns, stat.st_size
        except OSError as error:
            raise EnvironmentFailure(f"the device cannot keep a file: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def put(self, digest: str, kind: str, data: bytes) -> None:
        """Store bytes whose sha256 is ``digest``; raises like `add`."""

        def write(stream: BinaryIO) -> str:
            stream.write(data)
            return hashlib.sha256(data).hexdigest()

        self.add(digest, kind, len(data), write)

    def size_bytes(self) -> int:
        """What the files occupy."""
        return sum(size for _, size, _ in self._files())

    def _path(self, digest: object, kind: object) -> Path:
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise UsageError(f"{digest!r:.80} is no sha256; expected 64 hexadecimal digits")
        if kind not in KINDS:
            raise UsageError(f"a file of kind {kind!r:.40}; expected one of {', '.join(KINDS)}")
        return self.folder / f"{digest}{kind}"

    def _files(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in self.folder.iterdir():
            if path.suffix in KINDS:
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        return sorted(found)

    def _make_room(self, size: int) -> None:
        files = self._files()
        total = sum(each for _, each, _ in files)
        for _, each, path in files:
            if total + size <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            self._checked.pop(path, None)
            total -= each
