"""The allocation: one choice of bit widths for each layer, the least sum of scores under a budget, certified optimal.

    minimise  sum over layers l and choices c of score[l, c] * x[l, c]
    under     sum over c of x[l, c] = 1 for every l          x is 0 or 1
              sum of cost[l, c] * x[l, c] <= budget
              layers that read one tensor agree on the width of that activation

solved by SciPy's HiGHS as a mixed-integer linear program: tens of layers and ten choices take milliseconds. Optimal
means: to a millionth of the largest score, which is HiGHS's absolute gap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mlir_passes.network import Network
from quantune.allocation.base import Scores
from quantune.errors import QuantuneError, UsageError
from quantune.quantization.bits import BitWidths, LayerBits

Costs = Mapping[str, Mapping[LayerBits, float]]
"""Layer -> choice -> what it costs: bytes of packed weights, milliseconds, …"""


@dataclass(frozen=True)
class Budget:
    """An upper bound for the sum of costs. name: what is limited, for messages; unit: behind numbers."""

    costs: Costs
    limit: float
    name: str = "size"
    unit: str = "bytes"


@dataclass(frozen=True)
class Allocation:
    """An optimal choice. score: the sum of scores. costs: the sum of costs by budget's name."""

    bits: BitWidths
    score: float
    costs: Mapping[str, float]


def weight_bytes(network: Network, choices: Iterable[LayerBits]) -> Costs:
    """The bytes of each layer's packed weights: ceil(weights * bits / 8)."""
    choices = tuple(choices)
    sizes = {node.name: 0 if node.weight is None else node.weight.size for node in network.layers}
    return {name: {choice: -(-size * choice.weights // 8) for choice in choices} for name, size in sizes.items()}


def allocate(scores: Scores, budgets: Sequence[Budget], agree: Iterable[Sequence[str]] = ()) -> Allocation:
    """The allocation of least score within all budgets.

    agree: groups of layers that must have one width of activations, because they read the same tensor. Raises
    UsageError, with the least that is possible, when a budget cannot be kept, and ValueError for costs that lack a
    choice.
    """
    columns = [(layer, choice) for layer, choices in scores.items() for choice in choices]
    one_each = _rows([[float(layer == name) for layer, _ in columns] for name in scores])
    constraints = [LinearConstraint(one_each, 1, 1)]
    same = _agreement(columns, agree)
    if same:
        constraints.append(LinearConstraint(_rows(same), 0, 0))
    prices = {budget.name: np.array([_price(budget, *column) for column in columns]) for budget in budgets}
    for budget in budgets:
        least = _solve(prices[budget.name], constraints)
        if least is None or float(prices[budget.name] @ least) > budget.limit:
            smallest = "none" if least is None else f"{float(prices[budget.name] @ least):,.10g} {budget.unit}"
            raise UsageError(
                f"{budget.name} budget of {budget.limit:,.10g} {budget.unit}: the smallest possible is {smallest}"
            )
    for budget in budgets:
        constraints.append(LinearConstraint(_rows([prices[budget.name]]), -np.inf, budget.limit))
    values = np.array([scores[layer][choice] for layer, choice in columns])
    chosen = _solve(values, constraints)
    if chosen is None:
        limits = ", ".join(f"{budget.name} {budget.limit:,.10g} {budget.unit}" for budget in budgets)
        raise UsageError(f"no allocation keeps all budgets at once: {limits}")
    bits = BitWidths.of_layers(column for column, taken in zip(columns, chosen, strict=True) if taken)
    costs = {name: float(price @ chosen) for name, price in prices.items()}
    return Allocation(bits, float(values @ chosen), costs)


def _solve(values: np.ndarray, constraints: Sequence[LinearConstraint]) -> np.ndarray | None:
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


def _agreement(columns: Sequence[tuple[str, LayerBits]], agree: Iterable[Sequence[str]]) -> list[list[float]]:
    """Rows that are 0 when neighbours in a group have the same width of activations."""
    widths = sorted({choice.activations for _, choice in columns})[1:]
    return [
        [float((layer == a) - (layer == b)) * (choice.activations == width) for layer, choice in columns]
        for group in agree
        for a, b in itertools.pairwise(group)
        for width in widths
    ]


def _rows(rows: Sequence[Sequence[float]] | Sequence[np.ndarray]) -> csr_array:
    return csr_array(np.atleast_2d(np.asarray(rows, np.float64)))


def _price(budget: Budget, layer: str, choice: LayerBits) -> float:
    try:
        return float(budget.costs[layer][choice])
    except KeyError as error:
        raise ValueError(f"the {budget.name} costs have no entry for layer '{layer}' with {choice}") from error
