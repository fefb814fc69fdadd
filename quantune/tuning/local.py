"""Which layers stay in float, from two passes over calibration images: no search, no labels, no evaluation.

After QuantuneV2 (local metrics, two inferences). One pass of the f32 network and one of the quantized one give, behind
every unit (a layer with the addition and the clamp that take its result over), the noise relative to the signal:

    n = sum (y - y')² / sum y²        SQNR = -10 log10 n

    n_in  of what a unit reads: the tensor of the most noise       n_out of what it gives
    loss  SQNR_in - SQNR_out, in dB          own  max(n_out - n_in, 0): the noise that the unit itself adds

Units are ranked by their loss. Leaving the first k of them in f32 is predicted to leave the network's result with the
noise n_result · (sum of own of all others) / (sum of own of all). k is the least whose predicted SQNR reaches the
target; where the latency may grow by so much only, the program of k layers is timed beside the one of none, casts
included, and the largest smaller k that keeps the bound is looked for by bisection.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlir_passes.network import Network, Node
from quantune.allocation.walk import smallest
from quantune.errors import UsageError
from quantune.numerics.affine import dequantize
from quantune.numerics.ops import Tensor
from quantune.numerics.simulate import full_batch
from quantune.process import scratch
from quantune.quantization.bits import F32, BitWidths
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan
from quantune.refine import twin
from quantune.refine.base import Images
from quantune.runtime.engines import LocalTimer
from quantune.runtime.measure import Effort
from quantune.tuning.builder import Builder

IMAGES = 64
TARGET_DB = 30.0
"""The SQNR of the network's result that is wanted."""

_LEAST = 1e-30
_EFFORT = Effort(repetitions=7, min_seconds=0.5, warmup_seconds=0.1)


@dataclass(frozen=True)
class LocalChoice:
    """What is asked of the choice. target: dB of the result; most: the factor that it may be slower, None: any.

    Raises UsageError for what is no number of decibels, or a factor below 1.
    """

    target: float = TARGET_DB
    most: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target <= 200:
            raise UsageError(f"target of {self.target:g} dB: expected a number of decibels above 0, such as 30")
        if self.most is not None and not 1 <= self.most < math.inf:
            raise UsageError(f"largest slowdown {self.most:g}: expected a factor of 1 or more, such as 1.1")

    def configuration(self, builder: Builder, base: QuantConfig) -> tuple[QuantConfig, str]:
        """The base with the layers in f32 that the target needs, and what is to be told of that."""
        plan = builder.plan(base)
        if plan is None:
            raise UsageError(f"local: {base}: nothing is quantized; expected an integer configuration")
        found = measure(builder.calibration, plan)
        wanted = count = found.wanted(self.target)
        if self.most is not None:
            count = affordable(found, wanted, lambda n: slowdown(builder, base, found, n), self.most)
        text = (
            f"{count} of {len(found.units)} layers stay in f32: predicted {found.predicted(count):.1f} dB instead of "
            f"{found.predicted(0):.1f}"
        )
        if found.predicted(wanted) < self.target:
            text += f"; no number of them is predicted to reach {self.target:g} dB"
        elif count < wanted:
            text += f"; {self.target:g} dB would take {wanted}, which is slower than {self.most:g} times"
        return replace(base, bits=found.bits(count, base.bits)), text


@dataclass(frozen=True)
class Unit:
    """A layer and what it does to the noise. loss: in dB; own: relative to the signal behind it."""

    layer: str
    loss: float
    own: float


@dataclass(frozen=True)
class Local:
    """Units, the worst first, and the noise of the network's result relative to its signal."""

    units: tuple[Unit, ...]
    noise: float

    def predicted(self, count: int) -> float:
        """The SQNR in dB of the network's result when the first ``count`` units stay in f32."""
        total = sum(unit.own for unit in self.units)
        left = sum(unit.own for unit in self.units[count:])
        return decibel(self.noise * left / total if total else self.noise)

    def wanted(self, target: float) -> int:
        """How many units have to stay in f32, at least, for a predicted SQNR; all but one where nothing reaches it."""
        reaching = (count for count in range(len(self.units)) if self.predicted(count) >= target)
        return next(reaching, len(self.units) - 1)

    def bits(self, count: int, base: BitWidths) -> BitWidths:
        """The bit widths with the first ``count`` units in f32."""
        kept = {unit.layer for unit in self.units[:count]}
        others = [(name, choice) for name, choice in base.layers if name not in kept]
        return BitWidths(base.default, (*others, *((name, F32) for name in kept)))


