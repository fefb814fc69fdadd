"""What a method has to beat: bits by parameter count, the widest uniform width, a random allocation, a greedy one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantune.allocation.base import Allocation, Problem, Scores, Subject
from quantune.allocation.solve import Feasible
from quantune.errors import UsageError
from quantune.quantization.bits import BitWidths, LayerBits


@dataclass(frozen=True)
class Parameters:
    """A score that looks at nothing: (widest - bits)² for every layer.

    Its least sum under a size takes bits away in proportion to the number of a layer's weights: the projection of
    "the widest everywhere" onto the size, which is what OMPQ's published post-training lists are
    (quantune.allocation.published).
    """

    images: int = 0

    def __call__(self, subject: Subject) -> Scores:
        """The same row for every layer."""
        widest = max(subject.choices)
        row = {
            c: float(widest.weights - c.weights) ** 2 + (widest.activations - c.activations) for c in subject.choices
        }
        return {node.name: dict(row) for node in subject.network.layers}


def uniform(problem: Problem) -> Allocation:
    """The widest choice that all layers can have within the budgets; a layer that lacks it has its nearest."""
    feasible = Feasible.of(problem.separable, problem)
    choices = sorted({choice for _, choice in feasible.columns}, reverse=True)
    for choice in choices:
        bits = _each(problem.separable, {layer: choice for layer in feasible.layers})
        if feasible.keeps(feasible.taken(bits)):
            return _valued(problem, feasible, bits)
    raise UsageError(f"no uniform width keeps the {problem.budgets[0].name} budget")


def greedy(problem: Problem) -> Allocation:
    """From the widest everywhere, lower where a byte saved costs least, until the budgets are kept.

    [s(b-) - s(b)]₊ / saved by the first budget: the allocation of Houache et al. 2026, equation (17).
    """
    return walked(problem, descent(problem))


def descent(problem: Problem) -> list[BitWidths]:
    """Every allocation on greedy's way, the widest everywhere first."""
    scores, price = problem.separable, problem.budgets[0].costs
    order = {layer: sorted(row, reverse=True) for layer, row in scores.items()}
    at = dict.fromkeys(scores, 0)
    found = [BitWidths.of_layers((layer, order[layer][0]) for layer in scores)]
    while True:
        steps = []
        for layer, choices in order.items():
            if at[layer] + 1 < len(choices):
                wide, narrow = choices[at[layer]], choices[at[layer] + 1]
                saved = max(float(price[layer][wide] - price[layer][narrow]), 1e-12)
                steps.append((max(scores[layer][narrow] - scores[layer][wide], 0.0) / saved, layer))
        if not steps:
            return found
        at[min(steps)[1]] += 1
        found.append(BitWidths.of_layers((layer, order[layer][at[layer]]) for layer in scores))


def walked(problem: Problem, way: list[BitWidths]) -> Allocation:
    """The first allocation on a way that keeps the budgets."""
    feasible = Feasible.of(problem.separable, problem)
    for bits in way:
        if feasible.keeps(feasible.taken(bits)):
            return _valued(problem, feasible, bits)
    raise UsageError(f"no allocation on the list keeps the {problem.budgets[0].name} budget")


@dataclass(frozen=True)
class Random:
    """An allocation drawn at random, whose first cost comes near its limit from below."""

    seed: int = 0

    def __call__(self, problem: Problem) -> Allocation:
        """Draw a width for each layer, then lower or raise layers in random order to the budget."""
        feasible = Feasible.of(problem.separable, problem)
        rng = np.random.default_rng(self.seed)
        order = {layer: sorted(row) for layer, row in problem.separable.items()}
        at = {layer: int(rng.integers(len(choices))) for layer, choices in order.items()}

        def bits() -> BitWidths:
            return BitWidths.of_layers((layer, choices[at[layer]]) for layer, choices in order.items())

        def keeps() -> bool:
            return feasible.keeps(feasible.taken(bits()))

        while not keeps():
            can = [layer for layer in order if at[layer] > 0]
            if not can:
                raise UsageError(f"no random allocation keeps the {problem.budgets[0].name} budget")
            at[can[int(rng.integers(len(can)))]] -= 1
        can = [layer for layer in order if at[layer] + 1 < len(order[layer])]
        while can:
            layer = can[int(rng.integers(len(can)))]
            at[layer] += 1
            if not keeps():
                at[layer] -= 1
                can.remove(layer)
            elif at[layer] + 1 == len(order[layer]):
                can.remove(layer)
        return _valued(problem, feasible, bits())


def _each(scores: Scores, wanted: Mapping[str, LayerBits]) -> BitWidths:
    chosen = [
        (layer, min(row, key=lambda c: (abs(c.weights - wanted[layer].weights), -c.activations)))
        for layer, row in scores.items()
    ]
    return BitWidths.of_layers(chosen)


def _valued(problem: Problem, feasible: Feasible, bits: BitWidths) -> Allocation:
    taken = feasible.taken(bits)
    return feasible.allocation(taken, float(feasible.values(problem.separable) @ taken), None)
