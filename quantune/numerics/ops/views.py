"""Reshape, transpose and slice, of values and of integers alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The view."""
    return _moved(node, inputs[0])


def integer(node: Node, x: Operands) -> Tensor | None:
    """The same of the integers."""
    return None if x.target is None else _moved(node, x.inputs[0])


def _moved(node: Node, x: NDArray) -> NDArray:
    if node.kind == "reshape":
        return x.reshape(node.shape)
    if node.kind == "transpose":
        return x.transpose(node.permutation)
    taken = zip(node.offsets, node.shape, node.steps, strict=True)
    return x[tuple(slice(first, first + size * step, step) for first, size, step in taken)]
