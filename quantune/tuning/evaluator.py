"""Builds a configuration and measures it: accuracy on the evaluation images, latency, size. What a search calls."""

from __future__ import annotations

import logging
import shutil
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from quantune.cache import content_key, trim
from quantune.data.base import hashed_order
from quantune.data.materialized import Materialized, provide
from quantune.data.splits import Split, batches, label_shape
from quantune.errors import QuantuneError, UsageError
from quantune.metrics import DEFAULT, METRICS, Metric
from quantune.metrics.base import Rows
from quantune.process import scratch
from quantune.quantization.config import QuantConfig
from quantune.runtime.devices import open_device
from quantune.runtime.engines import Files, LocalRunner, LocalTimer
from quantune.runtime.host import processor_name
from quantune.runtime.measure import Effort, Samples
from quantune.search.scores import Score
from quantune.search.stopping import Floor, looks
from quantune.tuning.builder import Builder
from quantune.tuning.compiling import Built, beside
from quantune.tuning.judging import Judge, Run
from quantune.tuning.measuring import Measuring
from quantune.tuning.overflow import NotFinite, explained, finite

logger = logging.getLogger(__name__)

_F32 = QuantConfig(precision="f32")

QUICK = Effort(repetitions=5, min_seconds=0.3, warmup_seconds=0.1)
"""For ranking during the search; finalists are timed again side by side."""

FINAL = Effort(repetitions=10, min_seconds=0.6, warmup_seconds=0.1)

IMAGES_LIMIT_BYTES = 4 << 30
"""Evaluation images that are kept on disk from one search to the next; those in use always stay."""


