"""When the evaluation of a trial may stop: once it is nearly certain that all images would not change the verdict.

A trial is compared with a reference (the best so far, or f32) image by image. Of N images the reference answers R right
and W = N - R wrong. The trial can lose only among the R and win only among the W, so with B lost and C won in all it
ends B - C images behind. The images come in a random order, and so after n of them the b lost among the r seen of R and
the c won among the w seen of W are hypergeometric. The exact lower bound of B and the exact upper bound of C, each at
the error e, give

    stop when  B_low - C_high > allowed                  e = error / (2 * looks)

Bonferroni's inequality covers both bounds and all looks: a trial that keeps up with the reference is stopped with a
probability of at most ``error``, whatever its accuracy (Clopper and Pearson, "The use of confidence or fiducial limits
illustrated in the case of the binomial", Biometrika 1934, for draws without replacement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.search.scores import Objective, Score, unpack_correct

ERROR = 0.01
"""The probability of stopping a trial that would have kept up."""

LOOKS = (1 / 8, 1 / 4, 1 / 2)
"""The shares of the images after which a trial may stop."""

FEWEST = 64
"""No look comes before this many images."""


def looks(images: int) -> tuple[int, ...]:
    """The numbers of images after which a trial on ``images`` images may stop."""
    return tuple(count for share in LOOKS if (count := math.ceil(share * images)) >= FEWEST)


@dataclass(frozen=True, eq=False)
class Floor:
    """What a trial must reach: the reference's answers, bool[N] in the order of evaluation, less ``allowed`` images."""

    reference: NDArray[np.bool_]
    allowed: int = 0
    error: float = ERROR

    def __post_init__(self) -> None:
        if self.allowed < 0 or not 0 < self.error < 1:
            raise ValueError(f"allowed {self.allowed} and error {self.error}: expected 0 or more, and between 0 and 1")

    def stops(self, right: NDArray[np.bool_]) -> bool:
        """Whether a trial with these answers on the first images surely ends below the floor."""
        known = self.reference[: len(right)]
        times = max(1, len(looks(len(self.reference))))
        each = self.error / (2 * times)
        lost, won = int(np.sum(known & ~right)), int(np.sum(~known & right))
        rights, seen = int(self.reference.sum()), int(known.sum())
        wrongs, unseen = len(self.reference) - rights, len(right) - seen
        least_lost = fewest_marked(rights, seen, lost, each)
        most_won = wrongs - fewest_marked(wrongs, unseen, unseen - won, each)
        return least_lost - most_won > self.allowed

    def estimate(self, right: NDArray[np.bool_]) -> float:
        """The accuracy on all images, from the answers on the first ones: each share of the reference on its own."""
        known = self.reference[: len(right)]
        total = 0.0
        for group in (True, False):
            size, answers = int(np.sum(self.reference == group)), right[known == group]
            # A share of which nothing was seen is taken to be answered as by the reference.
            total += size * (float(answers.mean()) if len(answers) else float(group))
        return total / len(self.reference)


def fewest_marked(population: int, drawn: int, found: int, error: float) -> int:
    """The smallest number of marked items with which a draw finds ``found`` or more of them with probability > error.

    The exact lower confidence bound of the marked items in the population; it is too high with probability <= error.
    """
    low, high = found, population - (drawn - found)
    while low < high:
        middle = (low + high) // 2
        if _at_least(population, middle, drawn, found) > error:
            high = middle
        else:
            low = middle + 1
    return low


def _at_least(population: int, marked: int, drawn: int, found: int) -> float:
    """The probability that ``drawn`` items without replacement hold ``found`` or more of the marked ones."""
    k = np.arange(found, min(drawn, marked) + 1)
    if found <= max(0, drawn + marked - population):
        return 1.0
    fact = _log_factorials(population)
    ways = fact[marked] - fact[k] - fact[marked - k]
    rest, plain = drawn - k, population - marked
    possible = rest <= plain
    k, rest, ways = k[possible], rest[possible], ways[possible]
    ways = ways + fact[plain] - fact[rest] - fact[plain - rest]
    return float(np.exp(ways - (fact[population] - fact[drawn] - fact[population - drawn])).sum())


def _log_factorials(largest: int) -> NDArray[np.float64]:
    """log(n!) for n from 0 to ``largest``."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])


def floor_of(objective: Objective, best: Score | None, baseline: Score | None) -> Floor | None:
    """What a trial must reach to matter: the best so far, or the accuracy bound when something else is sought.

    best: of the trials so far. baseline: of f32. None while there is nothing to compare with, image by image.
    """
    reference, allowed = baseline, 0
    if objective.metric == "accuracy":
        reference = best
    elif reference is not None and objective.max_drop is not None:
        allowed = int(objective.allowed(reference) * reference.images + 1e-6)
    if reference is None or reference.correct is None:
        return None
    return Floor(unpack_correct(reference.correct, reference.images), allowed)
