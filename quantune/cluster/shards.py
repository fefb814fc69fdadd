"""What a worker of a cluster does: it finds a shard's program, numbers and images, and answers the images.

Files are found by their content, in this order: where the asking machine has them (a folder that all machines share),
among those sent before, among those sent with the shard. A worker that has none says so, and is sent them.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantune.device.identity import describe
from quantune.device.store import Store
from quantune.errors import QuantuneError, RunFailed, UsageError
from quantune.process import scratch
from quantune.runtime.arrays import map_images
from quantune.runtime.child import Worker

STORE_BYTES = 4 << 30
"""Files that one worker keeps; those used least recently go."""


@dataclass(frozen=True)
class Part:
    """A file, or images [first, stop) of an .npy file: its content's sha256, and where the asking machine has it."""

    digest: str
    kind: str
    path: str
    first: int = 0
    stop: int | None = None

    def data(self) -> bytes:
        """Its bytes, read from the path; of images an .npy file of their own. Raises OSError or UsageError."""
        if self.stop is None:
            return Path(self.path).read_bytes()
        array = map_images(self.path)
        file = io.BytesIO()
        np.save(file, array[self.first : self.stop], allow_pickle=False)
        return file.getvalue()


@dataclass(frozen=True)
class Shard:
    """A program with its numbers, and which of the images [first, end) of a part it is to answer."""

    program: Part
    numbers: Part | None
    images: Part
    first: int
    end: int
    device: str
    timeout_s: float

    def parts(self) -> tuple[Part, ...]:
        """The files it needs."""
        return tuple(part for part in (self.program, self.numbers, self.images) if part is not None)


def make_part(path: Path, first: int = 0, stop: int | None = None) -> Part:
    """Describe a file, or some images of one, by its content. Raises OSError or UsageError."""
    part = Part("", path.suffix, str(path), first, stop)
    return Part(hashlib.sha256(part.data()).hexdigest(), part.kind, part.path, first, stop)


def answer(shard: Shard, sent: Mapping[str, bytes]) -> dict[str, Any]:
    """Answer a shard: ``rows``, or the digests that are ``missing`` here, or an ``error`` with its message.

    sent: files by their digest. Failures are data: what a cluster makes of exceptions is its own affair.
    """
    try:
        site = _site()
        site.keep(shard.parts(), sent)
        found = {part.digest: site.find(part) for part in shard.parts()}
        missing = [digest for digest, place in found.items() if place is None]
        if missing:
            return {"missing": missing}
        return {"rows": site.run(shard, {digest: place for digest, place in found.items() if place is not None})}
    except QuantuneError as error:
        return {"error": type(error).__name__, "message": str(error), "transient": error.transient}
    except Exception as error:
        return {"error": RunFailed.__name__, "message": f"{type(error).__name__}: {error}", "transient": False}


def fitness() -> dict[str, Any]:
    """What this worker's machine is; see quantune.device.identity."""
    return describe()


def renew() -> None:
    """End this worker's children; the next shard begins in fresh ones."""
    if _kept is not None:
        _kept.renew()


class _Site:
    """What one process of the cluster keeps between shards: files, and children that run programs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store = Store(scratch.kept("shards"), STORE_BYTES)
        self._checked: dict[tuple[str, int, int, int, int | None], str] = {}
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    def keep(self, parts: tuple[Part, ...], sent: Mapping[str, bytes]) -> None:
        kinds = {part.digest: part.kind for part in parts}
        with self._lock:
            for digest, data in sent.items():
                if self._store.find(digest, kinds[digest]) is None:
                    self._store.put(digest, kinds[digest], data)

    def find(self, part: Part) -> tuple[Path, int] | None:
        """A file with the part's content, and how many images stand before it there; None where there is none."""
        if self._is_shared(part):
            return Path(part.path), part.first
        with self._lock:
            path = self._store.find(part.digest, part.kind)
        return None if path is None else (path, 0)

    def _is_shared(self, part: Part) -> bool:
        """Whether the asking machine's path leads to the same content here."""
        try:
            stat = Path(part.path).stat()
            key = (part.path, stat.st_mtime_ns, stat.st_size, part.first, part.stop)
            if key not in self._checked:
                self._checked[key] = hashlib.sha256(part.data()).hexdigest()
            return self._checked[key] == part.digest
        except (OSError, ValueError, UsageError):
            return False

    def run(self, shard: Shard, found: Mapping[str, tuple[Path, int]]) -> np.ndarray:
        images, before = found[shard.images.digest]
        numbers = None if shard.numbers is None else found[shard.numbers.digest][0]
        worker = self._take(shard)
        try:
            return worker.evaluate(
                found[shard.program.digest][0], images, parameters=numbers, first=before + shard.first,
                count=shard.end - shard.first, timeout_s=shard.timeout_s,
            ).logits  # fmt: skip
        finally:
            with self._lock:
                self._busy.discard(worker)
                self._idle.append(worker)

    def _take(self, shard: Shard) -> Worker:
        with self._lock:
            fitting = [worker for worker in self._idle if worker.device == shard.device]
            worker = fitting[-1] if fitting else Worker(device=shard.device, timeout_s=shard.timeout_s)
            if fitting:
                self._idle.remove(worker)
            self._busy.add(worker)
            return worker

    def renew(self) -> None:
        with self._lock:
            workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.stop()


_kept: _Site | None = None
_making = threading.Lock()


def _site() -> _Site:
    global _kept
    with _making:
        if _kept is None:
            _kept = _Site()
        return _kept
