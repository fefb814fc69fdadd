"""Pools: maxima of the integers themselves, averages from exact sums."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor
from quantune.numerics.windows import reduced


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The pool in f32."""
    if node.kind == "maxpool":
        return reduced(node, inputs[0], np.maximum, -math.inf)
    return (reduced(node, inputs[0], np.add, 0.0) / np.float32(node.divisor)).reshape(node.shape).astype(np.float32)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The maximum of the integers; the average requantized, or its sum as f32."""
    (values,), (s_x,), target = x.inputs, x.specs, x.target
    if node.kind == "maxpool":
        return None if target is None else reduced(node, values, np.maximum, target.qmin)
    total = reduced(node, values.astype(np.int32) - int(s_x.zero_point), np.add, 0).astype(np.int32).reshape(node.shape)
    if target is None:
        return total.astype(np.float32) * affine.average_multiplier(node.divisor, s_x.scale, 1.0)
    m = affine.average_multiplier(node.divisor, s_x.scale, target.scale)
    return np.clip(affine.requantize(total, m, target.zero_point, target.qmin, target.qmax), x.lo, x.hi)
