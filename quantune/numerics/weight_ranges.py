"""Where to cut a weight's range: fewer weights saturate, or finer steps for the rest.

max keeps the largest weight exact. mse and power choose, for each scale of the weight, the one of the least

    sum_i p_i (w_i - s q_i(s))**2          q_i(s) = clamp(roundeven(w_i / s))

with p = 1 for mse; for power p is the mean square of the input channel that the weight meets, so that the sum is the
noise of the layer's output for inputs whose channels do not correlate. (BRECQ, Li et al., ICLR 2021, and CLADO choose
weight scales by mse; NVIDIA's and Intel's tools know the rule as well. The powers are this project's addition.)

The search walks down from the scale of max in steps of 1/16 to 1/512 of an octave, finer for rows of few weights (a
depthwise channel has nine, and may lie on a grid almost exactly). A row leaves it as soon as what its
saturated weights alone cost exceeds the best cost so far: that part only grows as the scale falls. The best candidate
is then refined: for its integers the least squares scale is ``sum p w q / sum p q**2``, which has other integers, and
so on. Powers of two have one candidate an octave. The result is compared with max in f64 and is never worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.affine import SMALLEST_SCALE, QuantParams
from quantune.numerics.schemes import Weights

RULES = ("max", "mse", "power")

_FEWEST_STEPS, _MOST_STEPS = 16, 512
_STEPS_OF_ALL = 1 << 14
"""Steps per octave times weights of a row: few weights have scales that suit them by chance."""
_OCTAVES = 4
_REFINEMENTS = 4


def importance(node: Node, power: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power of the input channels that each output channel of a layer reads: broadcasts to [outputs, inputs].

    power: of the channels of the tensor that the layer reads.
    """
    assert node.weight is not None
    outputs, reads = node.weight.shape[:2]
    if node.weight.ndim == 2 and len(power) != reads:  # a flattened image: a channel's power stands for its pixels
        power = np.repeat(power, reads // len(power))
    if node.groups == 1:
        return power[None, :]
    return np.repeat(power.reshape(node.groups, reads), outputs // node.groups, axis=0)


def fit_weight(
    w: NDArray[np.floating], granularity: str, how: Weights, bits: int, rule: str, power: NDArray[np.floating] | None
) -> QuantParams:
    """The parameters of a layer's weight [outputs, inputs, ...] by a rule of ``RULES``; see ``Weights.params``.

    power: for the rule power, what an error of a weight costs; broadcasts to [outputs, inputs]. Raises ValueError for
    an unknown rule and for powers that are missing, negative or not finite.
    """
    if rule not in RULES:
        raise ValueError(f"unknown weight clipping '{rule}', expected one of {', '.join(RULES)}")
    widest = how.params(w, granularity, bits)
    if rule == "max":
        return widest
    costs = np.ones(w.shape[:2]) if rule == "mse" else _checked(power, w)
    rows, weights = _rows(w, granularity), _rows(_spread(costs, w), granularity)
    scale = np.atleast_1d(widest.scale)
    # What costs nothing may saturate from the start.
    counted = how.params(np.where(weights > 0, rows, 0), "channel", bits).scale
    ratios = _search(np.where(weights > 0, rows, 0), weights, counted, widest.qmax, power2=how.power2)
    cut = np.maximum((counted * ratios).astype(np.float32), np.float32(SMALLEST_SCALE))
    worse = _costs(rows, weights, cut, widest.qmax) > _costs(rows, weights, scale, widest.qmax)
    chosen = np.where(worse, scale, cut).astype(np.float32).reshape(widest.scale.shape)
    return QuantParams(chosen, widest.zero_point, widest.qmin, widest.qmax, widest.axis)


def weight_error(w: NDArray[np.floating], params: QuantParams, power: NDArray[np.floating] | None = None) -> float:
    """What quantizing a weight costs: the sum of squared errors, each times its input channel's power where given."""
    error = w.astype(np.float64) - affine.quantize(w, params) * _per_output(params, w)
    costs = np.ones(w.shape[:2]) if power is None else np.broadcast_to(power, w.shape[:2])
    return float((error**2 * _spread(costs, w)).sum())


def _per_output(params: QuantParams, w: NDArray[np.floating]) -> NDArray[np.float64]:
    return affine.along(params.scale, w.ndim, params.axis).astype(np.float64)


def _checked(power: NDArray[np.floating] | None, w: NDArray[np.floating]) -> NDArray[np.float64]:
    if power is None:
        raise ValueError("the rule power needs the mean squares of the input channels")
    if not np.all(np.isfinite(power) & (power >= 0)):
        raise ValueError("the mean squares of the input channels are not all finite and 0 or more")
    largest = power.max(initial=0.0)
    scaled = power.astype(np.float64) / largest if largest > 0 else np.ones_like(power, np.float64)
    return np.broadcast_to(scaled, w.shape[:2])


def _spread(costs: NDArray[np.floating], w: NDArray[np.floating]) -> NDArray[np.float64]:
    """One number for each weight, of one for each output and input."""
    return np.broadcast_to(costs.reshape(*costs.shape, *[1] * (w.ndim - 2)), w.shape).astype(np.float64)


def _rows(values: NDArray[np.floating], granularity: str) -> NDArray[np.float64]:
    """One row for each scale."""
    return values.astype(np.float64).reshape(1 if granularity == "tensor" else len(values), -1)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weights in steps of their widest scale, within [-largest, largest], and what an error of each costs."""

    steps: NDArray[np.float32]
    costs: NDArray[np.float32]
    largest: int

    def only(self, which: NDArray[np.bool_]) -> _Rows:
        return self if which.all() else _Rows(self.steps[which], self.costs[which], self.largest)

    def integers(self, ratio: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.rint(self.steps / ratio[:, None])
        return np.clip(found, -self.largest, self.largest, out=found)

    def cost(self, ratio: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each row: in all, and of what saturates alone."""
        error = self.integers(ratio)
        error *= -ratio[:, None]
        error += self.steps
        beyond = np.abs(self.steps)
        beyond -= self.largest * ratio[:, None]
        np.maximum(beyond, 0, out=beyond)
        return self._sum(error), self._sum(beyond)

    def _sum(self, error: NDArray[np.float32]) -> NDArray[np.float64]:
        error *= error
        error *= self.costs
        return error.sum(axis=1, dtype=np.float64)

    def least_squares(self, ratio: NDArray[np.float32]) -> NDArray[np.float32]:
        """The best scale of the integers that a scale gives; the same one where all of them are 0."""
        q = self.integers(ratio)
        above = (self.steps * q * self.costs).sum(axis=1, dtype=np.float64)
        below = (q * q * self.costs).sum(axis=1, dtype=np.float64)
        return np.where(below > 0, above / np.where(below > 0, below, 1), ratio).astype(np.float32)


def _search(
    w: NDArray[np.float64], costs: NDArray[np.float64], scale: NDArray[np.float32], largest: int, *, power2: bool
) -> NDArray[np.float32]:
    """For each row the ratio to its widest scale that costs least."""
    rows = _Rows((w / scale[:, None]).astype(np.float32), costs.astype(np.float32), largest)
    best = np.ones(len(w), np.float32)
    cost, _ = rows.cost(best)
    alive, part = np.arange(len(w)), rows
    steps = 1 if power2 else _steps(w.shape[1], largest)
    for k in range(1, _OCTAVES * steps + 1):
        ratio = np.full(len(alive), 2.0 ** (-k / steps), np.float32)
        found, saturated = part.cost(ratio)
        better = found < cost[alive]
        best[alive[better]], cost[alive[better]] = ratio[better], found[better]
        open_still = saturated < cost[alive]
        alive, part = alive[open_still], part.only(open_still)
        if not len(alive):
            break
    for _ in range(0 if power2 else _REFINEMENTS):
        ratio = rows.least_squares(best)
        found, _ = rows.cost(ratio)
        better = found < cost
        best, cost = np.where(better, ratio, best), np.where(better, found, cost)
    return best


def _steps(weights: int, largest: int) -> int:
    """Candidates per octave: no more than the integers of a row change within one."""
    wanted = min(_STEPS_OF_ALL // weights, weights * largest)
    return min(max(wanted, _FEWEST_STEPS), _MOST_STEPS)


def _costs(
    w: NDArray[np.float64], costs: NDArray[np.float64], scale: NDArray[np.float32], largest: int
) -> NDArray[np.float64]:
    """Of each row in f64, for the integers that ``affine.quantize`` gives."""
    step = scale[:, None]
    q = np.clip(np.rint(w.astype(np.float32) / step), -largest, largest)
    return ((w - q * step.astype(np.float64)) ** 2 * costs).sum(axis=1)
