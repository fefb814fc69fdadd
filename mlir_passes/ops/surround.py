"""Zeros around a tensor, and between its elements: the integers with zero points in their place.

y[low + step·i] = x[i], zero elsewhere, in each dimension. A padding that each of its readers takes over is no node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import linalg, tensor

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.moves import insert_slice, pad
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.layout import Layouts, permuted, rank_of, type_like
from mlir_passes.ops.reader import Reader


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A tensor.pad with zeros, or a tensor put into one of zeros."""
    rank = len(match.shape_of(op.results[0]))
    if op.name == "tensor.pad":
        found = match.match_pad(op)
        if found is None or found.value != 0:
            return Missed("tensor.pad with something else than zeros")
        return reader.add(op, "surround", (found.source,), offsets=found.low, steps=(1,) * rank)
    if op.name != "tensor.insert_slice" or len(op.operands) != 2 or match.scalar(op.operands[1]) != 0:
        return False
    offsets, sizes, steps = (match.ints(op, f"static_{name}") for name in ("offsets", "sizes", "strides"))
    if sizes != match.shape_of(op.operands[0]):
        return Missed("tensor.insert_slice of fewer dimensions")
    return reader.add(op, "surround", (op.operands[0],), offsets=offsets, steps=steps)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The integers among zero points."""
    node, source = emit.node, emit.inputs[0]
    zero = tensor.extract(emit.scalar("padding", np.int8(y.zero_point_array)), [])
    sizes = match.shape_of(source)
    if set(node.steps) == {1}:
        high = [whole - low - size for whole, low, size in zip(node.shape, node.offsets, sizes, strict=True)]
        return emit.named(pad(source, node.offsets, high, zero))
    filled = linalg.fill(zero, outs=[tensor.empty(list(node.shape), ir.RankedTensorType(source.type).element_type)])
    return emit.named(insert_slice(source, filled, node.offsets, node.steps))


def _insert_last(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    if len(op.operands) != 2 or rank_of(op.operands[0]) != 4 or not layouts.any_converted([op.operands[0]]):
        return None
    offsets, steps = (permuted(match.ints(op, f"static_{name}")) for name in ("offsets", "strides"))
    assert type_like(op.results[0]).rank == 4
    return insert_slice(layouts.last(op.operands[0]), layouts.last(op.operands[1]), offsets, steps)


CHANNELS_LAST = {"tensor.insert_slice": _insert_last}
