"""Concatenation of values, and of integers, which are requantized where their scales differ from the result's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The inputs side by side."""
    return np.concatenate(inputs, axis=node.axis)


def integer(node: Node, x: Operands) -> Tensor | None:
    """The same of the integers."""
    target = x.target
    if target is None:
        return None
    parts = zip(x.inputs, x.specs, strict=True)
    same = [values if spec == target else _moved(values, spec, target) for values, spec in parts]
    return np.concatenate(same, axis=node.axis)


def _moved(values: Tensor, spec: QuantParams, target: QuantParams) -> Tensor:
    centred = values.astype(np.int32) - np.int32(spec.zero_point)
    m = affine.multiplier(spec.scale, 1.0, target.scale)
    return affine.requantize(centred, m, target.zero_point, target.qmin, target.qmax)
