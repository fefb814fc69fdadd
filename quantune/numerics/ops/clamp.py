"""Clamp: of values, or of the integers between those that stand for its bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The clamp in f32."""
    return np.clip(inputs[0], np.float32(node.lo), np.float32(node.hi))


def integer(node: Node, x: Operands) -> Tensor | None:
    """The clamp of the integers."""
    return None if x.target is None else np.clip(x.inputs[0], x.lo, x.hi)
