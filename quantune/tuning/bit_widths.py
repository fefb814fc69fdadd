"""Bit widths for a model that is ready to be built: scored on its calibration images, allocated under a budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mlir_passes.network import Network
from quantune.allocation.base import (
    Allocation,
    Budget,
    Column,
    Costs,
    Interactions,
    Problem,
    Proposer,
    Scorer,
    Scores,
    Tensors,
)
from quantune.allocation.solve import optimal, weight_bytes
from quantune.data.splits import batches
from quantune.errors import UsageError
from quantune.numerics.affine import QuantParams, dequantize
from quantune.process import scratch
from quantune.quantization.bits import F32, WEIGHT_BITS, BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan, integer_layers, lay_out
from quantune.refine import twin
from quantune.runtime.engines import LocalRunner
from quantune.tuning.builder import Builder
from quantune.tuning.compiling import Built, beside

CHOICES = tuple(LayerBits(bits) for bits in WEIGHT_BITS)
"""What a layer may have where only its weights' size matters: activations of eight bits."""


class Allocator:
    """Scores and allocates for one model; the scores of a scorer are computed once.

    choices: what each layer may have. config: the other settings under which the widths are compared, but for
    refinement: a corrected bias depends on the widths of the layers before it, and here each layer is judged alone.
    """

    def __init__(
        self, builder: Builder, *, choices: Sequence[LayerBits] = CHOICES, config: QuantConfig | None = None
    ) -> None:
        self.builder, self.choices = builder, tuple(choices)
        self.config = (config or QuantConfig()).unrefined
        self._scores: dict[Scorer, Scores | Interactions] = {}

    @property
    def network(self) -> Network:
        """The model's network."""
        return self.builder.model.network

    @cached_property
    def sizes(self) -> Costs:
        """The bytes of each layer's packed weights, for every choice."""
        return weight_bytes(self.network, {*self.choices, LayerBits()})

    @property
    def eight_bits(self) -> int:
        """The bytes of all weights at eight bits."""
        return int(sum(of_layer[LayerBits()] for of_layer in self.sizes.values()))

    def weight_bytes(self, bits: BitWidths) -> int:
        """The bytes of all packed weights."""
        chosen = {node.name: bits.of(node.name) for node in self.network.layers}
        sizes = weight_bytes(self.network, set(chosen.values()))
        return int(sum(sizes[name][choice] for name, choice in chosen.items()))

    def scores(self, by: Scorer) -> Scores | Interactions:
        """The score of every choice of every layer, smaller is better."""
        if by not in self._scores:
            self._scores[by] = by(self)
        return self._scores[by]

    def problem(self, by: Scorer, budgets: Sequence[Budget]) -> Problem:
        """What a proposer is to solve."""
        readers: dict[str, list[str]] = {}
        layout = lay_out(self.network, integer_layers(self.network, "int8"))
        for node in self.network.layers:
            readers.setdefault(layout.groups[node.inputs[0]], []).append(node.name)
        return Problem(self.scores(by), budgets, tuple(map(tuple, readers.values())))

    def allocate(self, by: Scorer, budgets: Sequence[Budget], propose: Proposer = optimal) -> Allocation:
        """An allocation within budgets; UsageError with the least possible when one cannot be kept."""
        return propose(self.problem(by, budgets))

    def within(self, size: int) -> list[BitWidths]:
        """The widest uniform bit width whose weights fit into a size, if any does."""
        uniform = [c for c in self.choices if c.activations == 8 and not c.format]
        fitting = [c for c in uniform if self.weight_bytes(BitWidths(c)) <= size]
        return [BitWidths(max(fitting))] if fitting else []

    # What scorers look at

    def weights(self, bits: int, form: str = "") -> Mapping[str, QuantParams]:
        """The quantization of the weights with so many bits, of a format, everywhere."""
        return self._plan(LayerBits(bits, 8, form)).weights

    def activations(self, bits: int) -> Mapping[str, QuantParams]:
        """The quantization of the activations with so many bits everywhere."""
        return self._plan(LayerBits(8, bits)).activations

    def observe(self, tensors: Sequence[str], images: int) -> Iterator[Tensors]:
        """Tensors of the f32 network on the first calibration images."""
        return self.builder.calibration.observe(tensors, images)

    def logits(self, widths: Sequence[BitWidths], images: int) -> Iterator[np.ndarray]:
        """The compiled programs' first results on the first calibration images: f32's, then those of the widths."""
        builder = self.builder
        numbers, target = _Numbers(builder, self.config), builder.target
        shown = builder.calibration.first(images)
        # In processes of their own: programs that run beside each other in threads of one process share its device.
        runner = LocalRunner(
            device=target.device(),
            count=None if target.on_processor else 1,
            memory_limit=builder.programs.memory_limit if target.on_processor else None,
        )
        with contextlib.closing(runner), scratch.folder("scores") as folder:
            file = folder / "images.npy"
            np.save(file, next(batches(shown, len(shown))))
            yield runner.run(builder.build(QuantConfig(precision="f32")).program.path, None, file, 0, len(shown))
            for bits in widths:
                built, values = numbers.of(bits)
                with beside(values) as own:
                    yield runner.run(built.program.path, own, file, 0, len(shown))

    def alone(self, columns: Sequence[Column], images: int) -> Iterator[np.ndarray]:
        """The first result on the first calibration images of f32, and of it with one layer quantized by a choice.

        Simulated (quantune.refine.twin). Raises UsageError for a network that cannot be.
        """
        yield self._simulated(QuantizationPlan({}, {}), images)
        for layer, choice in columns:
            plan = self.builder.plans.scales(replace(self.config, bits=BitWidths(F32, ((layer, choice),))))
            assert plan is not None
            yield self._simulated(plan, images)

    def _simulated(self, plan: QuantizationPlan, images: int) -> np.ndarray:
        wanted, count = self.network.outputs[0], len(self.builder.calibration.first(images))
        for name, value in twin.run(self.builder.calibration, plan, count, twin.own_bias):
            if name == wanted:
                params = plan.activations.get(name)
                return value if params is None else dequantize(value, params)  # type: ignore[arg-type,return-value]
        raise UsageError("one layer alone: an operation of the network cannot be simulated; score by sqnr instead")

    def _plan(self, choice: LayerBits) -> QuantizationPlan:
        plan = self.builder.plans.scales(replace(self.config, bits=BitWidths(choice)))
        assert plan is not None
        return plan


@dataclass
class _Numbers:
    """Programs and their numbers. A layer's own numbers depend on its own weight's width and on no other's."""

    builder: Builder
    config: QuantConfig

    def __post_init__(self) -> None:
        self._uniform: dict[LayerBits, Built] = {}

    def of(self, bits: BitWidths) -> tuple[Built, dict[str, np.ndarray]]:
        """The program of bit widths and the numbers to load beside it."""
        if any(choice.activations != bits.default.activations for _, choice in bits.layers):
            built = self.builder.build(replace(self.config, bits=bits))
            return built, built.numbers or {}
        base = self._build(bits.default)
        numbers = dict(base.numbers or {})
        for name, choice in bits.layers:
            other = self._build(choice).numbers or {}
            numbers.update({key: array for key, array in other.items() if key.rpartition(".")[0] == name})
        return base, numbers

    def _build(self, choice: LayerBits) -> Built:
        if choice not in self._uniform:
            self._uniform[choice] = self.builder.build(replace(self.config, bits=BitWidths(choice)))
        return self._uniform[choice]
