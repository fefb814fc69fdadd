"""Operations that move a window over images, channels first, and the padding that they take over."""

from __future__ import annotations

import functools

from torch_mlir import ir

from mlir_passes.ir import match
from mlir_passes.ir.build import defining_op
from mlir_passes.ops import rooms


@functools.cache
def fills() -> dict[str, float]:
    """By the name of a window operation: what a padding must hold that it can take over."""
    return {name: fill for room in rooms() for name, fill in getattr(room, "WINDOWS", {}).items()}


def is_absorbed(op: ir.Operation) -> bool:
    """Whether an operation is a tensor.pad that each of its readers takes over."""
    pad = match.match_pad(op)
    return pad is not None and all(
        use.operand_number == 0 and _takes_over(use.owner.operation, pad) for use in op.results[0].uses
    )


def unpadded(value: ir.Value, *, fill: float = 0.0) -> tuple[ir.Value, tuple[int, int, int, int]]:
    """What a window operation reads, before a padding that it can take over, and (top, left, bottom, right)."""
    op = defining_op(value)
    pad = match.match_pad(op) if op is not None else None
    if pad is None or not _is_spatial(pad, fill):
        return value, (0, 0, 0, 0)
    (top, left), (bottom, right) = pad.low[2:], pad.high[2:]
    return pad.source, (top, left, bottom, right)


def _takes_over(reader: ir.Operation, pad: match.Pad) -> bool:
    if match.splits_groups(reader):
        uses = reader.results[0].uses
        return all(use.operand_number == 0 and _takes_over(use.owner.operation, pad) for use in uses)
    return reader.name in fills() and _is_spatial(pad, fills()[reader.name])


def _is_spatial(pad: match.Pad, fill: float) -> bool:
    """Whether only height and width of a four-dimensional tensor are padded, with ``fill``."""
    return pad.value == fill and len(pad.low) == 4 and not any(pad.low[:2] + pad.high[:2])
