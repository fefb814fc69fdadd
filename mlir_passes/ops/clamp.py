"""Clamp: relu, relu6, hardtanh. Behind an operation that takes it along it is that operation's bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import Elementwise
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A clamp; one behind another is one with it."""
    found = match.match_clamp(op)
    if found is None:
        return False
    source, lo, hi = found
    before = reader.site_of(source)
    if before is not None and before.node.traits.clamps and match.is_read_once(before.result):
        lo, hi = match.compose_clamps((before.node.lo, before.node.hi), (lo, hi))
        return reader.extend(before, op, lo=lo, hi=hi)
    return reader.add(op, "clamp", (source,), lo=lo, hi=hi)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The same clamp of the integers."""
    return CLAMP.build([emit.inputs[0], *emit.bounds(bounds, np.int8)], emit.node.shape, emit.node.layer)


def _body(x, lo, hi):
    return arith.minsi(arith.maxsi(x, lo), hi)


CLAMP = Elementwise(_body, ("i8", "i8 one", "i8 one"), "i8")
