"""Concatenation, of values and of integers alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The inputs side by side."""
    return np.concatenate(inputs, axis=node.axis)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The same of the integers."""
    return None if x.target is None else np.concatenate(x.inputs, axis=node.axis)
