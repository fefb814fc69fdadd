"""Functions of one value (SiLU, hard-swish, GELU, ...): 256 results, computed once, from which each element picks.

q_y(f(dq_x(x)))  ->  T[x]        T[i] = q_y(f32(f(dq_x(i)))) for all i, with i's bits read as unsigned

Whatever torch-mlir makes of such a function, it is elementwise operations on one tensor, constants, and tensors that
are themselves functions of it: all of them together are one node. The table is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, tensor

from mlir_passes import functions
from mlir_passes.base import Missed
from mlir_passes.functions import COMPARE, COMPUTED, IDENTITY, NUMBER, Function, Steps
from mlir_passes.ir import match
from mlir_passes.ir.build import elementwise, loop_index, parameter
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import FLOAT
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader, Site
from mlir_passes.ops.requantize import i8, i32

_History = list[tuple[ir.Value, Function, tuple[Site, ...]]]
"""Tensors that a tensor is a function of, nearest first: the tensor, the function, and the nodes that then go."""


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """One step of a function of one value, which takes over the steps before it that it alone reads."""
    if not match.is_elementwise(op) or _element(op.results[0]) not in ("f32", "i1"):
        return False
    tensors = _tensors(op, reader)
    found = _common(op, tensors, reader) if tensors else None
    if tensors is None or found is None or _element(found[0]) != "f32":
        return False
    source, of_each, taken = found
    function = _function(op, dict(zip(tensors, of_each, strict=True)))
    if function is None or isinstance(function, Missed):
        return function or False
    steps = [op, *(step for site in taken for step in _operations(site))]
    while (site := _before(source, steps, reader)) is not None and site.node.function is not None:
        function, source = function.of(site.node.function), site.sources[0]
        taken, steps = [*taken, site], [*steps, *_operations(site)]
    if not taken and match.match_clamp(op) is not None:
        return False  # it is rather the bounds of what it reads
    kind, detail = ("table", "") if _element(op.results[0]) == "f32" else (FLOAT, match.float_detail(op))
    return reader.merge(op, kind, taken, (source,), steps=tuple(steps), function=function, detail=detail)


def _tensors(op: ir.Operation, reader: Reader) -> dict[ir.Value, ir.Value] | None:
    """Body argument -> tensor of the network; None where elements of different places meet, or other constants."""
    found: dict[ir.Value, ir.Value] = {}
    inputs = zip(op.regions[0].blocks[0].arguments, match.inputs_of(op), match.maps_of(op), strict=False)
    for argument, value, affine_map in inputs:
        if match.scalar(value) is not None:
            continue
        same_place = match.is_identity(affine_map) and match.shape_of(value) == match.shape_of(op.results[0])
        if not same_place or not reader.knows(value):
            return None
        found[argument] = value
    return found


def _common(
    op: ir.Operation, tensors: dict[ir.Value, ir.Value], reader: Reader
) -> tuple[ir.Value, list[Function], list[Site]] | None:
    """The nearest tensor of which all ``tensors`` are functions, those functions, and the nodes that then go."""
    histories = [_history(op, value, reader) for value in tensors.values()]
    for value, _, _ in histories[0]:
        site = reader.maker_of(value)
        found = [next((entry for entry in history if reader.maker_of(entry[0]) is site), None) for history in histories]
        entries = [entry for entry in found if entry is not None]
        if len(entries) == len(histories):
            taken = dict.fromkeys(site for _, _, sites in entries for site in sites)
            return value, [function for _, function, _ in entries], list(taken)
    return None


def _history(op: ir.Operation, value: ir.Value, reader: Reader) -> _History:
    found: _History = [(value, IDENTITY, ())]
    readers, goes = [op], True
    while (inner := _computes(site := reader.maker_of(value))) is not None:
        goes = goes and _is_read_by(site.result, readers)  # what others read stays for them, and what it is made of
        _, outer, sites = found[-1]
        value, readers = site.sources[0], _operations(site)
        found.append((value, outer.of(inner), (*sites, site) if goes else sites))
    return found


def _before(value: ir.Value, readers: list[ir.Operation], reader: Reader) -> Site | None:
    """The node that makes ``value`` for nobody but ``readers``."""
    return reader.site_of(value) if _is_read_by(value, readers) else None


def _is_read_by(value: ir.Value, readers: list[ir.Operation]) -> bool:
    return all(use.owner.operation in readers for use in value.uses)


def _computes(site: Site) -> Function | None:
    node = site.node
    if node.kind == "affine":
        assert node.weight is not None
        assert node.bias is not None
        return functions.channel_affine(node.weight, node.bias)
    return functions.clamp(node.lo, node.hi) if node.traits.clamps else node.function


def _operations(site: Site) -> list[ir.Operation]:
    assert site.op is not None
    return list(site.steps) or [site.op]


def _function(op: ir.Operation, of_each: dict[ir.Value, Function]) -> Function | Missed | None:
    """What ``op`` computes, given what its body's arguments are; None for what is no function of these alone."""
    steps = Steps()
    places = {argument: steps.append(function, 0) for argument, function in of_each.items()}
    scalars = dict(zip(op.regions[0].blocks[0].arguments, match.inputs_of(op), strict=False))

    def place(value: ir.Value) -> int | None:
        if value not in places:
            number = match.scalar(scalars.get(value, value))
            if number is None:
                return None
            places[value] = steps.add(NUMBER, number=number)
        return places[value]

    *body, end = match.body_of(op)
    for step in body:
        if step.name == "arith.constant":
            continue
        operands = [place(operand) for operand in step.operands]
        if any(operand is None for operand in operands):
            return None
        if not _is_computed(step):
            return Missed(f"{step.name} (no table is made of it)")
        number = float(ir.IntegerAttr(step.attributes["predicate"]).value) if step.name == COMPARE else 0.0
        places[step.results[0]] = steps.add(step.name, tuple(o for o in operands if o is not None), number)
    last = place(end.operands[0])
    return None if last is None else Function(steps.end(last))


