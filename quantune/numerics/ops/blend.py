"""Sums of values from known places with known weights: weights in fixed point, one multiplication at the end."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum."""
    terms = [tap.weight * inputs[0][np.ix_(*tap.places)].astype(np.float64) for tap in node.taps]
    return np.sum(terms, axis=0).astype(np.float32)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The sum's integers; where nobody quantizes it, it is computed in f32."""
    (values,), (s_x,), target = x.inputs, x.specs, x.target
    if target is None:
        return None
    largest = np.max(np.sum([np.abs(np.broadcast_to(tap.weight, node.shape)) for tap in node.taps], axis=0))
    unit = 2.0 ** (15 - math.frexp(largest)[1])
    centred = values.astype(np.int64) - int(s_x.zero_point)
    total = sum(np.rint(tap.weight * unit).astype(np.int64) * centred[np.ix_(*tap.places)] for tap in node.taps)
    m = affine.multiplier(s_x.scale, 1.0, np.float64(target.scale) * unit)
    out = affine.requantize(np.asarray(total, np.int32), m, target.zero_point, target.qmin, target.qmax)
    return np.clip(out, x.lo, x.hi)
