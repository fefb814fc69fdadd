"""What the f32 network of one model gives on the calibration images: statistics of its tensors, or the tensors."""

from __future__ import annotations

import importlib.metadata
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mlir_passes.network import Network
from quantune.cache import content_key
from quantune.compiler import pipelines
from quantune.compiler.iree import CompiledModule
from quantune.compiler.targets import Target
from quantune.data.splits import Split, batches
from quantune.errors import UsageError
from quantune.frontend.imported import ImportedModel
from quantune.numerics.simulate import full_batch
from quantune.quantization import calibration
from quantune.quantization.calibration import Statistics, Summarizer
from quantune.quantization.plan import observed
from quantune.quantization.space import CALIBRATION_SIZES
from quantune.runtime.devices import processors
from quantune.runtime.program import Program
from quantune.tuning.compiling import Programs


class Calibration:
    """One model and its calibration images.

    A model whose weights were changed, whatever for, is another model: it has a calibration of its own, and plans of
    that. images: None allows float configurations only. sizes: numbers of images to keep statistics for. on_image hears
    (images done, images in all).
    """

    def __init__(
        self,
        model: ImportedModel,
        images: Split | None,
        programs: Programs,
        *,
        sizes: Iterable[int] = CALIBRATION_SIZES,
        on_image: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if images is not None and images.source.shape != model.input_shape[1:]:
            raise UsageError(
                f"{images.source.name} has images of shape {images.source.shape}, "
                f"model '{model.name}' takes {model.input_shape[1:]}"
            )
        self.model, self.split = model, images
        self._programs, self._on_image = programs, on_image
        self._sizes = tuple(sorted(set(sizes)))
        self._statistics: Statistics | None = None
        self._collecting = threading.Lock()

    @property
    def network(self) -> Network:
        """The model's network, in f32."""
        return self.model.network

    @property
    def statistics(self) -> Statistics:
        """The activations' histograms; collected at the first use, once per model and images."""
        with self._collecting:
            if self._statistics is None:
                self._statistics = self._collect()
            return self._statistics

    def first(self, count: int) -> Split:
        """The first ``count`` calibration images, or all there are. Raises UsageError when there are none."""
        if self.split is None:
            raise UsageError("quantization needs calibration images; name them with --calib (calib=… in Python)")
        return self.split.first(count)

    def images(self, count: int) -> np.ndarray:
        """The first ``count`` calibration images, or all there are: f32[n, c, h, w]."""
        return np.concatenate(list(batches(self.first(count), self.model.input_shape[0])))

    def observe(self, tensors: Sequence[str], count: int) -> Iterator[dict[str, np.ndarray]]:
        """The f32 network's tensors by name, f32[1, ...], for each of the first ``count`` calibration images."""
        return self.observe_on(tensors, self.first(count))

    def observe_on(self, tensors: Sequence[str], images: Split) -> Iterator[dict[str, np.ndarray]]:
        """Like `observe`, for images of any set."""
        known = observed(self.network)
        run = self._instrumented(known if set(tensors) <= set(known) else tuple(tensors))
        for batch in batches(images, self.model.input_shape[0]):
            results = run(batch)
            for i in range(len(batch)):
                yield {name: results[name][i : i + 1] for name in tensors}

    def compile(self) -> CompiledModule:
        """The program that `statistics` runs."""
        return self._compile(observed(self.network))

    def _collect(self) -> Statistics:
        images = self.first(self._sizes[-1])
        assert self.split is not None
        if not self.network.layers:
            raise UsageError(
                f"model '{self.model.name}' has no convolution or matrix product with constant weights to quantize; "
                "build it with precision=f32 or f16"
            )
        tensors = observed(self.network)
        limits = (calibration.SAMPLES, calibration.FIRST_IMAGE_SAMPLES, calibration.POWER_IMAGES)
        sampling = (limits, self._sizes, tensors)
        compiler = importlib.metadata.version("iree-base-compiler")
        key = content_key(calibration.FORMAT, self.model.bytecode, images.fingerprint, repr(sampling), compiler)
        known = self._programs.cache.read(key, ".npz", Statistics.from_bytes)
        if known is not None:
            return known
        total, run = len(images), self._instrumented(tensors)
        shown = batches(images, self.model.input_shape[0])
        statistics = calibration.collect(
            run, shown, len(self.split), self._sizes, lambda done: self._on_image(done, total),
            threads=processors(), summarizer=self._summarizer(tensors),
        )  # fmt: skip
        self._programs.cache.put(key, statistics.to_bytes(), ".npz")
        return statistics

    def _instrumented(self, tensors: tuple[str, ...]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """A function from a batch to tensors of the f32 network, run on this machine's processor."""
        load = _one_a_thread(self._compile(tensors).path)

        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            results = load()(full_batch(batch, self.model.input_shape[0]))
            return {name: values[: len(batch)] for name, values in zip(tensors, results[-len(tensors) :], strict=True)}

        return run

    def _summarizer(self, tensors: tuple[str, ...]) -> Summarizer | None:
        """The same program's function that samples the tensors, where there are images enough for it."""
        if not self._strides(tensors):
            return None
        load = _one_a_thread(self._compile(tensors).path, pipelines.SUMMARY)

        def run(batch: np.ndarray, first: int) -> np.ndarray:
            return load()(full_batch(batch, self.model.input_shape[0]), np.array([first]))[: len(batch)]

        return Summarizer(run, self._values(tensors))

    def _values(self, tensors: tuple[str, ...]) -> dict[str, int]:
        """How many values of one image each tensor has."""
        return {name: math.prod(self.network.by_name[name].shape[1:]) for name in tensors}

    def _strides(self, tensors: tuple[str, ...]) -> tuple[int, ...]:
        """How the program is to sample ``tensors``; empty where whole tensors are read."""
        # The same for whatever sizes are asked for: one configuration calibrates as the search did that found it.
        images = 0 if self.split is None else min(len(self.split), max(*CALIBRATION_SIZES, self._sizes[-1]))
        if images <= calibration.POWER_IMAGES or tensors != observed(self.network):
            return ()
        return tuple(map(calibration.stride, self._values(tensors).values()))

    def _compile(self, tensors: tuple[str, ...]) -> CompiledModule:
        host = Target("cpu")
        module = pipelines.instrumented(self.model.bytecode, tensors, host, self._strides(tensors))
        return self._programs.compile(module, host)


def _one_a_thread(path: Path, function: str = "main") -> Callable[[], Program]:
    """A loaded program serves one thread: gives each its own, loaded at its first call."""
    own = threading.local()

    def load() -> Program:
        if not hasattr(own, "program"):
            own.program = Program(path, function=function)
        return own.program

    return load