def _is_computed(step: ir.Operation) -> bool:
    if step.name == COMPARE:
        return ir.IntegerAttr(step.attributes["predicate"]).value in functions.PREDICATES
    if step.name == "arith.sitofp" and _element(step.operands[0]) == "i1":
        return False  # true is -1 here
    return step.name in COMPUTED and _element(step.results[0]) in ("f32", "f64", "i1")


def _element(value: ir.Value) -> str:
    kind = value.type
    return str(ir.RankedTensorType(kind).element_type if isinstance(kind, ir.RankedTensorType) else kind)


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """A load from the table for each element."""
    assert emit.node.function is not None
    # Held as i32, for which x86 has a gather.
    function, shape = emit.node.function, emit.node.shape
    numbers = entries(function, inputs[0], y, bounds, shape[1] if function.by_channel else None)
    table = parameter(f"{emit.name}.table", numbers.astype(np.int32))

    def body(x: ir.Value) -> ir.Value:
        place = arith.index_castui(ir.IndexType.get(), arith.extui(i32(), x))
        return arith.trunci(i8(), tensor.extract(table, [loop_index(1), place] if function.by_channel else [place]))

    return elementwise([emit.inputs[0]], emit.type(np.int8), body, layer=emit.node.layer)


def entries(
    function: Function, x: QuantSpec, y: QuantSpec, bounds: tuple[int, int], channels: int | None = None
) -> np.ndarray:
    """i8[256], or i8[channels, 256]: the result for each stored integer, in the order of its bits read as unsigned."""
    stored = np.arange(256, dtype=np.uint8).view(np.int8)
    values = x.dequantize(stored)
    if channels is not None:
        values = np.broadcast_to(values, (1, channels, 256))
    found = np.clip(y.quantize(function(values)), *bounds).astype(np.int8)
    return found if channels is None else found[0]
