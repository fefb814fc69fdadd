"""What a user asks of the bit widths: a uniform width, a size budget, or the smallest that keeps an accuracy bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantune.allocation import table, walk
from quantune.allocation.amp import from_list, prefixes
from quantune.allocation.base import Budget, Problem, Proposer, Scorer
from quantune.allocation.controls import descent, greedy
from quantune.errors import UsageError
from quantune.quantization.bits import BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.tuning.bit_widths import CHOICES, Allocator
from quantune.tuning.builder import Builder

STEPS = 64
"""Sizes between the widest and the narrowest at which an allocation is made where a proposer has no list of its own."""


@dataclass(frozen=True)
class BitsWanted:
    """Refused at once where it makes no sense.

    weight_bits: the same for all layers. size_budget: of the packed weights, such as 1.2MB, or 0.5x of eight bits;
    bytes as a number. smallest_within: the largest loss of top-1 that the smallest artifact may have. score: what
    says how much a layer's bits matter, propose: what makes an allocation of that, both by name
    (quantune.allocation.table). walk: how the smallest is looked for (quantune.allocation.walk). formats: names of
    ``FORMATS``, with commas between them, that a layer may have beside the uniform widths.
    """

    weight_bits: int | None = None
    size_budget: str | int | None = None
    smallest_within: float | None = None
    score: str | None = None
    propose: str | None = None
    walk: str | None = None
    formats: str | None = None

    def __post_init__(self) -> None:
        asked = {"weight bits": self.weight_bits, "a size budget": self.size_budget,
                 "the smallest within a bound": self.smallest_within}  # fmt: skip
        given = [name for name, value in asked.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other; give one of them")
        for name, value in (("score", self.score), ("proposer", self.propose), ("formats", self.formats)):
            if value is not None and not self.is_allocated:
                raise UsageError(
                    f"{name} '{value}' has nothing to allocate; give a size budget or the smallest within a bound too"
                )
        if self.walk is not None and self.smallest_within is None:
            raise UsageError(f"walk '{self.walk}' belongs to the smallest within a bound; give that too")
        if self.weight_bits is not None:
            LayerBits(self.weight_bits)
        if self.size_budget is not None:
            table.parse_size(self.size_budget, 1)
        _ = self.scorer, self.proposer, self.choices
        walk.check(walk.DEFAULT if self.walk is None else self.walk)

    @property
    def is_allocated(self) -> bool:
        """Whether layers get bits of their own."""
        return self.size_budget is not None or self.smallest_within is not None

    @property
    def proposer(self) -> Proposer:
        """What makes the allocations."""
        return table.proposer(table.DEFAULT_PROPOSER if self.propose is None else self.propose)

    @property
    def scorer(self) -> Scorer:
        """What says how much a layer's bits matter."""
        return table.scorer(table.DEFAULT_SCORE if self.score is None else self.score)

    @property
    def choices(self) -> tuple[LayerBits, ...]:
        """What a layer may have."""
        named = (LayerBits.parse(name.strip()) for name in (self.formats or "").split(",") if self.formats)
        found = tuple(dict.fromkeys((*CHOICES, *named)))
        for choice in found:
            if choice.is_float or choice.activations < 8:
                raise UsageError(f"formats '{self.formats}': '{choice}' is none of a weight; expected such as w2h,w3k")
        return found

    def allocator(self, builder: Builder, config: QuantConfig) -> Allocator:
        """What scores and allocates. config: the other settings under which layers are scored."""
        return Allocator(builder, choices=self.choices, config=config)

    def candidates(self, builder: Builder, config: QuantConfig) -> list[BitWidths]:
        """The bit widths that a search is to try, best first.

        Under a budget: the allocation, and the widest uniform width that fits, to compare it with. config: the other
        settings under which layers are scored.
        """
        if self.weight_bits is not None:
            return [BitWidths(LayerBits(self.weight_bits))]
        if self.size_budget is None:
            return [BitWidths()]
        allocator = self.allocator(builder, config)
        limit = table.parse_size(self.size_budget, allocator.eight_bits)
        allocated = allocator.allocate(self.scorer, [Budget(allocator.sizes, limit)], self.proposer)
        return list(dict.fromkeys([allocated.bits, *allocator.within(limit)]))

    def way(self, builder: Builder, config: QuantConfig) -> Sequence[BitWidths]:
        """The allocations from wide to narrow among which the smallest within a bound is looked for."""
        allocator = self.allocator(builder, config)
        problem = allocator.problem(self.scorer, [Budget(allocator.sizes, 0)])
        if self.proposer is from_list:
            return prefixes(problem)
        if self.proposer is greedy:
            return descent(problem)
        return BySize(self.proposer, problem)


class BySize(Sequence[BitWidths]):
    """Allocations of one proposer at falling sizes, each made when it is asked for."""

    def __init__(self, propose: Proposer, problem: Problem) -> None:
        (budget,) = problem.budgets
        self._propose, self._problem, self._budget = propose, problem, budget
        rows = [[budget.costs[layer][choice] for choice in row] for layer, row in problem.separable.items()]
        self._most, self._least = sum(map(max, rows)), sum(map(min, rows))
        self._made: dict[int, BitWidths] = {}

    def __len__(self) -> int:
        return STEPS + 1

    def __getitem__(self, index: int) -> BitWidths:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._made:
            limit = self._least + (self._most - self._least) * (STEPS - index) / STEPS
            budget = Budget(self._budget.costs, limit, self._budget.name, self._budget.unit)
            self._made[index] = self._propose(Problem(self._problem.scores, [budget], self._problem.agree)).bits
        return self._made[index]
