"""What the answers of programs on the evaluation images are worth: by a metric, against labels or the f32 network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantune.cache import ArtifactCache, content_key
from quantune.errors import EnvironmentFailure
from quantune.metrics.base import Metric, Rows, pseudo_values, value_of
from quantune.process import scratch
from quantune.search.scores import pack_correct, pack_values, unpack_correct
from quantune.tuning.overflow import finite

OUTPUT_BYTES = 256 << 20
"""What a stretch of outputs may take in memory: images are answered in so many at a time."""

Run = Callable[[int, int], NDArray[np.floating]]
"""The outputs on images [first, end) of the evaluation set, in the order of evaluation."""


class Judge:
    """Turns outputs into the numbers of a metric, and keeps those of a program in the cache.

    shape: of an image's outputs. folder: for the f32 network's outputs, where the metric compares with them.
    """

    def __init__(self, metric: Metric, shape: tuple[int, ...], cache: ArtifactCache, folder: Path) -> None:
        self.metric, self._shape, self._cache, self._folder = metric, shape, cache, folder
        self._stretch = max(1, OUTPUT_BYTES // (4 * int(np.prod(shape))))
        self._reference: NDArray[np.floating] | None = None
        self._against = ""

    @property
    def needs_reference(self) -> bool:
        """Whether the outputs of the f32 network are still to be told."""
        return self.metric.compared and self._reference is None

    def set_reference(self, key: str, total: int, run: Run) -> None:
        """Take the outputs of the f32 network on all images; key: of its program."""
        path = self._folder / "reference.npy"
        self._check_room(4 * total * int(np.prod(self._shape)))
        with scratch.told():
            kept = np.lib.format.open_memmap(path, "w+", np.float32, (total, *self._shape))
            for first in range(0, total, self._stretch):
                outputs = run(first, min(first + self._stretch, total))
                kept[first : first + len(outputs)] = outputs
            kept.flush()
        self._reference, self._against = np.load(path, mmap_mode="r"), key

    def rows(self, labels: NDArray[np.generic], first: int, end: int, run: Run) -> Rows:
        """The metric's numbers of images [first, end)."""
        parts = []
        for start in range(first, end, self._stretch):
            outputs = finite(run(start, min(start + self._stretch, end)), start)
            stretch = slice(start, start + len(outputs))
            reference = None if self._reference is None else self._reference[stretch]
            parts.append(self.metric.rows(outputs, labels[stretch], reference))
        return np.concatenate(parts)

    def key(self, program: str, images: str) -> str:
        """What the numbers of a program on images, whose digest is given, are kept under."""
        if self.metric.name == "top-1":
            return content_key("answers", program, images)
        return content_key("numbers", program, images, self.metric.identity(), self._against)

    def known(self, key: str, total: int) -> Rows | None:
        """The numbers of all images that were kept under a key."""
        if self.metric.binary:
            right = self._cache.read(key, ".correct", lambda data: unpack_correct(data.decode(), total))
            return None if right is None else right.astype(np.float64)[:, None]
        return self._cache.read(key, ".rows", lambda data: _read_rows(data, total))

    def keep(self, key: str, rows: Rows) -> None:
        """Keep the numbers of all images."""
        if self.metric.binary:
            self._cache.put(key, pack_correct(rows[:, 0] > 0).encode(), ".correct")
            return
        buffer = io.BytesIO()
        np.save(buffer, rows)
        self._cache.put(key, buffer.getvalue(), ".rows")

    def value(self, rows: Rows) -> float:
        """The metric."""
        return value_of(self.metric, rows)

    def told(self, rows: Rows) -> dict[str, str]:
        """What a score keeps of each image, so that differences between artifacts are paired."""
        if self.metric.binary:
            return {"correct": pack_correct(rows[:, 0] > 0)}
        return {"values": pack_values(pseudo_values(self.metric, rows))}

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise EnvironmentFailure(
                f"{self._folder}: the outputs of the f32 network need {needed} bytes, {free} are free; use fewer images"
            )


def _read_rows(data: bytes, total: int) -> Rows:
    rows = np.load(io.BytesIO(data), allow_pickle=False)
    if rows.ndim != 2 or len(rows) != total or rows.dtype != np.float64:
        raise ValueError(f"numbers of shape {rows.shape}, expected those of {total} images")
    return rows