def measure(subject: Images, plan: QuantizationPlan, count: int = IMAGES) -> Local:
    """Look at both networks' tensors on the first ``count`` images. UsageError where the result cannot be simulated."""
    network = subject.network
    noise = dict(_noises(subject, plan, len(subject.images(count))))
    result = network.outputs[0]
    if result not in noise:
        raise UsageError("local: an operation of the network cannot be simulated; search instead (--mode search)")
    units = []
    for node in network.layers:
        given = _behind(network, node, noise)
        if node.name in plan.weights and given is not None:
            before = max((noise[name] for name in node.inputs if name in noise), default=0.0)
            after = noise[given]
            units.append(Unit(node.name, decibel(before) - decibel(after), max(after - before, 0.0)))
    return Local(tuple(sorted(units, key=lambda unit: (-unit.loss, unit.layer))), noise[result])


def affordable(local: Local, wanted: int, slowdown: Callable[[int], float], most: float) -> int:
    """The largest number of f32 units, up to the wanted, that slows the program down by a factor of at most ``most``.

    slowdown: measures the factor for a number of units.
    """
    if wanted == 0:
        return 0
    found = smallest(wanted + 1, lambda count: -slowdown(count) if count else -1.0, -max(most, 1.0))
    return found.best or 0


def slowdown(builder: Builder, base: QuantConfig, local: Local, count: int) -> float:
    """How many times longer the program takes with so many units in f32, timed beside the one with none."""
    size, target = builder.model.input_shape[0], builder.target
    timer = LocalTimer(
        device=target.device(), memory_limit=builder.programs.memory_limit if target.on_processor else None
    )
    with scratch.folder("local") as folder, contextlib.closing(timer):
        images = folder / "images.npy"
        np.save(images, full_batch(builder.calibration.images(size), size))
        programs = []
        for number in (0, count):
            built = builder.build(replace(base, bits=local.bits(number, base.bits)))
            numbers = folder / f"{number}.npz"
            np.savez(numbers, **(built.numbers or {}))  # type: ignore[arg-type]
            programs.append((built.program.path, numbers))
        before, after = (samples.quartiles[1] for samples in timer.time(programs, images, _EFFORT))
    return after / before


def decibel(noise: float) -> float:
    """The SQNR of a relative noise; 300 where there is none."""
    return -10 * math.log10(max(noise, _LEAST))


def _behind(network: Network, node: Node, noise: Mapping[str, float]) -> str | None:
    """The tensor that a unit gives: behind the addition and the clamp that alone read the layer."""
    tensor = node
    readers = network.consumers[node.name]
    if len(readers) == 1 and readers[0].kind == "add":
        tensor = readers[0]
    found = (network.fused_clamp(tensor) or tensor).name
    return next((name for name in (found, tensor.name, node.name) if name in noise), None)


def _noises(subject: Images, plan: QuantizationPlan, count: int) -> Iterator[tuple[str, float]]:
    """Every tensor of the quantized network and its noise, in execution order."""
    exact = twin.run(subject, QuantizationPlan({}, {}), count, twin.own_bias)
    waiting: dict[str, Tensor] = {}
    for name, value in twin.run(subject, plan, count, twin.own_bias):
        while name not in waiting:
            found = next(exact, None)
            if found is None:
                break
            waiting[found[0]] = found[1]
        if name in waiting:
            y = waiting.pop(name)
            waiting.clear()  # both run in one order: what came before is computed together with its clamp
            params = plan.activations.get(name)
            real = value if params is None else dequantize(value, params)  # type: ignore[arg-type]
            signal = float(np.square(y, dtype=np.float64).sum())
            yield name, float(np.square(y - real, dtype=np.float64).sum()) / max(signal, _LEAST)
