"""Folders for their user alone, whatever the umask: what lies in a cache is trusted, so nobody else may write there."""

from __future__ import annotations

import os
import stat
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
