"""The smallest allocation on a list whose metric is still good, with few measurements.

The list goes from wide to narrow, and its metric is taken to fall along it. How the first bad entry is found:

    bisection      the middle of the last good and the first bad entry
    interpolation  left + (right - left) (t - v_left) / (v_right - v_left), clipped to lie between them; t the target
    brute-force    one after the other, to the first bad one

as AIMET's second phase has them. The narrowest entry is measured first: if it is good, it is the answer; then the
widest: if it is bad, nothing is good enough. Where the metric is not monotone an answer is good all the same, since it
was measured, but a smaller good one may exist: ``out_of_order`` counts what contradicts the assumption.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantune.errors import UsageError, hint

Split = Callable[[int, int, float, float, float], int]
"""(left, right, value at left, value at right, target) -> an entry between them."""


@dataclass(frozen=True)
class Walk:
    """What was measured. best: the last good entry, None where the first is bad already. values: by entry."""

    best: int | None
    values: Mapping[int, float]

    @property
    def out_of_order(self) -> int:
        """How many neighbours among the measured entries have a metric that grows along the list."""
        measured = [value for _, value in sorted(self.values.items())]
        return sum(after > before for before, after in itertools.pairwise(measured))


def smallest(count: int, measure: Callable[[int], float], target: float, how: str = "bisection") -> Walk:
    """Find the last of ``count`` entries whose metric is at least ``target``; measures each entry once at most."""
    split = SPLITS[check(how)]
    values: dict[int, float] = {}

    def value(entry: int) -> float:
        if entry not in values:
            values[entry] = measure(entry)
        return values[entry]

    if value(count - 1) >= target:
        return Walk(count - 1, values)
    if value(0) < target:
        return Walk(None, values)
    left, right = 0, count - 1
    while right - left > 1:
        middle = split(left, right, value(left), value(right), target)
        if value(middle) >= target:
            left = middle
        else:
            right = middle
    return Walk(left, values)


def _bisection(left: int, right: int, at_left: float, at_right: float, target: float) -> int:
    return (left + right) // 2


def _interpolation(left: int, right: int, at_left: float, at_right: float, target: float) -> int:
    middle = left + (right - left) * (target - at_left) / (at_right - at_left)
    return min(max(round(middle), left + 1), right - 1)


def _brute_force(left: int, right: int, at_left: float, at_right: float, target: float) -> int:
    return left + 1


SPLITS: dict[str, Split] = {
    "bisection": _bisection,
    "interpolation": _interpolation,
    "brute-force": _brute_force,
}

DEFAULT = "bisection"


def check(name: str) -> str:
    """The name of a walk; raises UsageError for an unknown one."""
    if name not in SPLITS:
        raise UsageError(f"walk '{name}': expected one of {', '.join(SPLITS)}{hint(name, SPLITS)}")
    return name
