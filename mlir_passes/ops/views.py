"""Views and moves: reshape, transpose and slice of the integers, as of the values they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir
from torch_mlir.dialects import linalg, tensor

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.moves import SPLIT, extract_slice, is_reshape
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.layout import Layouts, permuted, rank_of, split_last, transposed, type_like
from mlir_passes.ops.reader import Reader
from mlir_passes.ops.requantize import i8

_RESHAPES = ("tensor.expand_shape", "tensor.collapse_shape")


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A reshape, a transpose, or a slice."""
    if op.name in _RESHAPES:
        return reader.add(op, "reshape", (op.operands[0],))
    if op.name == "linalg.transpose":
        return reader.add(op, "transpose", (op.operands[0],), permutation=match.ints(op, "permutation"))
    if op.name == "tensor.extract_slice" and len(op.operands) == 1 and reader.knows(op.operands[0]):
        offsets, sizes, steps = (match.ints(op, f"static_{name}") for name in ("offsets", "sizes", "strides"))
        if sizes != match.shape_of(op.results[0]):
            return Missed("tensor.extract_slice into fewer dimensions")
        return reader.add(op, "slice", (op.operands[0],), offsets=offsets, steps=steps)
    return False


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The same view of the integers."""
    if emit.node.kind != "transpose":
        return emit.same()
    out = tensor.empty(list(emit.node.shape), i8())
    result = linalg.transpose(emit.inputs[0], outs=[out], permutation=list(emit.node.permutation))
    return emit.named(result if isinstance(result, ir.Value) else result.results[0])


def _slice(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    plain = len(op.operands) == 1 and rank_of(op.operands[0]) == rank_of(op.results[0]) == 4
    if not plain or not layouts.any_converted([op.operands[0]]):
        return None
    offsets, sizes, strides = (
        permuted(match.ints(op, name)) for name in ("static_offsets", "static_sizes", "static_strides")
    )
    return extract_slice(layouts.last(op.operands[0]), offsets, sizes, strides)


def _expand(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    if not is_reshape(op, SPLIT) or not layouts.any_converted([op.operands[0]]):
        return None
    return split_last(layouts.last(op.operands[0]), type_like(op.results[0]).shape)


def _collapse(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    source = op.operands[0]
    if not layouts.any_converted([source]):
        return None
    if is_reshape(op, SPLIT):
        return split_last(layouts.last(source), type_like(op.results[0]).shape)
    if match.shape_of(source)[2:] == (1, 1) and len(match.shape_of(op.results[0])) == 2:
        # [n, c, 1, 1] and [n, 1, 1, c] flatten to the same [n, c]: only the operand changes.
        attributes = {name: op.attributes[name] for name in op.attributes}
        made = ir.Operation.create(op.name, [op.results[0].type], [layouts.last(source)], attributes).result
        op.results[0].replace_all_uses_with(made)
    return None


def _transpose(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    if match.ints(op, "permutation") != (0, 2, 1, 3, 4) or not layouts.any_converted([op.operands[0]]):
        return None
    return transposed(layouts.last(op.operands[0]), (0, 1, 2, 4, 3))


CHANNELS_LAST = {
    "tensor.extract_slice": _slice,
    "tensor.expand_shape": _expand,
    "tensor.collapse_shape": _collapse,
    "linalg.transpose": _transpose,
}
