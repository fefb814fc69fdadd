"""The allocation: one choice of bit widths for each layer, the least sum of scores under a budget, certified optimal.

    minimise  sum over layers l and choices c of score[l, c] * x[l, c]
    under     sum over c of x[l, c] = 1 for every l          x is 0 or 1
              sum of cost[l, c] * x[l, c] <= budget
              layers that read one tensor agree on the width of that activation

solved by SciPy's HiGHS as a mixed-integer linear program: tens of layers and ten choices take milliseconds. Optimal
means: to a millionth of the largest score, which is HiGHS's absolute gap. With interactions the objective is quadratic
(quantune.allocation.quadratic), and how far it may be from the best is part of the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mlir_passes.network import Network
from quantune.allocation.base import Allocation, Budget, Column, Costs, Interactions, Problem, Scores
from quantune.allocation.quadratic import minimise
from quantune.errors import QuantuneError, UsageError
from quantune.quantization.bits import BitWidths, LayerBits

Taken = NDArray[np.float64]
"""One 0 or 1 a column."""


def weight_bytes(network: Network, choices: Iterable[LayerBits]) -> Costs:
    """The bytes of each layer's packed weights: ceil(weights * bits / 8)."""
    choices = tuple(choices)
    sizes = {node.name: 0 if node.weight is None else node.weight.size for node in network.layers}
    return {name: {choice: -(-size * choice.weights // 8) for choice in choices} for name, size in sizes.items()}


def optimal(problem: Problem) -> Allocation:
    """The allocation of least score within all budgets; with interactions, how far it may be from that (``gap``).

    Raises UsageError, with the least that is possible, when a budget cannot be kept, and ValueError for costs that lack
    a choice.
    """
    if isinstance(problem.scores, Interactions):
        feasible = Feasible(problem.scores.columns, problem)
        taken, score, gap = minimise(problem.scores.matrix, feasible)
        return feasible.allocation(taken, score, gap)
    feasible = Feasible.of(problem.scores, problem)
    values = feasible.values(problem.scores)
    taken = feasible.best(values)
    return feasible.allocation(taken, float(values @ taken), 0.0)


class Feasible:
    """The allocations within a problem's budgets: which columns may be taken together.

    Raises what `optimal` does.
    """

    def __init__(self, columns: Sequence[Column], problem: Problem) -> None:
        self.columns = tuple(columns)
        self.layers = tuple(dict.fromkeys(layer for layer, _ in columns))
        self.prices = {b.name: np.array([_price(b, *column) for column in columns]) for b in problem.budgets}
        self.budgets = tuple(problem.budgets)
        one_each = _rows([[float(layer == name) for layer, _ in columns] for name in self.layers])
        self._constraints = [LinearConstraint(one_each, 1, 1)]
        self._same = np.array(_agreement(columns, problem.agree))
        if len(self._same):
            self._constraints.append(LinearConstraint(_rows(self._same), 0, 0))
        for budget in self.budgets:
            prices = self.prices[budget.name]
            least = _solve(prices, self._constraints)
            if least is None or float(prices @ least) > budget.limit:
                smallest = "none" if least is None else f"{float(prices @ least):,.10g} {budget.unit}"
                raise UsageError(
                    f"{budget.name} budget of {budget.limit:,.10g} {budget.unit}: the smallest possible is {smallest}"
                )
        for budget in self.budgets:
            row = _rows([self.prices[budget.name]])
            self._constraints.append(LinearConstraint(row, -np.inf, budget.limit))

    @classmethod
    def of(cls, scores: Scores, problem: Problem) -> Feasible:
        """Of separable scores."""
        return cls([(layer, choice) for layer, choices in scores.items() for choice in choices], problem)

    def values(self, scores: Scores) -> Taken:
        """The scores of the columns."""
        return np.array([scores[layer][choice] for layer, choice in self.columns])

    def best(self, values: Taken) -> Taken:
        """What is to be taken for the least sum of values."""
        taken = _solve(values, self._constraints)
        if taken is None:
            limits = ", ".join(f"{budget.name} {budget.limit:,.10g} {budget.unit}" for budget in self.budgets)
            raise UsageError(f"no allocation keeps all budgets at once: {limits}")
        return taken

    def keeps(self, taken: Taken) -> bool:
        """Whether one column a layer is taken for granted, and the rest holds."""
        if len(self._same) and np.any(self._same @ taken):
            return False
        return all(float(self.prices[b.name] @ taken) <= b.limit for b in self.budgets)

    def taken(self, bits: BitWidths) -> Taken:
        """The columns of an allocation."""
        return np.array([float(bits.of(layer) == choice) for layer, choice in self.columns])

    def allocation(self, taken: Taken, score: float, gap: float | None) -> Allocation:
        """The allocation that takes these columns."""
        bits = BitWidths.of_layers(column for column, one in zip(self.columns, taken, strict=True) if one)
        return Allocation(bits, score, {name: float(price @ taken) for name, price in self.prices.items()}, gap)


def _solve(values: Taken, constraints: Sequence[LinearConstraint]) -> Taken | None:
    """The 0/1 vector of least sum, proven optimal; None when no vector keeps the constraints."""
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    result = milp(
        values / largest,
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if result.status == 2:
        return None
    if result.status != 0 or result.x is None:
        raise QuantuneError(f"the allocation could not be solved: {result.message}")
    return np.rint(result.x)


def _agreement(columns: Sequence[Column], agree: Iterable[Sequence[str]]) -> list[list[float]]:
    """Rows that are 0 when neighbours in a group have the same width of activations."""
    widths = sorted({choice.activations for _, choice in columns})[1:]
    return [
        [float((layer == a) - (layer == b)) * (choice.activations == width) for layer, choice in columns]
        for group in agree
        for a, b in itertools.pairwise(group)
        for width in widths
    ]


def _rows(rows: Sequence[Sequence[float]] | Sequence[np.ndarray] | NDArray[np.float64]) -> csr_array:
    return csr_array(np.atleast_2d(np.asarray(rows, np.float64)))


def _price(budget: Budget, layer: str, choice: LayerBits) -> float:
    try:
        return float(budget.costs[layer][choice])
    except KeyError as error:
        raise ValueError(f"the {budget.name} costs have no entry for layer '{layer}' with {choice}") from error
