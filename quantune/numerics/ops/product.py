"""Product of two tensors: exact in integers, requantized by one multiplication."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The product."""
    return inputs[0] * inputs[1]


def integer(node: Node, x: Operands) -> Tensor | None:
    """The product's integers; where nobody quantizes it, it is multiplied in f32."""
    (a, b), target = x.specs, x.target
    if target is None:
        return None
    left, right = (v.astype(np.int32) - np.int32(s.zero_point) for v, s in zip(x.inputs, x.specs, strict=True))
    m = affine.multiplier(a.scale, b.scale, target.scale)
    return np.clip(affine.requantize(left * right, m, target.zero_point, target.qmin, target.qmax), x.lo, x.hi)
