"""Concatenation: the integers of tensors that are quantized alike, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.layout import TO_NHWC, Layouts, rank_of, type_like
from mlir_passes.ops.reader import Reader


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A tensor.concat of tensors of the network."""
    if op.name != "tensor.concat" or not all(reader.knows(value) for value in op.operands):
        return False
    return reader.add(op, "concat", tuple(op.operands), axis=ir.IntegerAttr(op.attributes["dim"]).value)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The same concatenation of the integers."""
    return emit.same()


def _channels_last(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    if not layouts.any_converted(list(op.operands)) or rank_of(op.results[0]) != 4:
        return None
    dim = TO_NHWC.index(ir.IntegerAttr(op.attributes["dim"]).value)
    attributes = {"dim": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)}
    operands = [layouts.last(value) for value in op.operands]
    return ir.Operation.create("tensor.concat", [type_like(op.results[0])], operands, attributes).result


CHANNELS_LAST = {"tensor.concat": _channels_last}
