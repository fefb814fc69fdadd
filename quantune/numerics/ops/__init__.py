"""The operations of networks in numpy: rooms with the names of those in `mlir_passes.ops`.

A room is a module with

    real(node, inputs) -> array                  the f32 form
    integer(node, x: Operands) -> array | None   the integers of the result, or f32 where nobody quantizes it;
                                                 None where the operation computes in f32 after all

written from the formulas, not from the passes: it is the other side of a comparison bit for bit.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from quantune.numerics.affine import QuantParams

Tensor = NDArray[np.float32 | np.int8 | np.uint8]

#: By the kind of the node that stands for it.
OPERATIONS: dict[str, str] = {
    "conv": "quantune.numerics.ops.layer",
    "matmul": "quantune.numerics.ops.layer",
    "maxpool": "quantune.numerics.ops.pool",
    "avgpool": "quantune.numerics.ops.pool",
    "reshape": "quantune.numerics.ops.views",
    "transpose": "quantune.numerics.ops.views",
    "slice": "quantune.numerics.ops.views",
    "gather": "quantune.numerics.ops.gather",
    "surround": "quantune.numerics.ops.surround",
    "concat": "quantune.numerics.ops.concat",
    "sum": "quantune.numerics.ops.reduce",
    "maximum": "quantune.numerics.ops.reduce",
    "affine": "quantune.numerics.ops.affine",
    "blend": "quantune.numerics.ops.blend",
    "table": "quantune.numerics.ops.table",
    "clamp": "quantune.numerics.ops.clamp",
    "add": "quantune.numerics.ops.add",
    "subtract": "quantune.numerics.ops.add",
    "product": "quantune.numerics.ops.product",
}


@dataclass(frozen=True, eq=False)
class Operands:
    """What an operation computes its integers from.

    inputs, specs: the integers it reads and how they are quantized. target: how its result is, None for f32. lo, hi:
    the integers between which the result may lie. weight: how a layer's weight is quantized. shifts: whether layers
    requantize by shifts.
    """

    inputs: list[Tensor]
    specs: list[QuantParams]
    target: QuantParams | None
    lo: int = 0
    hi: int = 0
    weight: QuantParams | None = None
    shifts: bool = False


def room_of(kind: str) -> ModuleType | None:
    """The room of an operation; None for what numpy does not compute."""
    return importlib.import_module(OPERATIONS[kind]) if kind in OPERATIONS else None
