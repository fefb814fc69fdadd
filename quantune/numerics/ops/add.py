"""Sum and difference of two tensors: in fixed point, rounded half up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum, or the difference."""
    return inputs[0] + inputs[1] if node.kind == "add" else inputs[0] - inputs[1]


def integer(node: Node, x: Operands) -> Tensor | None:
    """The result's integers; where nobody quantizes it, it is added in f32."""
    (a, b), target = x.specs, x.target
    if target is None:
        return None
    m_a, m_b, shift = affine.add_params(float(a.scale), float(b.scale), float(target.scale))
    params = (m_a, m_b if node.kind == "add" else -m_b, shift)
    za, zb = int(a.zero_point), int(b.zero_point)
    out = affine.add(x.inputs[0], za, x.inputs[1], zb, params, int(target.zero_point), target.qmin, target.qmax)  # type: ignore[arg-type]
    return np.clip(out, x.lo, x.hi)
