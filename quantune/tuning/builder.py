"""From a model, its calibration images and a target: the program, the numbers and the artifact of any configuration.

Import, calibration and compilation each happen once and are cached by content. A quantized configuration is a *program*
(which depends on the precision and on how it requantizes) and its *numbers*; a search compiles a few programs and loads
many sets of numbers. The artifact handed out has its numbers inside.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mlir_passes.network import Network
from quantune.artifact.provenance import Measured, Provenance, attach
from quantune.artifact.records import LayerExecution
from quantune.cache import ArtifactCache, content_key
from quantune.compiler import pipelines
from quantune.compiler.inspect import layer_executions, required_processor
from quantune.compiler.iree import CompiledModule, compile_module
from quantune.compiler.pipelines import Debugging, Lowered
from quantune.compiler.targets import Target
from quantune.data.base import printable
from quantune.data.splits import Split, batches
from quantune.errors import UsageError
from quantune.frontend.imported import ImportedModel
from quantune.process import memory
from quantune.process.job import stop_all
from quantune.quantization import calibration, constants
from quantune.quantization.calibration import Statistics, Summarizer
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import KnownWeights, QuantizationPlan, Ranges, make_plan, observed
from quantune.quantization.space import CALIBRATION_SIZES
from quantune.refine.base import images_for
from quantune.runtime.artifact import Artifact
from quantune.runtime.devices import processors
from quantune.runtime.program import Program
from quantune.tuning.refining import Refining
from quantune.tuning.request import Origin
from quantune.versions import versions

logger = logging.getLogger(__name__)

_MOMENT_S = 0.05

_AHEAD = 2
"""Programs that are built in the background at a time."""


@dataclass(frozen=True)
class Built:
    """One configuration, compiled, and all others that compute the same.

    numbers: parameters to load beside the program, None when they are inside. number_bytes: what they take in an
    artifact, where weights of fewer than eight bits are packed.
    """

    program: CompiledModule
    numbers: dict[str, np.ndarray] | None
    pipeline: str
    number_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for configurations that compute the same: sha256 of program and numbers."""
        digest = hashlib.sha256(self.program.sha256.encode())
        for name, array in sorted((self.numbers or {}).items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Program and numbers together: within a few per cent of the artifact that has them inside."""
        return self.program.path.stat().st_size + self.number_bytes


class Builder:
    """Builds any configuration of one model for one target.

    calib: the calibration images; None allows float configurations only. sizes: numbers of images to keep statistics
    for. on_calibration hears (images done, images in all), on_refining the same of a refinement's images or layers.
    origin: what an artifact's record says that model and images were asked for by.
    """

    def __init__(
        self,
        model: ImportedModel,
        target: Target,
        *,
        calib: Split | None = None,
        cache: ArtifactCache | None = None,
        sizes: Iterable[int] = CALIBRATION_SIZES,
        timeout_s: float = 600.0,
        memory_limit: str | int | None = None,
        peaks: memory.Peaks | None = None,
        debugging: Debugging | None = None,
        on_calibration: Callable[[int, int], None] = lambda done, total: None,
        on_refining: Callable[[int, int], None] = lambda done, total: None,
        origin: Origin | None = None,
    ) -> None:
        self.model, self.target, self.calib = model, target, calib
        self.origin = origin or Origin(objects=("model", "calib"))
        self.cache = cache or ArtifactCache()
        self.timeout_s = timeout_s
        self.peaks = peaks or memory.Peaks()
        self.memory_limit = memory.chosen(memory_limit, compilers=_AHEAD + 1, workers=processors() + 1)
        self.debugging = debugging or Debugging()
        self._sizes = tuple(sorted(set(sizes)))
        self._on_calibration, self._on_refining = on_calibration, on_refining
        self._statistics: Statistics | None = None
        self._plans: dict[QuantConfig, QuantizationPlan] = {}
        self._refined: dict[QuantConfig, QuantizationPlan] = {}
        self._identities: dict[QuantConfig, str] = {}
        self._ranges: dict[int, Ranges] = {}
        self._weights: KnownWeights = {}
        self._built: dict[str, Built] = {}  # by identity
        self._ahead = ThreadPoolExecutor(_AHEAD, "quantune-ahead")
        self._begun: list[Future[None]] = []
        self._compiling: dict[str, threading.Lock] = {}
        self._building: dict[str, threading.Lock] = {}
        if calib is not None and calib.source.shape != model.input_shape[1:]:
            raise UsageError(
                f"{calib.source.name} has images of shape {calib.source.shape}, "
                f"model '{model.name}' takes {model.input_shape[1:]}"
            )

    # Calibration

    @property
    def statistics(self) -> Statistics:
        """The activations' histograms; collected at the first use, once per model and images."""
        if self._statistics is None:
            self._statistics = self._collect()
        return self._statistics

    def _collect(self) -> Statistics:
        images = self.calibration_images(self._sizes[-1])
        assert self.calib is not None
        if not self.model.network.layers:
            raise UsageError(
                f"model '{self.model.name}' has no convolution or matrix product with constant weights to quantize; "
                "build it with precision=f32 or f16"
            )
        tensors = observed(self.model.network)
        limits = (calibration.SAMPLES, calibration.FIRST_IMAGE_SAMPLES, calibration.POWER_IMAGES)
        sampling = (limits, self._sizes, tensors)
        compiler = importlib.metadata.version("iree-base-compiler")
        key = content_key(calibration.FORMAT, self.model.bytecode, images.fingerprint, repr(sampling), compiler)
        known = self.cache.read(key, ".npz", Statistics.from_bytes)
        if known is not None:
            return known
        total, run = len(images), self._instrumented(tensors)
        shown = batches(images, self.model.input_shape[0])
        statistics = calibration.collect(
            run, shown, len(self.calib), self._sizes, lambda done: self._on_calibration(done, total),
            threads=processors(), summarizer=self._summarizer(tensors),
        )  # fmt: skip
        self.cache.put(key, statistics.to_bytes(), ".npz")
        return statistics

    @property
    def network(self) -> Network:
        """The model's network."""
        return self.model.network

    def images(self, count: int) -> np.ndarray:
        """The first ``count`` calibration images, or all there are: f32[n, c, h, w]."""
        return np.concatenate(list(batches(self.calibration_images(count), self.model.input_shape[0])))

    def observe(self, tensors: Sequence[str], count: int) -> Iterator[dict[str, np.ndarray]]:
        """The f32 network's tensors by name, f32[1, ...], for each of the first ``count`` calibration images."""
        known = observed(self.model.network)
        run = self._instrumented(known if set(tensors) <= set(known) else tuple(tensors))
        for batch in batches(self.calibration_images(count), self.model.input_shape[0]):
            results = run(batch)
            for i in range(len(batch)):
                yield {name: results[name][i : i + 1] for name in tensors}

    def calibration_images(self, count: int) -> Split:
        """The first ``count`` calibration images, or all there are. Raises UsageError when there are none."""
        if self.calib is None:
            raise UsageError("quantization needs calibration images; name them with --calib (calib=… in Python)")
        return self.calib.first(count)

    def _instrumented(self, tensors: tuple[str, ...]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """A function from a batch to tensors of the f32 network, run on this machine's processor."""
        load = _one_a_thread(self._compile_instrumented(tensors).path)

        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            results = load()(full_batch(batch, self.model.input_shape[0]))
            return {name: values[: len(batch)] for name, values in zip(tensors, results[-len(tensors) :], strict=True)}

        return run

    def _summarizer(self, tensors: tuple[str, ...]) -> Summarizer | None:
        """The same program's function that samples the tensors, where there are images enough for it."""
        if not self._strides(tensors):
            return None
        load = _one_a_thread(self._compile_instrumented(tensors).path, pipelines.SUMMARY)

        def run(batch: np.ndarray, first: int) -> np.ndarray:
            return load()(full_batch(batch, self.model.input_shape[0]), np.array([first]))[: len(batch)]

        return Summarizer(run, self._values(tensors))

    def _values(self, tensors: tuple[str, ...]) -> dict[str, int]:
        """How many values of one image each tensor has."""
        return {name: math.prod(self.model.network.by_name[name].shape[1:]) for name in tensors}

    def _strides(self, tensors: tuple[str, ...]) -> tuple[int, ...]:
        """How the program is to sample ``tensors``; empty where whole tensors are read."""
        # The same for whatever sizes are asked for: one configuration calibrates as the search did that found it.
        images = 0 if self.calib is None else min(len(self.calib), max(*CALIBRATION_SIZES, self._sizes[-1]))
        if images <= calibration.POWER_IMAGES or tensors != observed(self.model.network):
            return ()
        return tuple(map(calibration.stride, self._values(tensors).values()))

    def _compile_instrumented(self, tensors: tuple[str, ...]) -> CompiledModule:
        host = Target("cpu")
        return self._compile(pipelines.instrumented(self.model.bytecode, tensors, host, self._strides(tensors)), host)

    # Building

    def prepare(self, configs: Iterable[QuantConfig] = (), *, calibration: bool = False) -> None:
        """Build in the background, in this order, what will be asked for: a failure is told there.

        Two are at work at a time, one in the passes while another is being compiled. calibration: the program that
        calibrates, before the configurations.
        """
        if calibration and self.calib is not None:
            made = self._ahead.submit(_quietly, self._compile_instrumented, observed(self.model.network))
            self._begun.append(made)
        self._begun += [self._ahead.submit(_quietly, self.build, config) for config in configs]

    def close(self, *, stop: bool = False) -> None:
        """Forget what `prepare` has not begun, and wait for what it has, or stop that too."""
        self._ahead.shutdown(wait=False, cancel_futures=True)
        at_work = [future for future in self._begun if not future.cancelled()]  # for those `wait` would wait for ever
        while stop and wait(at_work, timeout=_MOMENT_S).not_done:
            stop_all()  # again: what was in the passes may have come to its compilation since
        self._ahead.shutdown()
        self._begun = []
        self._ahead = ThreadPoolExecutor(_AHEAD, "quantune-ahead")

    def plan(self, config: QuantConfig) -> QuantizationPlan | None:
        """The numbers of a configuration, what refines them included; None for a float one."""
        scales = self.scales(config)
        if scales is None or config.bias == "none":
            return scales
        if config not in self._refined:
            self._refined[config] = self._refining.refined(scales, config.bias)
        return self._refined[config]

    @cached_property
    def _refining(self) -> Refining:
        seen = self.calibration_images(images_for(self.network))
        return Refining(self, self.cache, (self.model.bytecode, seen.fingerprint), len(seen), self._on_refining)

    def scales(self, config: QuantConfig) -> QuantizationPlan | None:
        """The numbers of a configuration before any refinement; None for a float one."""
        if config.is_float:
            return None
        config = replace(config, bias="none")
        if config not in self._plans:
            seen = min(config.calib, self.statistics.available)  # more than there are images give the same statistics
            ranges = self._ranges.setdefault(seen, {})
            statistics, power = self.statistics.at(config.calib), self.statistics.power
            self._plans[config] = make_plan(self.model.network, statistics, config, ranges, self._weights, power)
        return self._plans[config]

    def identity(self, config: QuantConfig) -> str:
        """A hash that is equal for configurations of one program and one set of numbers; nothing is built for it."""
        if config not in self._identities:
            plan, refined = self.scales(config), () if config.bias == "none" else (config.bias,)
            self._identities[config] = content_key(config.precision, "" if plan is None else plan.digest(), *refined)
        return self._identities[config]

    def lower(self, config: QuantConfig, *, until: str = "vmfb", outline: bool = False) -> Lowered:
        """Run the passes up to a stage (linalg, qdq, integer, vmfb)."""
        plan = None if until == "linalg" else self.plan(config)
        return pipelines.lower(
            self.model.bytecode,
            plan,
            self.target,
            config.precision,
            until=until,
            outline=outline,
            debugging=self.debugging,
        )

    def build(self, config: QuantConfig) -> Built:
        """Program and numbers of a configuration, as a search evaluates it."""
        key = self.identity(config)
        with self._building.setdefault(key, threading.Lock()):  # it may be at work in the background
            if key not in self._built:
                self._built[key] = self._build(config)
            return self._built[key]

    def _build(self, config: QuantConfig) -> Built:
        start = time.monotonic()
        lowered = self.lower(config, outline=not config.is_float)
        passes = time.monotonic() - start
        program = self._compile(lowered.module, self.target)
        seconds = {"passes": passes, "compile": 0.0 if program.cached else program.seconds}
        return Built(program, lowered.parameters, lowered.pipeline, lowered.parameter_bytes, seconds)

    def forget(self, config: QuantConfig) -> None:
        """Drop a configuration's numbers from memory; building it again is cheap."""
        self._built.pop(self.identity(config), None)
        self._plans.pop(config, None)
        self._refined.pop(config, None)

    def artifact(self, config: QuantConfig, measured: Measured | None = None) -> Artifact:
        """The one-file artifact of a configuration: numbers inside, with provenance and what its layers run in.

        measured: what a search found out about it, for its record.
        """
        lowered = self.lower(config)
        program = self._compile(lowered.module, self.target, explain=True)
        for layer, reason in lowered.reasons.items():
            logger.info("%s: %s", layer, reason)
        provenance = replace(self._provenance(config, lowered, program), measured=measured)
        return Artifact(attach(program.path.read_bytes(), provenance))

    def executed(self, program: CompiledModule) -> tuple[LayerExecution, ...]:
        """What each layer of a compiled program really runs in, read from the compiler's own dispatches."""
        return layer_executions(program.dispatches, layers={node.layer for node in self.model.network.layers} - {""})

    def _compile(self, module: bytes, target: Target, *, explain: bool = False) -> CompiledModule:
        # What is being compiled in the background is waited for, and then found in the cache.
        with self._compiling.setdefault(content_key(module), threading.Lock()):
            program = compile_module(
                module, target, timeout_s=self.timeout_s, memory_limit=self.memory_limit, cache=self.cache,
                failure_dir=self.debugging.reproducer_dir, explain=explain,
            )  # fmt: skip
        self.peaks.child("compilation", program.peak_bytes)
        return program

    def _data(self, config: QuantConfig) -> dict[str, str]:
        """The record's digests of what the numbers of a configuration come from."""
        plan = self.plan(config)
        if self.calib is None or plan is None:
            return {}
        found = {"calibration": self.calib.fingerprint}
        return {**found, "constants": constants.digest(plan.constants)} if plan.constants else found

    def _provenance(self, config: QuantConfig, lowered: Lowered, program: CompiledModule) -> Provenance:
        return Provenance(
            target=str(self.target),
            configuration=str(config),
            model=printable(self.model.name),
            fingerprint=self.model.fingerprint,
            pipeline=lowered.pipeline,
            flags=self.target.flags(),
            versions=versions(),
            sources=self.origin.arguments(),
            data=self._data(config),
            layers=self.executed(program),
            reasons=lowered.reasons,
            processor=required_processor(program.dispatches) if self.target.on_processor else None,
        )


def _quietly(work: Callable[..., object], argument: object) -> None:
    try:
        work(argument)
    except Exception as error:  # whoever asks for the result meets the failure again, and tells it
        logger.debug("in the background: %s", error)


def _one_a_thread(path: Path, function: str = "main") -> Callable[[], Program]:
    """A loaded program serves one thread: gives each its own, loaded at its first call."""
    own = threading.local()

    def load() -> Program:
        if not hasattr(own, "program"):
            own.program = Program(path, function=function)
        return own.program

    return load


def full_batch(images: np.ndarray, size: int) -> np.ndarray:
    """Pad the last batch by repeating its first image."""
    if len(images) == size:
        return images
    return np.concatenate([images, np.repeat(images[:1], size - len(images), axis=0)])
