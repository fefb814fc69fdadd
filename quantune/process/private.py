"""Files that are whole or not there; folders for their user alone, whatever the umask, because a cache is trusted."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path

from quantune.errors import EnvironmentFailure

FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def folder(path: Path) -> Path:
    """Create a folder, and those above it that are missing, for this user alone; one that is there stays as it is.

    Raises OSError when that is impossible.
    """
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            each.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    return path


def check(path: Path) -> None:
    """Raise EnvironmentFailure when a folder belongs to another user, or others may write into it."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise EnvironmentFailure(
            f"cache folder {path}: belongs to another user (number {status.st_uid}), and what lies there is trusted; "
            "set XDG_CACHE_HOME to a folder of your own"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise EnvironmentFailure(
            f"cache folder {path}: others may write there (mode {stat.S_IMODE(status.st_mode):o}), and what lies "
            "there is trusted; delete it, or, if nobody else wrote there, chmod -R go-w it"
        )


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace ``path`` by ``data`` so that a reader, even after a crash, finds all of the old or all of the new.

    mode: of the new file, less what the umask takes away.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
