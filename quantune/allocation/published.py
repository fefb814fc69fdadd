"""OMPQ's allocation as its authors computed it, for comparing with the paper's bit lists.

Widths are real numbers between two bounds: SciPy's SLSQP, started at 8 bits, maximises sum b_i w_i under the size, and
the result is rounded: by a depth-first search over floor and ceil that comes nearest to the size of the real solution
from below, last layers first (the authors do so for ResNet18), or to the nearest integer, which may break the size.
Source: MAC-AutoML/OMPQ, mixed_bit/feature_extract.py and utils/pytorch_utils.py.

With w = 0 nothing is optimised: SLSQP projects "the widest everywhere" onto the size, so that bits fall in proportion
to a layer's parameters. All ten post-training lists that the authors publish come out of that, so no orthogonality is
in them (test/unit/test_published.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

FORMS: dict[str, tuple[int, int]] = {"ptq": (2, 4), "qat": (4, 8)}
"""Form -> the least and the largest width: ptq for all layers, qat for all but the first and the last."""

MEGABYTE = 1 << 20


def published(
    worth: Sequence[float] | NDArray[np.float64],
    parameters: Sequence[int],
    megabytes: float,
    form: str = "ptq",
    *,
    nearest: bool = False,
) -> list[int]:
    """The authors' bits for layers of a worth per bit and a number of parameters, in so many times 2**20 bytes.

    nearest: round to integers instead of searching. Raises ValueError where SLSQP or the search finds nothing.
    """
    low, high = FORMS[form]
    sizes, value = np.asarray(parameters, np.float64) / MEGABYTE, np.asarray(worth, np.float64)
    found = optimize.minimize(
        lambda x: -float(value @ x),
        x0=np.ones(len(sizes)),
        jac=lambda x: -value,
        method="SLSQP",
        bounds=[(low / 8, high / 8)] * len(sizes),
        constraints=({"type": "ineq", "fun": lambda x: np.array([megabytes - sizes @ x])},),
    )
    if not found.success:
        raise ValueError(f"no allocation of {megabytes} MB: {found.message}")
    bits = found.x * 8
    return [int(each) for each in np.around(bits)] if nearest else _searched(bits[::-1], sizes[::-1])[::-1]


def _searched(bits: NDArray[np.float64], sizes: NDArray[np.float64]) -> list[int]:
    """Of all floors and ceils the one whose size is nearest to that of the bits, and not above it."""
    limit = sum(bit * size for bit, size in zip(bits, sizes, strict=True))
    chosen: list[int] = []
    best: tuple[float, list[int]] = limit, []

    def visit(index: int, spent: float) -> None:
        nonlocal best
        for width in (math.ceil(bits[index]), math.floor(bits[index])):
            total = spent + width * sizes[index]
            if total > limit:
                continue
            chosen.append(width)
            if index + 1 < len(bits):
                visit(index + 1, total)
            elif abs(total - limit) < best[0]:
                best = abs(total - limit), [*chosen]
            chosen.pop()

    visit(0, 0.0)
    if not best[1]:
        raise ValueError("no rounding keeps the size")
    return best[1]
