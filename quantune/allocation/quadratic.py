"""A quadratic allocation: the least xᵀ G x among the allocations within budgets, with a bound that certifies it.

Integer Frank-Wolfe. With f(x) = xᵀ G x convex and x_k in the convex hull of all allocations,

    s_k = the allocation of least 2 G x_k · s       an ordinary allocation, solved exactly (quantune.allocation.solve)
    f(x) >= f(x_k) + 2 G x_k · (s_k - x_k)          for every allocation x: the bound
    x_{k+1} = x_k + t (s_k - x_k)                   t in [0, 1] of least f

Every s_k is an allocation; the best one is then improved by exchanging the choices of one layer or of two at once until
nothing helps. What is returned beside it is how far it may be from the best there is.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantune.allocation.base import Column

STEPS = 60
CLOSE = 1e-3
"""The bound is no longer raised once it is within this part of the best allocation."""

Array = NDArray[np.float64]


class Space(Protocol):
    """The allocations among which to choose."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """A layer and a choice for each entry of x."""
        ...

    def best(self, values: Array) -> Array:
        """The allocation of the least sum of values."""
        ...

    def keeps(self, taken: Array) -> bool:
        """Whether an allocation keeps the budgets."""
        ...


def minimise(matrix: Array, space: Space) -> tuple[Array, float, float]:
    """An allocation, what it costs, and by how much that exceeds the least possible at most.

    matrix: symmetric and positive semidefinite; else the bound holds for nothing.
    """
    x = space.best(np.diag(matrix))
    best, bound = x, -np.inf
    for _ in range(STEPS):
        gradient = 2 * matrix @ x
        vertex = space.best(gradient)
        best = min(best, vertex, key=lambda each: _cost(matrix, each))
        bound = max(bound, _cost(matrix, x) + float(gradient @ (vertex - x)))
        if _cost(matrix, best) - bound <= CLOSE * max(_cost(matrix, best), 0.0):
            break
        step = _step(matrix, x, vertex - x)
        if step <= 0:
            break
        x = x + step * (vertex - x)
    best = exchanged(matrix, space, best)
    cost = _cost(matrix, best)
    return best, cost, max(cost - bound, 0.0)


def exchanged(matrix: Array, space: Space, taken: Array) -> Array:
    """An allocation that no exchange of the choices of one layer, or of two, makes better within the budgets."""
    layers = [layer for layer, _ in space.columns]
    while True:
        current = {layers[k]: k for k in np.flatnonzero(taken)}
        moves = np.eye(len(layers)) - np.stack([np.eye(len(layers))[current[layer]] for layer in layers])
        products = moves @ matrix @ moves.T
        alone = 2 * moves @ (matrix @ taken) + np.diag(products)
        gains = alone[:, None] + alone[None, :] + 2 * products
        numbers = np.array([list(current).index(layer) for layer in layers])
        gains[numbers[:, None] == numbers[None, :]] = np.inf  # two moves of one layer
        np.fill_diagonal(gains, alone)
        found = _first_kept(space, taken, moves, gains, 1e-12 * max(_cost(matrix, taken), 1e-300))
        if found is None:
            return taken
        taken = found


def _first_kept(space: Space, taken: Array, moves: Array, gains: Array, least: float) -> Array | None:
    """The allocation of the best move or pair of moves that keeps the budgets; None where none gains."""
    upper = np.triu(gains)
    upper[np.tril_indices_from(upper, -1)] = np.inf
    order = np.argsort(upper, axis=None)
    for flat in order:
        i, j = divmod(int(flat), len(gains))
        if not upper[i, j] < -least:
            return None
        moved = taken + (moves[i] if i == j else moves[i] + moves[j])
        if space.keeps(moved):
            return moved
    return None


def positive(matrix: Array) -> Array:
    """The nearest positive semidefinite matrix: negative eigenvalues become 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    made = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return (made + made.T) / 2


def _cost(matrix: Array, x: Array) -> float:
    return float(x @ matrix @ x)


def _step(matrix: Array, x: Array, direction: Array) -> float:
    slope, curvature = float(2 * direction @ matrix @ x), _cost(matrix, direction)
    if curvature <= 0:
        return 1.0 if slope < 0 else 0.0
    return float(np.clip(-slope / (2 * curvature), 0.0, 1.0))
