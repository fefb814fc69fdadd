"""Functions of one value: each integer of the input stands for a value, whose function is quantized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The function of each element."""
    assert node.function is not None
    return node.function(inputs[0])


def integer(node: Node, x: Operands) -> Tensor | None:
    """The results for all integers of the input's range, and from them those of its elements."""
    (values,), (s_x,), target = x.inputs, x.specs, x.target
    if target is None:
        return None
    assert node.function is not None
    every = np.arange(s_x.qmin, s_x.qmax + 1)
    places = values.astype(np.int64) - s_x.qmin
    if node.function.by_channel:
        every = np.broadcast_to(every, (1, node.shape[1], len(every)))
    table = np.clip(affine.quantize(node.function(affine.dequantize(every, s_x)), target), x.lo, x.hi)
    if not node.function.by_channel:
        return table[places]
    channel = np.arange(node.shape[1]).reshape(-1, *[1] * (len(node.shape) - 2))
    return table[0][channel, places]
