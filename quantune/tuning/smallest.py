"""Which configurations a search begins with: those of the bit widths asked for, the smallest within a bound among them.

The walk to the smallest measures allocations in full, as trials do, and what it measured is handed to the search as its
first trials. Answers are kept in the cache by content, so a walk that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quantune.allocation.walk import DEFAULT, Walk, smallest
from quantune.quantization.bits import BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.quantization.predictions import Proxies
from quantune.tuning.bits_wanted import BitsWanted
from quantune.tuning.evaluator import Evaluator

NARROW = BitWidths(LayerBits(4))
"""At which the other settings of a walk are predicted to be best: where it is likely to end."""

_F32 = QuantConfig(precision="f32")


@dataclass(frozen=True)
class First:
    """What a search measures before its sampler is asked, best first, and what its report should say of that."""

    first: tuple[QuantConfig, ...]
    notes: tuple[str, ...] = ()


def first_configurations(
    wanted: BitsWanted,
    evaluator: Evaluator,
    proxies: Proxies,
    points: Sequence[QuantConfig],
    on_stage: Callable[[str], None] = lambda text: None,
) -> First:
    """The configurations of the bits that are wanted, other settings as predicted to be best among ``points``."""
    if wanted.smallest_within is None:
        base = proxies.best(points) if wanted.is_allocated else QuantConfig()
        bits = wanted.candidates(evaluator.builder, base)
        return First(tuple(replace(base, bits=each) for each in bits))
    narrow = proxies.best([replace(point, bits=NARROW) for point in points])
    return _walked(wanted, evaluator, replace(narrow, bits=BitWidths()), on_stage)


def _walked(wanted: BitsWanted, evaluator: Evaluator, base: QuantConfig, on_stage: Callable[[str], None]) -> First:
    assert wanted.smallest_within is not None
    way = wanted.way(evaluator.builder, base)
    evaluator.set_floor(None)
    exact = evaluator(_F32).accuracy
    seen: list[int] = []

    def measure(entry: int) -> float:
        seen.append(entry)
        on_stage(f"walking to the smallest within {wanted.smallest_within:g}: allocation {len(seen)}")
        return evaluator(replace(base, bits=way[entry])).accuracy

    # Accuracies are multiples of 1/images: the margin only absorbs rounding.
    walk = smallest(len(way), measure, exact - wanted.smallest_within - 1e-9, wanted.walk or DEFAULT)
    best = [] if walk.best is None else [walk.best]
    entries = dict.fromkeys([*best, *sorted(walk.values, reverse=True)])
    configs = dict.fromkeys(replace(base, bits=way[entry]) for entry in entries)
    return First(tuple(configs), (_told(wanted, walk, len(way), exact),))


def _told(wanted: BitsWanted, walk: Walk, count: int, exact: float) -> str:
    assert wanted.smallest_within is not None
    bound = f"{100 * exact:.2f} % - {100 * wanted.smallest_within:g} points"
    found = "none keeps" if walk.best is None else f"number {walk.best + 1} is the smallest that keeps"
    odd = f"; {walk.out_of_order} times a smaller one was better" if walk.out_of_order else ""
    return f"of {count} allocations, from wide to narrow, {len(walk.values)} were measured: {found} {bound}{odd}"
