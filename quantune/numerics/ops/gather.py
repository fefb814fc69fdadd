"""Values picked from known places, of real ones and of integers alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics.ops import Operands, Tensor


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The values."""
    return inputs[0][np.ix_(*node.places)]


def integer(node: Node, x: Operands) -> Tensor | None:
    """The integers."""
    return None if x.target is None else x.inputs[0][np.ix_(*node.places)]
