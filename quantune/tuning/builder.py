"""From a model, its calibration images and a target: the program, the numbers and the artifact of any configuration.

A model is calibrated (`Calibration`: its f32 network's statistics), a configuration gets its numbers from that
(`Plans`), and the passes and the compiler make a program of both (`Programs`). Import, calibration and compilation each
happen once and are cached by content. A quantized configuration is a *program* (which depends on the precision and on
how it requantizes) and its *numbers*; a search compiles a few programs and loads many sets of numbers. The artifact
handed out has its numbers inside.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import TracebackType
from typing import Self

from quantune.artifact.provenance import Measured, Provenance, attach
from quantune.artifact.records import LayerExecution
from quantune.cache import ArtifactCache
from quantune.compiler import pipelines
from quantune.compiler.inspect import layer_executions, required_processor
from quantune.compiler.iree import CompiledModule
from quantune.compiler.pipelines import Debugging, Lowered
from quantune.compiler.targets import Target
from quantune.data.splits import Split
from quantune.data.text import printable
from quantune.frontend.imported import ImportedModel
from quantune.process import memory
from quantune.process.job import stop_all
from quantune.quantization import constants
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan
from quantune.quantization.space import CALIBRATION_SIZES
from quantune.runtime.artifact import Artifact
from quantune.tuning.calibrating import Calibration
from quantune.tuning.compiling import AHEAD, Built, Programs
from quantune.tuning.planning import Plans
from quantune.tuning.recent import Recent
from quantune.tuning.request import Origin
from quantune.versions import versions

logger = logging.getLogger(__name__)

_MOMENT_S = 0.05

_KEPT_BYTES = 1 << 29
"""Of numbers in memory: what is prepared in the background waits among them until it is asked for."""


class Builder:
    """Builds any configuration of one model for one target. Whoever prepares programs with it closes it.

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
        self.programs = Programs(
            target, self.cache, timeout_s=timeout_s, memory_limit=memory_limit, peaks=peaks, debugging=debugging
        )
        self.calibration = Calibration(model, calib, self.programs, sizes=sizes, on_image=on_calibration)
        self.plans = Plans(self.calibration, self.cache, on_refining)
        self._built: Recent[str, Built] = Recent(_KEPT_BYTES, lambda built: built.number_bytes)  # by identity
        self._ahead = ThreadPoolExecutor(AHEAD, "quantune-ahead")
        self._begun: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(stop=kind is not None)

    def prepare(self, configs: Iterable[QuantConfig] = (), *, calibration: bool = False) -> None:
        """Build in the background, in this order, what will be asked for: a failure is told there.

        Two are at work at a time, one in the passes while another is being compiled. calibration: the program that
        calibrates, before the configurations.
        """
        if calibration and self.calib is not None:
            self._begun.append(self._ahead.submit(_quietly, self.calibration.compile))
        self._begun += [self._ahead.submit(_quietly, self.build, config) for config in configs]

    def close(self, *, stop: bool = False) -> None:
        """Forget what `prepare` has not begun, and wait for what it has, or stop that too."""
        self._ahead.shutdown(wait=False, cancel_futures=True)
        at_work = [future for future in self._begun if not future.cancelled()]  # for those `wait` would wait for ever
        while stop and wait(at_work, timeout=_MOMENT_S).not_done:
            stop_all()  # again: what was in the passes may have come to its compilation since
        self._ahead.shutdown()
        self._begun = []
        self._ahead = ThreadPoolExecutor(AHEAD, "quantune-ahead")

    def plan(self, config: QuantConfig) -> QuantizationPlan | None:
        """The numbers of a configuration, what refines them included; None for a float one."""
        return self.plans.plan(config)

    def identity(self, config: QuantConfig) -> str:
        """A hash that is equal for configurations of one program and one set of numbers; nothing is built for it."""
        return self.plans.identity(config)

    def lower(self, config: QuantConfig, *, until: str = "vmfb", outline: bool = False) -> Lowered:
        """Run the passes up to a stage (linalg, qdq, integer, vmfb)."""
        return pipelines.lower(
            self.model.bytecode,
            None if until == "linalg" else self.plan(config),
            self.target,
            config.precision,
            until=until,
            outline=outline,
            debugging=self.programs.debugging,
        )

    def build(self, config: QuantConfig) -> Built:
        """Program and numbers of a configuration, as a search evaluates it."""
        return self._built.get(self.identity(config), lambda: self._build(config))

    def _build(self, config: QuantConfig) -> Built:
        start = time.monotonic()
        lowered = self.lower(config, outline=not config.is_float)
        passes = time.monotonic() - start
        program = self.programs.compile(lowered.module)
        seconds = {"passes": passes, "compile": 0.0 if program.cached else program.seconds}
        return Built(program, lowered.parameters, lowered.parameter_bytes, seconds)

    def artifact(self, config: QuantConfig, measured: Measured | None = None) -> Artifact:
        """The one-file artifact of a configuration: numbers inside, with provenance and what its layers run in.

        measured: what a search found out about it, for its record.
        """
        lowered = self.lower(config)
        program = self.programs.compile(lowered.module, explain=True)
        for layer, reason in lowered.reasons.items():
            logger.info("%s: %s", layer, reason)
        provenance = replace(self._provenance(config, lowered, program), measured=measured)
        return Artifact(attach(program.path.read_bytes(), provenance))

    def executed(self, program: CompiledModule) -> tuple[LayerExecution, ...]:
        """What each layer of a compiled program really runs in, read from the compiler's own dispatches."""
        return layer_executions(program.dispatches, layers={node.layer for node in self.model.network.layers} - {""})

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


def _quietly(work: Callable[..., object], *arguments: object) -> None:
    try:
        work(*arguments)
    except Exception as error:  # whoever asks for the result meets the failure again, and tells it
        logger.debug("in the background: %s", error)
