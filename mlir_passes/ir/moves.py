"""Builders of what only moves numbers: padding, slices and reshapes. All build at the current insertion point."""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir
from torch_mlir.dialects import tensor

from mlir_passes.ir.build import tensor_type

SPLIT = "[[0], [1, 2], [3], [4]]"
"""Reassociation that splits or joins the second of four dimensions: [n, g * c, h, w] and [n, g, c, h, w]."""
SPLIT_LAST = "[[0], [1], [2], [3, 4]]"
"""Reassociation that splits or joins the last of four dimensions."""
_RESHAPES = ("tensor.expand_shape", "tensor.collapse_shape")


def pad(value: ir.Value, low: Sequence[int], high: Sequence[int], filling: ir.Value) -> ir.Value:
    """Surround a tensor by as many rows of ``filling`` a dimension as ``low`` and ``high`` say."""
    kind = ir.RankedTensorType(value.type)
    shape = [before + size + after for before, size, after in zip(low, kind.shape, high, strict=True)]
    made = tensor.PadOp(tensor_type(shape, kind.element_type), value, [], [], list(low), list(high))
    location = ir.Location.current
    block = made.regions[0].blocks.append(*[ir.IndexType.get()] * kind.rank, arg_locs=[location] * kind.rank)
    with ir.InsertionPoint(block), location:
        tensor.YieldOp(filling)
    return made.result


def extract_slice(
    value: ir.Value, offsets: Sequence[int], sizes: Sequence[int], strides: Sequence[int] | None = None
) -> ir.Value:
    """A part of a tensor; without ``strides`` of neighbours."""
    attributes: dict[str, ir.Attribute] = {
        "static_offsets": ir.DenseI64ArrayAttr.get(list(offsets)),
        "static_sizes": ir.DenseI64ArrayAttr.get(list(sizes)),
        "static_strides": ir.DenseI64ArrayAttr.get(list(strides or [1] * len(sizes))),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 0, 0, 0]),
    }
    made = tensor_type(sizes, ir.RankedTensorType(value.type).element_type)
    return ir.Operation.create("tensor.extract_slice", [made], [value], attributes).results[0]


def insert_slice(value: ir.Value, into: ir.Value, offsets: Sequence[int], strides: Sequence[int]) -> ir.Value:
    """``into`` with ``value`` in the place of a part."""
    attributes: dict[str, ir.Attribute] = {
        "static_offsets": ir.DenseI64ArrayAttr.get(list(offsets)),
        "static_sizes": ir.DenseI64ArrayAttr.get(ir.RankedTensorType(value.type).shape),
        "static_strides": ir.DenseI64ArrayAttr.get(list(strides)),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1, 0, 0, 0]),
    }
    return ir.Operation.create("tensor.insert_slice", [into.type], [value, into], attributes).results[0]


def reshape(value: ir.Value, shape: Sequence[int], reassociation: str) -> ir.Value:
    """View a tensor with more or fewer dimensions; ``reassociation`` as MLIR writes it."""
    kind = ir.RankedTensorType(value.type)
    attributes = {"reassociation": ir.Attribute.parse(reassociation)}
    name = "tensor.collapse_shape"
    if len(shape) > kind.rank:
        name = "tensor.expand_shape"
        attributes["static_output_shape"] = ir.DenseI64ArrayAttr.get(list(shape))
    return ir.Operation.create(name, [tensor_type(shape, kind.element_type)], [value], attributes).results[0]


def is_reshape(op: ir.Operation | None, reassociation: str) -> bool:
    """Whether an operation splits or joins dimensions in this way."""
    if op is None or op.name not in _RESHAPES:
        return False
    return op.attributes["reassociation"] == ir.Attribute.parse(reassociation, context=op.context)


def split_groups(value: ir.Value, groups: int) -> ir.Value:
    """View `[n, g * c, h, w]` as `[n, g, c, h, w]`."""
    n, channels, h, w = ir.RankedTensorType(value.type).shape
    return reshape(value, [n, groups, channels // groups, h, w], SPLIT)


def join_groups(value: ir.Value) -> ir.Value:
    """View `[n, g, c, h, w]` as `[n, g * c, h, w]`."""
    n, groups, channels, h, w = ir.RankedTensorType(value.type).shape
    return reshape(value, [n, groups * channels, h, w], SPLIT)
