"""Where to cut a weight's range: fewer weights saturate, or finer steps for the rest.

max keeps the largest weight exact. mse and power choose, for each scale of the weight, the one of the least

    sum_i p_i (w_i - s q_i(s))**2          q_i(s) = clamp(roundeven(w_i / s))

with p = 1 for mse; for power p is the mean square of the input channel that the weight meets, so that the sum is the
noise of the layer's output for inputs whose channels do not correlate. (BRECQ, Li et al., ICLR 2021, and CLADO choose
weight scales by mse; NVIDIA's and Intel's tools know the rule as well. The powers are this project's addition.)

How the least is found: quantune.numerics.scale_search. The result is compared with max in f64 and is never worse.

Here are the integers [-(2**(b-1) - 1), 2**(b-1) - 1]; weights of other integers: quantune.numerics.formats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.affine import SMALLEST_SCALE, QuantParams
from quantune.numerics.scale_search import Grid, costs_of, search
from quantune.numerics.schemes import Weights

RULES = ("max", "mse", "power")


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
    widest = how.params(w, granularity, bits)
    if rule == "max":
        return widest
    rows, weights = rows_of(w, granularity), costs_by_rule(w, granularity, rule, power)
    scale, grid = np.atleast_1d(widest.scale), Grid(widest.qmax)
    # What costs nothing may saturate from the start.
    counted = how.params(np.where(weights > 0, rows, 0), "channel", bits).scale
    ratios = search(np.where(weights > 0, rows, 0), weights, counted, grid, power2=how.power2)
    cut = np.maximum((counted * ratios).astype(np.float32), np.float32(SMALLEST_SCALE))
    worse = costs_of(rows, weights, cut, grid) > costs_of(rows, weights, scale, grid)
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


def costs_by_rule(
    w: NDArray[np.floating], granularity: str, rule: str, power: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    """What an error of each weight costs by a rule other than max: one row for each scale; errors of `fit_weight`."""
    if rule not in RULES:
        raise ValueError(f"unknown weight clipping '{rule}', expected one of {', '.join(RULES)}")
    costs = _checked(power, w) if rule == "power" else np.ones(w.shape[:2])
    return rows_of(_spread(costs, w), granularity)


def rows_of(values: NDArray[np.floating], granularity: str) -> NDArray[np.float64]:
    """Weights [outputs, ...] with one row for each scale."""
    return values.astype(np.float64).reshape(1 if granularity == "tensor" else len(values), -1)
