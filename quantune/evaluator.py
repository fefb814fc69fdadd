"""Builds a configuration and measures it: accuracy on the evaluation images, latency, size. What a search calls."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from quantune.builder import Builder, Built
from quantune.compiler.cache import content_key
from quantune.config import QuantConfig
from quantune.data.splits import Materialized, Split, materialize
from quantune.errors import RunFailed, UsageError
from quantune.runtime.benchmark import compare
from quantune.runtime.devices import open_device
from quantune.runtime.evaluate import Worker
from quantune.runtime.measure import Effort
from quantune.search.evaluate import Score, pack_correct

logger = logging.getLogger(__name__)

QUICK = Effort(repetitions=5, min_seconds=0.3, warmup_seconds=0.1)
"""For ranking during the search; finalists are timed again side by side."""


class Evaluator:
    """Measures configurations of a builder on evaluation images, in a worker process. Use it as a context manager.

    eval_split: labelled images, disjoint from the calibration images. threads: for the latency. Two configurations that
    compute the same are measured once; the latency is measured once per program.
    """

    def __init__(self, builder: Builder, eval_split: Split, *, threads: int = 1, timeout_s: float = 1200.0) -> None:
        self.builder, self.split = builder, eval_split
        model = builder.model
        if eval_split.source.shape != model.input_shape[1:]:
            raise UsageError(
                f"{eval_split.source.name} has images of shape {eval_split.source.shape}, "
                f"model '{model.name}' takes {model.input_shape[1:]}"
            )
        results = [model.network.by_name[name].shape for name in model.network.outputs]
        if len(results) != 1 or len(results[0]) != 2:
            shapes = ", ".join(map(str, results))
            raise UsageError(
                f"model '{model.name}' gives {shapes}; expected one number per class and image (n, classes)"
            )
        self._classes = results[0][1]
        if builder.target.name != "cpu":
            open_device(builder.target.device())  # a missing device is told before anything is compiled for it
        self.threads = threads
        self._worker = Worker(device=builder.target.device(threads=threads), threads=threads, timeout_s=timeout_s)
        self._images: Materialized | None = None
        self._labels = np.empty(0, np.int64)
        self._scores: dict[str, Score] = {}
        self._latency: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker.close()

    @property
    def images(self) -> Path:
        """The evaluation images as a file that workers map; written at the first use."""
        if self._images is None:
            folder = self.builder.cache.root / "images"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{content_key(self.split.fingerprint)[:32]}.npy"
            labels = path.with_suffix(".labels.npy")
            if path.is_file() and labels.is_file():
                self._images = Materialized(path, labels, len(self.split))
            else:
                self._images = materialize(self.split, path, self._classes)
            self._labels = np.load(self._images.labels)
            if self._labels.max(initial=0) >= self._classes:  # the file may be of a model with more classes
                raise UsageError(
                    f"the evaluation labels reach {self._labels.max()}, but the model has {self._classes} outputs"
                )
        return self._images.images

    def __call__(self, config: QuantConfig) -> Score:
        """Build and measure one configuration; any failure is an exception with the reason."""
        _ = self.images  # wrong labels are told before anything is compiled
        built = self.builder.build(config)
        known = self._scores.get(built.key)
        if known is None:
            known = self._scores[built.key] = self._measure(built)
        self.builder.forget(config)
        return known

    def _measure(self, built: Built) -> Score:
        images = self.images
        start = time.monotonic()
        effort = None if built.program.sha256 in self._latency else QUICK
        outcome = self._worker.evaluate(built.program.path, images, parameters=built.numbers, effort=effort)
        if outcome.timing is not None:
            self._latency[built.program.sha256] = float(np.median(outcome.timing.medians))
        right = self._right(outcome.logits)
        details = {
            "correct": pack_correct(right),
            "program": built.program.sha256,
            "seconds": {**built.seconds, "evaluation": outcome.seconds, "measuring": time.monotonic() - start},
        }
        latency = self._latency[built.program.sha256]
        return Score(float(right.mean()), latency, built.size_bytes, len(right), details)

    def retime(self, configs: list[QuantConfig]) -> dict[QuantConfig, float]:
        """Latencies in ms, measured side by side on artifacts; configurations of one program share one measurement."""
        programs = {config: self.builder.build(config).program.sha256 for config in configs}
        chosen = {sha: config for config, sha in reversed(programs.items())}
        with tempfile.TemporaryDirectory(prefix="quantune-retime-") as folder:
            paths = [
                self.builder.artifact(config).save(Path(folder) / f"{i}.vmfb")
                for i, config in enumerate(chosen.values())
            ]
            timings = compare(paths, threads=self.threads, device=self._worker.device, images=self.images).timings
        latency = {sha: timing.median_ms for sha, timing in zip(chosen, timings, strict=True)}
        return {config: latency[sha] for config, sha in programs.items()}

    def verify(self, path: Path) -> float:
        """Top-1 of an artifact on disk, on all evaluation images, by a fresh process."""
        with Worker(device=self._worker.device, threads=self.threads, timeout_s=self._worker.timeout_s) as worker:
            return float(self._right(worker.evaluate(path, self.images).logits).mean())

    def _right(self, logits: np.ndarray) -> np.ndarray:
        if not np.isfinite(logits).all():
            raise RunFailed("the artifact's output is not finite")
        return logits.argmax(axis=1) == self._labels