class Evaluator:
    """Measures configurations of a builder on evaluation images. Use it as a context manager.

    eval_split: images disjoint from the calibration images. metric: what their answers are worth. threads: for the
    latency. place: where
    programs answer and are timed, closed by whoever gave it; by default worker processes here, for the answers one a
    processor, which end with this.
    The images are shown in an order drawn at random, once for all, so that the first ones stand for
    all. Two configurations that compute the same are measured once, here and in later sessions with the same cache; the
    latency is measured once per program, while nothing else runs here.
    """

    def __init__(
        self,
        builder: Builder,
        eval_split: Split,
        *,
        threads: int = 1,
        timeout_s: float = 1200.0,
        place: Measuring | None = None,
        metric: Metric = METRICS[DEFAULT],
    ) -> None:
        self.builder, self.split, self.metric = builder, eval_split, metric
        model = builder.model
        if eval_split.source.shape != model.input_shape[1:]:
            raise UsageError(
                f"{eval_split.source.name} has images of shape {eval_split.source.shape}, "
                f"model '{model.name}' takes {model.input_shape[1:]}"
            )
        shape = model.output_shape
        metric.check(shape, label_shape(eval_split))
        self._classes = shape[0] if metric.binary else None
        target, self.threads = builder.target, threads
        place = place or Measuring(target)
        if not target.on_processor and (place.runner is None or place.timer is None):
            open_device(target.device())  # a missing device is told before anything is compiled for it
        workers = None if target.on_processor else 1  # a GPU serves one
        limit = builder.programs.memory_limit if target.on_processor else None  # what a driver reserves is no measure
        self.device = place.device
        here = processor_name() if target.on_processor else target.device()
        self.timed_on, self.counted_on = place.timed_on or here, place.counted_on or here
        self._runner = place.runner or LocalRunner(
            device=target.device(), count=workers, timeout_s=timeout_s, memory_limit=limit
        )
        self._timer = place.timer or LocalTimer(
            device=target.device(threads=threads), threads=threads, timeout_s=timeout_s, memory_limit=limit
        )
        self._own = [each for each in (self._runner, self._timer) if each not in (place.runner, place.timer)]
        self._folder = scratch.kept("trials")
        self._judge = Judge(metric, shape, builder.cache, self._folder)
        self._floor: Floor | None = None
        self._by_identity: dict[str, Score] = {}  # of plans that are equal: `Builder.identity`
        self._by_content: dict[str, Score] = {}  # of programs with equal numbers: `Built.key`
        self._files: dict[str, Files] = {}  # by the program's sha256: itself, and some set of its numbers
        self._latency: dict[str, float] = {}  # in ms, by the program's sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for each in self._own:
            each.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def take_up(self) -> Materialized:
        """Have the evaluation images as a file that workers map, in the order of evaluation; UsageError for labels.

        Written at the first call.
        """
        return self._taken_up

    @cached_property
    def _taken_up(self) -> Materialized:
        folder = self.builder.cache.root / "images"
        key = content_key(self.split.fingerprint, "in a random order, with a digest")[:32]
        order = hashed_order(len(self.split))
        shuffled = Split(self.split.source, tuple(self.split.indices[i] for i in order))
        made = provide(shuffled, folder, self._folder, key, self._classes, any_labels=self._classes is None)
        if made.images.parent == folder:
            trim(folder, IMAGES_LIMIT_BYTES, newest=key)
        if self._classes is not None:
            self._check_classes(made.labels.astype(np.int64), self._classes)
        return made

    def _check_classes(self, labels: NDArray[np.int64], classes: int) -> None:
        highest = int(labels.max())
        if highest >= classes or int(labels.min()) < 0:  # the file may be of another model
            raise UsageError(f"the evaluation labels are {labels.min()} to {highest}, the model has {classes} outputs")
        if int(labels.min()) == highest:
            name = self.split.source.name
            logger.warning("%s: all %d evaluation images have the label %d", name, len(labels), highest)

    @property
    def classifies(self) -> bool:
        """Whether the model gives a score of each class, and nothing else."""
        return self._classes is not None

    def set_floor(self, floor: Floor | None) -> None:
        """Let the next trials stop once they surely end below ``floor``; None measures them in full."""
        self._floor = floor

    def __call__(self, config: QuantConfig) -> Score:
        """Build and measure one configuration; any failure is an exception with the reason."""
        self.take_up()  # wrong labels are told before anything is compiled
        self._runner.start()
        self._timer.start()
        identity = self.builder.identity(config)
        score = self._by_identity.get(identity)
        if score is None or not self._suffices(score):
            built = self.builder.build(config)
            score = self._by_content.get(built.key)  # numbers may agree where plans do not
            if score is None or not self._suffices(score):
                try:
                    score = self._by_content[built.key] = self._measure(built)
                except NotFinite as error:
                    raise self._explained(error, config) from error
            self._by_identity[identity] = score
        return score

    def _suffices(self, score: Score) -> bool:
        """Whether a trial need not be measured again: one that stopped early stands only while others may stop."""
        return self._floor is not None or score.stopped_of is None

    def _measure(self, built: Built) -> Score:
        start = time.monotonic()
        with beside(built.numbers) as numbers:
            rows, seconds = self._answers(built, numbers)
        if isinstance(self._runner, LocalRunner):
            self.builder.programs.peaks.child("evaluation", self._runner.peak_bytes)
        sha, paused_at = built.program.sha256, time.monotonic()
        if sha not in self._latency:
            self._latency[sha] = self._time([self._keep(built)], QUICK)[0]
        ended, total = time.monotonic(), len(self.split)
        steps = {**built.seconds, "evaluation": seconds, "latency": ended - paused_at, "measuring": ended - start}
        accuracy, stopped = self._judge.value(rows), len(rows) < total
        if stopped:
            assert self._floor is not None
            accuracy = self._floor.estimate(rows[:, 0] > 0)
        return Score(
            accuracy, self._latency[sha], built.size_bytes, len(rows), **self._judge.told(rows),
            program=sha, seconds=steps, stopped_of=total if stopped else None,
        )  # fmt: skip

    def _answers(self, built: Built, numbers: Path | None) -> tuple[Rows, float]:
        """The metric's numbers of the images, of the first ones until the floor stops it, and the seconds that took."""
        if self._judge.needs_reference:
            self._take_reference()
        total = len(self.split)
        key = self._judge.key(built.key, self._taken_up.digest)
        known = self._judge.known(key, total)
        if known is not None:
            return known, 0.0
        start, run = time.monotonic(), self._run(built.program.path, numbers)
        rows = np.empty((0, 0))
        for end in (*(looks(total) if self._floor is not None else ()), total):
            new = self._judge.rows(self._taken_up.labels, len(rows), end, run)
            rows = np.concatenate([rows, new]) if len(rows) else new
            if end < total and self._floor is not None and self._floor.stops(rows[:, 0] > 0):
                return rows, time.monotonic() - start
        self._judge.keep(key, rows)
        return rows, time.monotonic() - start

    def _run(self, program: Path, numbers: Path | None) -> Run:
        return lambda first, end: self._runner.run(program, numbers, self._taken_up.images, first, end)

    def _take_reference(self) -> None:
        """Let the f32 network answer all images, with which the metric compares."""
        built = self.builder.build(_F32)
        with beside(built.numbers) as numbers:
            run = self._run(built.program.path, numbers)
            self._judge.set_reference(built.key, len(self.split), lambda first, end: finite(run(first, end), first))

    def retime(self, configs: list[QuantConfig]) -> dict[QuantConfig, float]:
        """Latencies in ms, measured side by side; configurations of one program share one measurement."""
        chosen = list(dict.fromkeys(map(self._program, configs)))
        latency = dict(zip(chosen, self._time([self._files[sha] for sha in chosen], FINAL), strict=True))
        return {config: latency[self._program(config)] for config in configs}

    def _program(self, config: QuantConfig) -> str:
        """The sha256 of a configuration's program, whose files are at hand from then on."""
        known = self._by_identity.get(self.builder.identity(config))
        if known is not None and known.program in self._files:
            return known.program
        built = self.builder.build(config)
        self._keep(built)
        return built.program.sha256

    def time_beside(self, config: QuantConfig, path: Path) -> tuple[float, Samples]:
        """Latency in ms of a configuration's program, as trials measure it, and that of a file with all inside."""
        of_trial, of_file = self._samples([self._files[self._program(config)], (path, None)], QUICK)
        return of_trial.quartiles[1], of_file

    def verify(self, path: Path) -> float:
        """The metric of an artifact on disk, on all evaluation images, by fresh processes."""
        labels = self._taken_up.labels
        if self._judge.needs_reference:
            self._take_reference()
        self._runner.renew()
        return self._judge.value(self._judge.rows(labels, 0, len(labels), self._run(path, None)))

    def answers(self, config: QuantConfig, images: Split) -> NDArray[np.floating]:
        """What a configuration's program gives for other images than those it is judged by, f[n, classes]."""
        path = self._folder / f"{images.fingerprint[:32]}.npy"
        if not path.is_file():
            with scratch.told():
                np.save(path, next(batches(images, len(images))))
        built = self.builder.build(config)
        with beside(built.numbers) as numbers:
            logits = self._runner.run(built.program.path, numbers, path, 0, len(images))
        return finite(logits)

    def _keep(self, built: Built) -> Files:
        """A program and its numbers as files that outlive the trial."""
        sha = built.program.sha256
        if sha not in self._files:
            numbers = None if built.numbers is None else self._folder / f"{sha}.npz"
            if numbers is not None:
                with scratch.told():
                    np.savez(numbers, **(built.numbers or {}))  # type: ignore[arg-type]
            self._files[sha] = built.program.path, numbers
        return self._files[sha]

    def _time(self, programs: list[Files], effort: Effort) -> list[float]:
        return [sample.quartiles[1] for sample in self._samples(programs, effort)]

    def _samples(self, programs: list[Files], effort: Effort) -> list[Samples]:
        samples = self._timer.time(programs, self._taken_up.images, effort)
        if isinstance(self._timer, LocalTimer):
            self.builder.programs.peaks.child("measurement", self._timer.peak_bytes)
        return samples

    def _explained(self, error: NotFinite, config: QuantConfig) -> QuantuneError:
        index = self.split.indices[hashed_order(len(self.split))[error.row]]
        return explained(
            self.builder.calibration, Split(self.split.source, (index,)), is_float=config.precision == "f32"
        )
