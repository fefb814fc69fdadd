"""Where to cut an activation's range: fewer values saturate, or finer steps for the rest.

The rules kl and mse choose a threshold T among fractions of the largest magnitude and cut the range to
[max(min, -T), min(max, T)], which fits symmetric, asymmetric and one-sided values alike; the steps are those that
the scheme makes of that range. Every rule reads the histogram alone, is deterministic, and scales with
the values under powers of two. Exact zeros cost nothing under any range; only percentile and aciq count them.

kl: entropy calibration. S. Migacz, "8-bit inference with TensorRT", GTC 2017; the variants in Apache MXNet, Glow and
ONNX Runtime differ in how they treat empty bins and two-sided ranges, see ``_divergence``.
mse: least expected square error: step**2 / 12 for each value inside, the distance to the border for each one outside.
percentile: the smallest range that holds 99.99 % of the values (two-sided ranges lose half of the rest on each side).
aciq: R. Banner, Y. Nahshan, D. Soudry, "Post training 4-bit quantization of convolutional networks for
rapid-deployment", NeurIPS 2019: the optimum in closed form for a Laplace or a normal distribution (the likelier).

``CLIPS`` is the table that configurations, the search space, plans and the ranking of trials ask. A new rule is a call
of ``register``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlir_passes.vocabulary import Vocabulary
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import Scheme

PERCENTILE = 99.99

FEWEST_VALUES = 1024
"""Below this many values other than 0 a histogram says too little about the distribution: kl then keeps the range."""

_STEPS_PER_OCTAVE = 32
_OCTAVES = 6
_VALUES_PER_BIN = 4


@dataclass(frozen=True)
class ClipRule:
    """A way to cut a range.

    name: in configurations. about: what is kept, for documents. choose: (histogram, scheme, bits) -> (lo, hi), of a
    histogram that holds more than zeros. simplicity: of two measurements that are equal the smaller wins. searched:
    whether studies try it.
    """

    name: str
    about: str
    choose: Callable[[Histogram, Scheme, int], tuple[float, float]]
    simplicity: int = 100
    searched: bool = False

    def range(self, histogram: Histogram, scheme: Scheme, bits: int = 8) -> tuple[float, float]:
        """The range to quantize, (lo, hi), inside [min, max] of the values widened to 0; ``scheme`` makes its scale.

        Raises ValueError for an empty histogram.
        """
        if histogram.count == 0:
            raise ValueError("an empty histogram has no range")
        whole = _whole(histogram)
        if whole == (0.0, 0.0):
            return whole
        lo, hi = self.choose(histogram, scheme, bits)
        return min(max(lo, whole[0]), 0.0), max(min(hi, whole[1]), 0.0)


CLIPS: Vocabulary[ClipRule] = Vocabulary("clip rule")
"""By the name in configurations."""

register = CLIPS.register


def _whole(h: Histogram) -> tuple[float, float]:
    return min(h.minimum, 0.0), max(h.maximum, 0.0)


def _max(h: Histogram, scheme: Scheme, bits: int) -> tuple[float, float]:
    return _whole(h)


def _kl(h: Histogram, scheme: Scheme, bits: int) -> tuple[float, float]:
    whole = _whole(h)
    if h.count - h.zeros < FEWEST_VALUES:
        return whole
    counts, centers, width = _coarsen(h, 2 << bits)
    before = np.concatenate([[0.0], np.cumsum(counts)])  # whole numbers: exact in any order
    best, cost = whole, math.inf
    for lo, hi in _windows(h, scheme, bits):
        scale = float(scheme.scale(lo, hi, bits))
        # Less than a bin to a level: the histogram cannot see the steps, nor those of narrower ranges.
        if scale < width:
            break
        first, end = int(np.searchsorted(centers, lo)), int(np.searchsorted(centers, hi, "right"))
        level = np.rint(centers[first:end] / scale).astype(np.int64)
        found = _divergence(counts[first:end], before[first], before[-1] - before[end], level)
        if found < cost:
            best, cost = (lo, hi), found
    return best


def _divergence(kept: NDArray[np.float64], below: float, above: float, level: NDArray[np.int64]) -> float:
    """Kullback-Leibler divergence between the cut distribution and the same after quantization.

    The reference has the values outside, ``below`` and ``above``, added to its border bins. The candidate has not, and
    spreads what falls on a level evenly over that level's bins that the reference occupies; a bin with none gets half a
    count instead of 0.
    """
    reference = kept.copy()
    reference[0] += below
    reference[-1] += above
    occupied = reference > 0
    level = level - level[0]
    share = np.bincount(level, weights=kept) / np.maximum(np.bincount(level, weights=occupied), 1)
    candidate = np.maximum(share[level[occupied]], 0.5)
    reference = reference[occupied]
    total = reference.sum()
    return float((reference * np.log(reference / candidate)).sum() / total - math.log(total / candidate.sum()))


def _mse(h: Histogram, scheme: Scheme, bits: int) -> tuple[float, float]:
    counts, centers = h.counts.astype(np.float64), h.centers
    best, cost = (h.minimum, h.maximum), math.inf
    for lo, hi in _windows(h, scheme, bits):
        step = float(scheme.scale(lo, hi, bits))
        beyond = np.maximum(lo - centers, centers - hi)
        outside = beyond > 0
        rounding = step * step / 12 * (counts.sum() - counts[outside].sum())
        found = rounding + float((counts[outside] * beyond[outside] ** 2).sum())
        if found < cost:
            best, cost = (lo, hi), found
    return best


def _percentile(h: Histogram, scheme: Scheme, bits: int) -> tuple[float, float]:
    counts = h.counts.copy()
    counts[np.searchsorted(h.edges, 0.0)] += h.zeros
    drop = h.count * (100 - PERCENTILE) / 100
    if h.minimum >= 0 or h.maximum <= 0:
        sides = (drop, drop)
    elif scheme.both_ends:
        sides = (drop / 2, drop / 2)
    else:
        magnitude = np.maximum(np.abs(h.edges[:-1]), np.abs(h.edges[1:]))
        order = np.argsort(-magnitude, kind="stable")
        last = int(np.argmax(np.cumsum(counts[order]) > drop))
        top = float(magnitude[order[last]])
        return -top, top
    below = int(np.argmax(np.cumsum(counts) > sides[0]))
    above = len(counts) - int(np.argmax(np.cumsum(counts[::-1]) > sides[1]))
    return float(h.edges[below]), float(h.edges[above])


def _aciq(h: Histogram, scheme: Scheme, bits: int) -> tuple[float, float]:
    counts, centers = h.counts.astype(np.float64), h.centers
    one_sided = h.minimum >= 0 or h.maximum <= 0
    # Behind a ReLU the values are half of a distribution around 0; an unsigned type then has one bit to spare.
    total = counts.sum() if one_sided else counts.sum() + h.zeros
    mean = 0.0 if one_sided else float((counts * centers).sum() / total)
    unsigned = scheme.storage(min(h.minimum, 0.0), bits)[0] == 0
    effective = bits + 1 if one_sided and unsigned else bits
    distance = np.abs(centers - mean)
    zeros = 0 if one_sided else h.zeros
    spread = (float((counts * distance).sum()) + zeros * abs(mean)) / total
    deviation = math.sqrt((float((counts * distance**2).sum()) + zeros * mean**2) / total)
    if spread == 0:
        return h.minimum, h.maximum
    laplace = -math.log(2 * spread) - 1
    normal = -math.log(deviation * math.sqrt(2 * math.pi)) - 0.5
    alpha = spread * _laplace_factor(effective) if laplace > normal else deviation * _normal_factor(effective)
    if scheme.both_ends:
        return mean - alpha, mean + alpha
    return -abs(mean) - alpha, abs(mean) + alpha


def _laplace_factor(bits: int) -> float:
    """alpha / b that minimizes 2 b**2 exp(-alpha / b) + alpha**2 / (3 * 4**bits): x exp(x) = 3 * 4**bits."""
    x = 3.0
    for _ in range(60):  # Newton on x + log(x)
        x -= (x + math.log(x) - math.log(3 * 4**bits)) / (1 + 1 / x)
    return x


def _normal_factor(bits: int) -> float:
    """alpha / sigma that minimizes 2 * integral_alpha^inf (x - alpha)**2 phi(x) dx + alpha**2 / (3 * 4**bits)."""
    low, high = 0.0, 10.0
    for _ in range(60):
        x = (low + high) / 2
        tail = math.exp(-x * x / 2) / math.sqrt(2 * math.pi) - x * math.erfc(x / math.sqrt(2)) / 2
        low, high = (x, high) if 2 * tail > x / (3 * 4**bits) else (low, x)
    return low


def _windows(h: Histogram, scheme: Scheme, bits: int) -> list[tuple[float, float]]:
    """Candidate ranges, widest first. Power of two scales have one candidate an octave: the largest range of each."""
    lo, hi = _whole(h)
    top = max(-lo, hi)
    if scheme.power2:
        largest = scheme.storage(lo, bits)[1]
        scale = float(scheme.scale(lo, hi, bits))
        tops = [top, *(math.ldexp(scale * largest, -k) for k in range(1, _OCTAVES + 1))]
    else:
        tops = [top * 2 ** (-k / _STEPS_PER_OCTAVE) for k in range(_OCTAVES * _STEPS_PER_OCTAVE + 1)]
    return [(max(lo, -t), min(hi, t)) for t in tops]


def _coarsen(h: Histogram, fewest_bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Counts, centers and width of the bins, merged by pairs while few values would leave them mostly noise."""
    counts, first, width = h.counts, round(h.edges[0] / h.width), h.width
    while counts.sum() < _VALUES_PER_BIN * len(counts) and len(counts) >= 2 * fewest_bins:
        counts = np.pad(counts, (first % 2, (first + len(counts)) % 2)).reshape(-1, 2).sum(axis=1)
        first, width = first // 2, width * 2
    return counts.astype(np.float64), (first + np.arange(len(counts)) + 0.5) * width, width


register(ClipRule("max", "all of it", _max, simplicity=0, searched=True))
register(ClipRule("kl", "up to where the cut distribution loses least information", _kl, simplicity=4, searched=True))
register(ClipRule("percentile", "all but 0.01 % of the values", _percentile, simplicity=1))
register(ClipRule("mse", "up to where the expected square error is least", _mse, simplicity=2))
register(ClipRule("aciq", "up to where it would be least for a Laplace or a normal distribution", _aciq, simplicity=3))
