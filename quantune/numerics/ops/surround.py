"""Zeros around a tensor and between its elements; of integers, zero points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The values among zeros."""
    return _among(node, inputs[0], 0.0)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The integers among zero points."""
    return None if x.target is None else _among(node, x.inputs[0], float(x.target.zero_point))


def _among(node: Node, x: NDArray, number: float) -> NDArray:
    result = np.full(node.shape, number, x.dtype)
    places = zip(node.offsets, node.steps, x.shape, strict=True)
    result[tuple(slice(first, first + step * size, step) for first, step, size in places)] = x
    return result
