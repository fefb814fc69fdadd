"""The operations of networks: what the project asks of each, and the room in which it is recognized and made integer.

A room is a module with

    recognize(op, reader) -> bool | Missed      whether the operation is its own; it enters what it finds in the reader
    integer(emit, inputs, y, bounds) -> Value   its integer form, for a result that is quantized as ``y``
    real(emit, inputs) -> Value                 where ``ends_in_f32``: its integer form with a result in f32
    WINDOWS, CHANNELS_LAST                      names of linalg operations that pads may go into; layouts, see to_nhwc

and a module of the same name in ``quantune.numerics.ops`` that computes the same in numpy. Rooms are asked in the order
of the table. Importing this file loads none of them, and no MLIR.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Traits:
    """What planning, lowering and simulation ask of an operation.

    room: the module that recognizes and lowers it. weighted: carries weights and nearly all of the multiplications.
    hands_on: only selects or moves values, so that its result shares the quantization of what it reads. requantizes:
    can take inputs that are quantized otherwise all the same. view: moves nothing at all. takes_clamp: its
    requantization can bound the result as well. clamps: is such a bound. ends_in_f32: can sum integers exactly and
    scale the sum to f32. function: of one value, and so in f32 where its input is.
    """

    room: str = ""
    weighted: bool = False
    hands_on: bool = False
    requantizes: bool = False
    view: bool = False
    takes_clamp: bool = False
    clamps: bool = False
    ends_in_f32: bool = False
    function: bool = False

    @property
    def integers(self) -> bool:
        """Whether there is an integer form."""
        return bool(self.room)


_LAYER = Traits("mlir_passes.ops.layer", weighted=True, takes_clamp=True, ends_in_f32=True)
_VIEW = Traits("mlir_passes.ops.views", hands_on=True, view=True)

#: By the kind of the node that stands for it. What is in no room runs in f32.
OPERATIONS: dict[str, Traits] = {
    "conv": _LAYER,
    "matmul": _LAYER,
    "maxpool": Traits("mlir_passes.ops.pool", hands_on=True),
    "avgpool": Traits("mlir_passes.ops.pool", takes_clamp=True, ends_in_f32=True),
    "reshape": _VIEW,
    "transpose": _VIEW,
    "slice": Traits("mlir_passes.ops.views", hands_on=True),
    "gather": Traits("mlir_passes.ops.gather", hands_on=True),
    "surround": Traits("mlir_passes.ops.surround", hands_on=True),
    "concat": Traits("mlir_passes.ops.concat", hands_on=True, requantizes=True),
    "sum": Traits("mlir_passes.ops.reduce", takes_clamp=True),
    "maximum": Traits("mlir_passes.ops.reduce", hands_on=True),
    "affine": Traits("mlir_passes.ops.affine", takes_clamp=True, function=True),
    "blend": Traits("mlir_passes.ops.blend", takes_clamp=True),
    "table": Traits("mlir_passes.ops.table", function=True),
    "clamp": Traits("mlir_passes.ops.clamp", hands_on=True, clamps=True),
    "add": Traits("mlir_passes.ops.add", takes_clamp=True),
    "subtract": Traits("mlir_passes.ops.add", takes_clamp=True),
    "product": Traits("mlir_passes.ops.product", takes_clamp=True),
}
_FLOAT = Traits()


def traits_of(kind: str) -> Traits:
    """What is known of the operation that nodes of this kind stand for; nothing of one in f32."""
    return OPERATIONS.get(kind, _FLOAT)


def room_of(kind: str) -> ModuleType:
    """The room of an operation."""
    return importlib.import_module(OPERATIONS[kind].room)


def rooms() -> Iterator[ModuleType]:
    """All rooms in the order of the table."""
    for name in dict.fromkeys(traits.room for traits in OPERATIONS.values()):
        yield importlib.import_module(name)
