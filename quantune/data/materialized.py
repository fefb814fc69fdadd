"""Images and labels on disk, for programs to map: written whole, checked by their content when they are taken up again.

One set is two files ``<key>.<digest>.npy`` (f32[n, c, h, w]) and ``<key>.<digest>.labels.npy`` ([n, ...]); the digest
in the names is that of both files' bytes. What does not fit its digest is set aside and made again. Files are for
their user alone, whatever the umask.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantune.data.labels import Label
from quantune.data.splits import Split, checked_label, labelled, like_label
from quantune.errors import EnvironmentFailure
from quantune.process import private

logger = logging.getLogger(__name__)

_BLOCK = 16 << 20
_THREADS = 8
_LABELS = ".labels.npy"


@dataclass(frozen=True, eq=False)
class Materialized:
    """A split on disk. images: the .npy file, f32[n, c, h, w]. labels: [n, ...]. digest: of the content of both."""

    images: Path
    labels: NDArray[np.generic]
    digest: str


def provide(
    split: Split, folder: Path, spare: Path, key: str, classes: int | None = None, *, any_labels: bool = False
) -> Materialized:
    """The set of this key: taken up from ``folder``, or written there, or, where that cannot be, into ``spare``.

    The last is told in a warning. Raises like `materialize`, or EnvironmentFailure if others may write to ``folder``.
    """
    try:
        private.folder(folder)
    except OSError as error:
        logger.warning("%s: %s; the evaluation images are not kept for later", folder, error.strerror or error)
        return materialize(split, spare, key, classes, any_labels=any_labels)
    private.check(folder)
    found = take_up(folder, key)
    if found is not None:
        return found
    try:
        return materialize(split, folder, key, classes, any_labels=any_labels)
    except EnvironmentFailure as error:
        logger.warning("%s; the evaluation images are not kept for later", error)
        return materialize(split, spare, key, classes, any_labels=any_labels)


def materialize(
    split: Split, folder: Path, key: str, classes: int | None = None, *, any_labels: bool = False
) -> Materialized:
    """Write the images and labels of a split into ``folder``, complete or not at all.

    classes: the model's number of outputs, if known; labels must be below. any_labels: they need be no class numbers,
    only alike. Raises UsageError for an image or label that cannot be used, EnvironmentFailure when the disk is full.
    """
    shape = (len(split), *split.source.shape)
    needed = 4 * math.prod(shape)
    found: list[Label] = []
    # Names of their own: another process may be writing the same set.
    partial = folder / f"{key}.{os.getpid()}-{uuid.uuid4().hex}.partial"
    partial_labels = partial.with_name(f"{partial.stem}-labels.partial")
    try:
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise EnvironmentFailure(f"{folder}: {len(split)} images need {needed} bytes, {free} are free")
        # Written as a stream: a full disk is then an error, where a memory map would end the process.
        with _created(partial) as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for index in split.indices:
                image, label = labelled(split, index)
                if any_labels:
                    found.append(like_label(split, index, label, found[:1]))
                else:
                    found.append(checked_label(split, index, label, classes))
                stream.write(np.ascontiguousarray(image, "<f4").tobytes())
        labels = np.stack([np.asarray(label) for label in found])
        with _created(partial_labels) as stream:
            stream.write(_as_npy(labels))
        digest = _digest(partial, partial_labels)
        path = folder / f"{key}.{digest}.npy"
        partial_labels.replace(_labels_of(path))
        partial.replace(path)
    except OSError as error:
        raise EnvironmentFailure(f"{folder}: images cannot be written ({error.strerror or error})") from error
    finally:
        for file in (partial, partial_labels):
            with contextlib.suppress(OSError):  # the folder can only be read
                file.unlink(missing_ok=True)
    return Materialized(path, labels, digest)


def take_up(folder: Path, key: str) -> Materialized | None:
    """The set of this key that was written before, or None. A damaged one is set aside with a warning."""
    for path in sorted(folder.glob(f"{key}.*.npy")):
        if path.name.endswith(_LABELS):
            continue
        digest, labels = path.name.split(".")[1], _labels_of(path)
        try:
            data = labels.read_bytes() if _digest(path, labels) == digest else None
        except FileNotFoundError:  # another process deleted it, or has not written all of it yet
            continue
        except OSError:  # a folder, say
            data = None
        if data is None:
            _set_aside(path, labels)
            continue
        for file in (path, labels):
            with contextlib.suppress(OSError):  # a folder that can only be read serves as well
                os.utime(file)
        return Materialized(path, np.load(io.BytesIO(data), allow_pickle=False), digest)
    return None


def _digest(images: Path, labels: Path) -> str:
    """SHA-256 over the digests of 16 MiB blocks, which several threads work out, and of the labels' file."""
    starts = range(0, images.stat().st_size, _BLOCK)

    def block(start: int) -> bytes:
        with images.open("rb") as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(_BLOCK)).digest()

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        state = hashlib.sha256(b"".join(pool.map(block, starts)))
    state.update(labels.read_bytes())
    return state.hexdigest()


def _set_aside(*files: Path) -> None:
    """Give damaged files names that nothing looks for; they are deleted when the folder grows too large."""
    for file in files:
        target = file.with_name(f"damaged-{time.time_ns()}-{file.name}")
        logger.warning("%s is damaged (its content does not fit its digest); kept as %s, made again", file, target.name)
        with contextlib.suppress(OSError):
            file.replace(target)


def _created(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, private.FILE_MODE), "wb")


def _labels_of(images: Path) -> Path:
    return images.with_name(images.name.removesuffix(".npy") + _LABELS)


def _as_npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
