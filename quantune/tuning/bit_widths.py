"""Bit widths for a model that is ready to be built: scored on its calibration images, allocated under a budget."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mlir_passes.network import Network
from quantune.allocation.base import Scorer, Scores, Tensors
from quantune.allocation.budgets import parse_size, scorer
from quantune.allocation.solve import Allocation, Budget, Costs, allocate, weight_bytes
from quantune.data.splits import batches
from quantune.errors import UsageError
from quantune.numerics.affine import QuantParams
from quantune.quantization.bits import WEIGHT_BITS, BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan, integer_layers, lay_out
from quantune.runtime.program import Program
from quantune.tuning.builder import Builder
from quantune.tuning.calibrating import full_batch
from quantune.tuning.compiling import Built

CHOICES = tuple(LayerBits(bits) for bits in WEIGHT_BITS)
"""What a layer may have where only its weights' size matters: activations of eight bits."""

DEFAULT_SCORER = "sqnr"


class Allocator:
    """Scores and allocates for one model; the scores of a scorer are computed once.

    choices: what each layer may have. config: the other settings under which the widths are compared, but for bias
    correction: a corrected bias depends on the widths of the layers before it, and here each layer is judged alone.
    """

    def __init__(
        self, builder: Builder, *, choices: Sequence[LayerBits] = CHOICES, config: QuantConfig | None = None
    ) -> None:
        self.builder, self.choices = builder, tuple(choices)
        self.config = replace(config or QuantConfig(), bias="none")
        self._scores: dict[Scorer, Scores] = {}

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

    def scores(self, by: Scorer) -> Scores:
        """The score of every choice of every layer, smaller is better."""
        if by not in self._scores:
            self._scores[by] = by(self)
        return self._scores[by]

    def allocate(self, by: Scorer, budgets: Sequence[Budget]) -> Allocation:
        """The best allocation within budgets; UsageError with the least possible when one cannot be kept."""
        readers: dict[str, list[str]] = {}
        layout = lay_out(self.network, integer_layers(self.network, "int8"))
        for node in self.network.layers:
            readers.setdefault(layout.groups[node.inputs[0]], []).append(node.name)
        return allocate(self.scores(by), budgets, readers.values())

    def within(self, size: int) -> list[BitWidths]:
        """The widest uniform bit width whose weights fit into a size, if any does."""
        fitting = [c for c in self.choices if c.activations == 8 and self.weight_bytes(BitWidths(c)) <= size]
        return [BitWidths(max(fitting))] if fitting else []

    # What scorers look at

    def weights(self, bits: int) -> Mapping[str, QuantParams]:
        """The quantization of the weights with so many bits everywhere."""
        return self._plan(LayerBits(bits)).weights

    def activations(self, bits: int) -> Mapping[str, QuantParams]:
        """The quantization of the activations with so many bits everywhere."""
        return self._plan(LayerBits(8, bits)).activations

    def observe(self, tensors: Sequence[str], images: int) -> Iterator[Tensors]:
        """Tensors of the f32 network on the first calibration images."""
        return self.builder.calibration.observe(tensors, images)

    def logits(self, widths: Sequence[BitWidths], images: int) -> Iterator[np.ndarray]:
        """The compiled programs' first results on the first calibration images: f32's, then those of the widths."""
        size, device = self.builder.model.input_shape[0], self.builder.target.device()
        shown = list(batches(self.builder.calibration.first(images), size))
        numbers = _Numbers(self.builder, self.config)

        def run(job: tuple[Built, dict[str, np.ndarray] | None]) -> np.ndarray:
            return _run(*job, device, shown, size)

        # Programs run outside of Python's lock: beside each other, and beside the passes that make the next numbers.
        workers = (os.cpu_count() or 1) if device == "local-sync" else 1
        with ThreadPoolExecutor(workers) as pool:
            yield run((self.builder.build(QuantConfig(precision="f32")), None))
            yield from pool.map(run, (numbers.of(bits) for bits in widths))

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


@dataclass(frozen=True)
class BitsWanted:
    """What a user asks of the bit widths; refused at once where it makes no sense.

    weight_bits: the same for all layers. size_budget: of the packed weights, such as 1.2MB, or 0.5x of eight bits;
    bytes as a number. scorer: which one allocates under a budget, by name; the default is SQNR's.
    """

    weight_bits: int | None = None
    size_budget: str | int | None = None
    scorer: str | None = None

    def __post_init__(self) -> None:
        if self.weight_bits is not None and self.size_budget is not None:
            raise UsageError("weight bits and a size budget exclude each other; give one of them")
        if self.scorer is not None and self.size_budget is None:
            raise UsageError(f"scorer '{self.scorer}' has nothing to allocate; give a size budget too")
        if self.weight_bits is not None:
            LayerBits(self.weight_bits)
        if self.size_budget is not None:
            parse_size(self.size_budget, 1)
            scorer(self.scorer or DEFAULT_SCORER)

    def candidates(self, builder: Builder, config: QuantConfig) -> list[BitWidths]:
        """The bit widths that a search is to try, best first.

        Under a budget: the allocation, and the widest uniform width that fits, to compare it with. config: the other
        settings under which layers are scored.
        """
        if self.weight_bits is not None:
            return [BitWidths(LayerBits(self.weight_bits))]
        if self.size_budget is None:
            return [BitWidths()]
        allocator = Allocator(builder, config=config)
        limit = parse_size(self.size_budget, allocator.eight_bits)
        by = scorer(self.scorer or DEFAULT_SCORER)
        allocated = allocator.allocate(by, [Budget(allocator.sizes, limit)])
        return list(dict.fromkeys([allocated.bits, *allocator.within(limit)]))


def _run(
    built: Built, numbers: dict[str, np.ndarray] | None, device: str, shown: Sequence[np.ndarray], size: int
) -> np.ndarray:
    program = Program(built.program.path, device=device, parameters=numbers)
    results = [program(full_batch(batch, size)) for batch in shown]
    first = [result[0] if isinstance(result, tuple) else result for result in results]
    return np.concatenate([result[: len(batch)] for result, batch in zip(first, shown, strict=True)])
