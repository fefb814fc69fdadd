"""Values with channels innermost, for the rooms' layouts and the pass that asks them (quantune-to-nhwc).

A room's CHANNELS_LAST says, by the name of a linalg or tensor operation, how it is made with channels innermost: a
function of the operation and the `Layouts` to the new value, or None where the operation is to stay as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import linalg, tensor

from mlir_passes.ir import match
from mlir_passes.ir.build import PARAMETER, constant, constant_array, defining_op
from mlir_passes.ir.moves import SPLIT_LAST, reshape

TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)
_TO_LAST = (0, 3, 4, 1, 2)  # [n, g, c, h, w] -> [n, h, w, g, c]


class Layouts:
    """What has been converted so far, and the other form of any value."""

    def __init__(self) -> None:
        # NCHW value -> the same with channels last, or groups and channels last (rank 5).
        self._last: dict[ir.Value, ir.Value] = {}
        self._back: dict[ir.Value, ir.Value] = {}  # converted NCHW value -> its NCHW form, made on demand
        self._converted: set[ir.Value] = set()

    def enter(self, value: ir.Value, made: ir.Value) -> None:
        """``made`` is ``value`` with channels innermost."""
        self._last[value] = made
        self._converted.add(value)

    def restore(self, op: ir.Operation) -> None:
        """Let ``op`` read converted values in NCHW."""
        for i, operand in enumerate(op.operands):
            if operand in self._converted:
                op.operands[i] = self._first(operand)

    def last(self, value: ir.Value) -> ir.Value:
        """``value`` with channels innermost; made here if it is not there yet."""
        if value in self._last:
            return self._last[value]
        op = defining_op(value)
        kind = ir.RankedTensorType(value.type)
        order = TO_NHWC if kind.rank == 4 else _TO_LAST
        shape = [kind.shape[i] for i in order]
        if op is not None and op.name == "tensor.empty":
            return tensor.empty(shape, kind.element_type)
        if op is not None and op.name == "linalg.fill":
            return linalg.fill(op.operands[0], outs=[tensor.empty(shape, kind.element_type)])
        if op is not None and op.name == "linalg.broadcast" and match.ints(op, "dimensions") == (0, 2, 3):
            return _broadcast(op.operands[0], shape, kind.element_type)
        if op is not None and op.name == "tensor.expand_shape" and kind.rank == 5:
            return split_last(self.last(op.operands[0]), shape)
        array = None if op is None else constant_array(value)
        if op is not None and array is not None:
            return _constant_like(op, array.transpose(order))
        self._last[value] = transposed(value, order)
        return self._last[value]

    def _first(self, value: ir.Value) -> ir.Value:
        """A converted value back in NCHW."""
        if value not in self._back:
            order = _TO_NCHW if rank_of(value) == 4 else tuple(np.argsort(_TO_LAST))
            self._back[value] = transposed(self._last[value], order)
        return self._back[value]

    def any_converted(self, values: Sequence[ir.Value]) -> bool:
        """Whether one of the values has its channels innermost by now."""
        return any(value in self._converted for value in values)

    def weight(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """A layer's weight with its dimensions in another order."""
        op = defining_op(value)
        array = None if op is None else constant_array(value)
        return transposed(value, order) if op is None or array is None else _constant_like(op, array.transpose(order))


def window_attributes(op: ir.Operation) -> dict[str, list[int]]:
    """Strides and dilations as linalg's builders take them."""
    return {name: list(match.ints(op, name)) for name in ("strides", "dilations")}


def rank_of(value: ir.Value) -> int:
    """The number of a tensor's dimensions."""
    return ir.RankedTensorType(value.type).rank


def permuted(values: Sequence[int]) -> list[int]:
    """Numbers of n, c, h, w in the order n, h, w, c."""
    return [values[i] for i in TO_NHWC]


def type_like(value: ir.Value) -> ir.RankedTensorType:
    """The type of a value with channels innermost."""
    kind = ir.RankedTensorType(value.type)
    order = TO_NHWC if kind.rank == 4 else _TO_LAST
    return ir.RankedTensorType.get([kind.shape[i] for i in order], kind.element_type)


def split_last(value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Split or join the innermost dimension."""
    return reshape(value, shape, SPLIT_LAST)


def transposed(value: ir.Value, order: Sequence[int]) -> ir.Value:
    """A value with its dimensions in another order."""
    kind = ir.RankedTensorType(value.type)
    out = tensor.empty([kind.shape[i] for i in order], kind.element_type)
    return _single(linalg.transpose(value, outs=[out], permutation=list(order)))


def _constant_like(op: ir.Operation, array: np.ndarray) -> ir.Value:
    """A constant with other numbers that keeps the tag of ``op``."""
    made = constant(np.ascontiguousarray(array))
    if PARAMETER in op.attributes:
        made.owner.attributes[PARAMETER] = op.attributes[PARAMETER]
    return made


def _broadcast(value: ir.Value, shape: Sequence[int], element: ir.Type) -> ir.Value:
    dimensions = list(range(len(shape) - 1))
    return _single(linalg.broadcast(value, outs=[tensor.empty(list(shape), element)], dimensions=dimensions))


def _single(result: ir.Value | ir.OpView | ir.Operation) -> ir.Value:
    return result if isinstance(result, ir.Value) else result.operation.results[0]
