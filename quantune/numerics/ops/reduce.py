"""Sums, means and maxima over dimensions: maxima of the integers themselves, sums exact and then requantized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The reduction in f32."""
    if node.kind == "maximum":
        return inputs[0].max(axis=node.axes).reshape(node.shape)
    return (inputs[0].sum(axis=node.axes) / np.float32(node.divisor)).reshape(node.shape).astype(np.float32)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The maximum of the integers, or the sum requantized; where nobody quantizes that, it is computed in f32."""
    (values,), (s_x,), target = x.inputs, x.specs, x.target
    if target is None:
        return None
    if node.kind == "maximum":
        return values.max(axis=node.axes).reshape(node.shape)
    total = (values.astype(np.int64) - int(s_x.zero_point)).sum(axis=node.axes).astype(np.int32).reshape(node.shape)
    m = affine.multiplier(s_x.scale, 1.0, np.float64(target.scale) * node.divisor)
    return np.clip(affine.requantize(total, m, target.zero_point, target.qmin, target.qmax), x.lo, x.hi)
