"""Values picked from places that are known, dimension by dimension: nearest neighbours, borders that mirror or repeat.

y[n, c, h, w] = x[places[0][n], places[1][c], places[2][h], places[3][w]]        of values and of integers alike
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, tensor

from mlir_passes.base import Missed
from mlir_passes.ir import match
from mlir_passes.ir.build import channel_map, constant, elementwise, loop_index
from mlir_passes.ir.evaluate import on_grid, open_grid
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import Places
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """An elementwise operation that yields what it extracts from a tensor of the network."""
    if not match.is_elementwise(op):
        return False
    *steps, end = match.body_of(op)
    extract = next((step for step in steps if step.name == "tensor.extract"), None)
    if extract is None or end.operands[0] != extract.results[0] or not reader.knows(extract.operands[0]):
        return False
    source, *indices = extract.operands
    if not match.is_f32(source) or len(indices) != len(match.shape_of(op.results[0])):
        return Missed("a gather into another number of dimensions")
    found = _places(op, extract, match.shape_of(source))
    return found if isinstance(found, Missed) else reader.add(op, "gather", (source,), places=found)


def _places(op: ir.Operation, extract: ir.Operation, extents: Sequence[int]) -> Places | Missed:
    shape = match.shape_of(op.results[0])
    known = on_grid(op, open_grid(shape), skipped=extract)
    found: list[tuple[int, ...]] = []
    for dim, index in enumerate(list(extract.operands)[1:]):
        number = match.scalar(index)
        places = np.asarray(int(number)) if number is not None else None if known is None else known.get(index)
        if places is None:
            return Missed("a gather from places that are not known")
        if any(size != 1 for d, size in enumerate(np.broadcast_shapes(places.shape, (1,) * len(shape))) if d != dim):
            return Missed("a gather whose places along a dimension depend on another")
        flat = np.broadcast_to(places.reshape(-1), shape[dim])
        if flat.min() < 0 or flat.max() >= extents[dim]:
            return Missed("a gather beyond its tensor")
        found.append(tuple(int(place) for place in flat))
    return tuple(found)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """The same places of the integers."""
    rank = len(emit.node.shape)
    moved = [dim for dim, places in enumerate(emit.node.places) if places != tuple(range(emit.node.shape[dim]))]
    tables = [constant(np.array(emit.node.places[dim], np.int32)) for dim in moved]

    def body(*indices: ir.Value) -> ir.Value:
        casts = {dim: arith.index_cast(ir.IndexType.get(), index) for dim, index in zip(moved, indices, strict=True)}
        return tensor.extract(emit.inputs[0], [casts.get(dim) or loop_index(dim) for dim in range(rank)])

    maps = [channel_map(rank, dim) for dim in moved]
    return elementwise(tables, emit.type(np.int8), body, maps=maps, layer=emit.node.layer)
