"""Temporary files: all of a process's in one folder that names it, so that others can sweep what a dead one left.

The folder lies where TMPDIR says, goes when the process ends, and otherwise by the watcher (quantune.process.watcher).
Where both were killed, the next process that makes such a folder removes it, once its owner is surely dead.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from quantune.errors import EnvironmentFailure
from quantune.process import owner, watcher

logger = logging.getLogger(__name__)

_PREFIX = "quantune-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_lock = threading.Lock()
_root: Path | None = None


def root() -> Path:
    """The temporary folder of this process, made at the first use, for its user alone.

    Raises EnvironmentFailure where none can be made.
    """
    global _root
    with _lock:
        try:
            if _root is None:
                parent = Path(tempfile.gettempdir())
                _sweep(parent)
                with told():
                    _root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{owner.name()}-", dir=parent))
            _root.mkdir(mode=0o700, exist_ok=True)  # the system may clean it away under a process that lives for days
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise EnvironmentFailure(
                f"no temporary folder: {where}{error.strerror or error}; set TMPDIR to a writable folder with space"
            ) from error
        return _root


@contextlib.contextmanager
def folder(kind: str) -> Iterator[Path]:
    """A new folder for the time of the block. Raises EnvironmentFailure where there is no room for it."""
    path = kept(kind)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def kept(kind: str) -> Path:
    """A new folder that stays until this process ends. Raises EnvironmentFailure where there is no room for it."""
    above = root()
    with told():
        return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=above))


@contextlib.contextmanager
def told(where: Path | None = None, variable: str | None = None) -> Iterator[None]:
    """Turn an OSError of the block that says that a disk is full into one line that says which, and what to do.

    where, variable: as for `full`.
    """
    try:
        yield
    except OSError as error:
        # numpy tells of a short write without a number.
        if error.errno not in _FULL and not (error.errno is None and "requested and" in str(error)):
            raise
        raise full(where, variable) from error


def full(where: Path | None = None, variable: str | None = None) -> EnvironmentFailure:
    """The error for a full disk: where there is no space, and what to do.

    where: a path on that disk, by default the folder for temporary files. variable: what moves it.
    """
    if where is None:
        where, variable = Path(tempfile.gettempdir()), "TMPDIR"
    other = f", or set {variable} to a folder with more" if variable else ""
    return EnvironmentFailure(
        f"no space left in {where} ({free_bytes(where) / 1e6:.1f} MB are free): free some{other}; "
        "the same command goes on"
    )


def free_bytes(where: Path) -> int:
    """How much can still be written there."""
    there = next(path for path in (where.absolute(), *where.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _sweep(parent: Path) -> None:
    """Remove the folders of dead processes, and end what those started and nobody ended."""
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid != os.geteuid() or path.is_symlink() or not path.is_dir():
                continue
            if owner.name_is_dead(path.name.removeprefix(_PREFIX).rpartition("-")[0]):
                watcher.kill(path.name)
                shutil.rmtree(path)
                logger.info("%s: left by a process that is gone; removed", path)


def _remove() -> None:
    if _root is not None:
        shutil.rmtree(_root, ignore_errors=True)


def _forget() -> None:
    """A fork has its own folder, and leaves its parent's alone."""
    global _root, _lock
    _root, _lock = None, threading.Lock()


atexit.register(_remove)
os.register_at_fork(after_in_child=_forget)
