"""Where results go: tried before the work that fills them, and written whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from quantune.errors import UsageError, refused
from quantune.process.private import write_atomically

_PROBE = bytes(4096)


def folder(path: Path | str, what: str) -> Path:
    """Create a folder and try whether files can be written there.

    Raises an error that opens with ``what``: UsageError, or EnvironmentFailure where the disk is full.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        _try(path)
    except OSError as error:
        raise refused(f"{what} '{path}'", error, "expected a writable folder") from error
    except RecursionError as error:
        raise UsageError(f"{what} '{path}': too many folders in one another; expected a writable folder") from error
    return path


def file(path: Path | str, what: str) -> Path:
    """Try whether a file can be written, without making it; raises like `folder`."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UsageError(f"{what} '{path}': is a folder; expected a file")
        if not is_special(path):
            _try(path.parent)
            with contextlib.suppress(FileNotFoundError):
                path.lstat()  # its name may be too long
    except OSError as error:
        raise refused(f"{what} '{path}'", error, "expected a file in a writable folder") from error
    return path


def write(path: Path | str, data: bytes, what: str) -> Path:
    """Write a file, whole or not at all; a pipe or a device is written in place. Raises like `folder`."""
    path = Path(path)
    try:
        if is_special(path):
            path.write_bytes(data)
        else:
            write_atomically(path, data)
    except OSError as error:
        raise refused(f"{what} '{path}'", error, "expected a file in a writable folder") from error
    return path


def is_special(path: Path) -> bool:
    """Whether there is something that is no regular file: a pipe, a device."""
    return path.exists() and not path.is_file()


def _try(path: Path) -> None:
    """Write some bytes into a file without a name, as far as the disk."""
    with tempfile.TemporaryFile(dir=path) as probe:
        probe.write(_PROBE)
        probe.flush()
        os.fsync(probe.fileno())
