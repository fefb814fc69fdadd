"""Arrays in files and messages of others: read without unpickling, and refused in one line for whatever they hold."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantune.errors import RunFailed, UsageError, first_line

_NUMBERS = "fiub"
_PARSING = threading.Lock()
"""Held while a header is read: numpy parses it with ``ast``, which Python 3.11 does not bear in several threads at once
(SystemError: AST constructor recursion depth mismatch)."""


def map_images(path: Path | str) -> NDArray:
    """Map an .npy file of images, one each along the first axis. Raises UsageError for anything else."""
    try:
        with _PARSING:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except Exception as error:  # numpy and zipfile fail in their own ways, and all of them mean the same
        raise UsageError(f"{path}: not an .npy file: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(images, np.ndarray):
        raise UsageError(f"{path}: an archive of several arrays; expected an .npy file of one")
    if images.ndim < 1 or images.dtype.kind not in _NUMBERS:
        raise UsageError(f"{path}: {images.dtype}{list(images.shape)}; expected numbers, one row an image")
    return images


def read_results(source: Path | BinaryIO, where: object = "program") -> NDArray:
    """What a program answered, as whoever ran it wrote it: numbers, one row an image. RunFailed for anything else."""
    try:
        with _PARSING:
            results = np.load(source, allow_pickle=False)
        if not isinstance(results, np.ndarray) or results.ndim < 1 or results.dtype.kind not in _NUMBERS:
            raise ValueError("no array of numbers")
    except Exception as error:  # numpy, zipfile and zlib fail in their own ways, and all of them mean the same
        raise RunFailed(
            f"{where}: the run wrote no results: {type(error).__name__}: {first_line(error)}", transient=True
        ) from error
    return results
