"""A factor and a shift for each channel: in steps that hold both, requantized by one multiplication."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor
from quantune.numerics.windows import along_channels


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The product and the sum."""
    assert node.weight is not None
    assert node.bias is not None
    rank = len(node.shape)
    return inputs[0] * along_channels(node.weight, rank) + along_channels(node.bias, rank)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The result's integers; where nobody quantizes it, it is computed in f32."""
    (s_x,), target, rank = x.specs, x.target, len(node.shape)
    if target is None:
        return None
    assert node.weight is not None
    assert node.bias is not None
    slope = node.weight.astype(np.float64) * float(s_x.scale)
    step = np.maximum(np.abs(slope) / 256, np.abs(node.bias.astype(np.float64)) / 8388608)
    step[step == 0] = 1.0
    factor, shift = (np.rint(v / step).astype(np.int32) for v in (slope, node.bias.astype(np.float64)))
    centred = x.inputs[0].astype(np.int32) - np.int32(s_x.zero_point)
    total = centred * along_channels(factor, rank) + along_channels(shift, rank)
    m = along_channels(affine.multiplier(step, 1.0, target.scale), rank)
    return np.clip(affine.requantize(total, m, target.zero_point, target.qmin, target.qmax), x.lo, x.hi)
