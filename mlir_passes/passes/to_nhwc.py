"""quantune-to-nhwc: the whole network with channels innermost, f32 and integer alike.

before -> after:

    conv_2d_nchw_fchw(x, w)            ->  conv_2d_nhwc_hwcf(x', w')            depthwise, grouped and pools likewise
    generic{(n, c, h, w) -> …}(x)      ->  generic{(n, h, w, c) -> …}(x')       loops and maps permuted, body as it was
    pad, concat, slices                ->  the same with permuted dimensions
    generic {extract x[n, c, h, w]}    ->  generic {extract x'[n, h, w, c]}     gathers from known places
    collapse(transpose(expand(x)))     ->  the same on the innermost dimension  channel shuffle

x' is x transposed to N H W C. A transpose is made where an operation that cannot be converted meets one that was:
normally one at the entry, none inside. Constants are transposed here, in numpy. On CPUs a depthwise convolution is 25
to 35 times faster this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir
from torch_mlir.dialects import linalg

from mlir_passes.base import Pass
from mlir_passes.ir import match
from mlir_passes.ir.build import LAYER, defining_op, erase_dead, walk
from mlir_passes.ir.moves import pad
from mlir_passes.ops import rooms
from mlir_passes.ops.layout import TO_NHWC, Layouts, permuted, rank_of
from mlir_passes.ops.reader import main_function


@dataclass(frozen=True)
class ToNhwc(Pass):
    """Moves channels innermost in every operation on four-dimensional tensors."""

    name: ClassVar[str] = "quantune-to-nhwc"

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure when the module has no single function."""
        function = main_function(module)
        layouts = Layouts()
        handlers = {"linalg.generic": _generic, "tensor.pad": _pad}
        for room in rooms():
            handlers.update(getattr(room, "CHANNELS_LAST", {}))
        for op in [op.operation for op in function.regions[0].blocks[0].operations]:
            with ir.InsertionPoint(op), op.location:
                made = _gather(op, layouts) if op.name == "linalg.generic" and _makes_tensor(op) else None
                if made is not None:
                    _take_over(op, made, layouts)
                    continue
                for inner in list(walk(op))[1:]:  # other gathers index in NCHW, whatever becomes of their loops
                    layouts.restore(inner)
                handler = handlers.get(op.name) if _makes_tensor(op) else None
                made = handler(op, layouts) if handler is not None else None
                if made is None:
                    layouts.restore(op)
                else:
                    _take_over(op, made, layouts)
        erase_dead(function)


def _makes_tensor(op: ir.Operation) -> bool:
    return len(op.results) == 1 and isinstance(op.results[0].type, ir.RankedTensorType)


def _take_over(op: ir.Operation, made: ir.Value, layouts: Layouts) -> None:
    owner = defining_op(made)
    if owner is not None and LAYER in op.attributes:
        owner.attributes[LAYER] = op.attributes[LAYER]
    layouts.enter(op.results[0], made)


def _pad(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    if rank_of(op.operands[0]) != 4 or len(op.operands) != 1:
        return None
    yielded, *others = match.body_of(op)
    if others or defining_op(yielded.operands[0]) is None:
        return None
    low, high = permuted(match.ints(op, "static_low")), permuted(match.ints(op, "static_high"))
    return pad(layouts.last(op.operands[0]), low, high, yielded.operands[0])


def _gather(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    """An operation that extracts from a converted tensor alone, at the same places of it."""
    extracts = [step for step in match.body_of(op) if step.name == "tensor.extract" and rank_of(step.operands[0]) == 4]
    inputs, maps = match.inputs_of(op), match.maps_of(op)
    sources = {step.operands[0] for step in extracts}
    if len(sources) != 1 or not match.is_elementwise(op) or any(rank_of(value) == 4 for value in inputs):
        return None
    if rank_of(op.results[0]) != 4 or not layouts.any_converted(list(sources)):
        return None
    outs = layouts.last(match.init_of(op))
    generic = linalg.GenericOp(
        [outs.type], inputs, [outs],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(_permuted_map(m, m == maps[-1])) for m in maps]),
        op.attributes["iterator_types"],
    )  # fmt: skip
    _copy_body(op, generic.operation)
    for copy in (step for step in match.body_of(generic.operation) if step.name == "tensor.extract"):
        source, *places = copy.operands
        if rank_of(source) == 4:
            for number, value in enumerate([layouts.last(source), *(places[i] for i in TO_NHWC)]):
                copy.operands[number] = value
    return generic.results[0]


def _generic(op: ir.Operation, layouts: Layouts) -> ir.Value | None:
    inputs, init = match.inputs_of(op), match.init_of(op)
    rank4 = [value for value in inputs if rank_of(value) == 4]
    maps = match.maps_of(op)
    if not layouts.any_converted(rank4) or maps[0].n_dims != 4 or rank_of(init) not in (2, 4):
        return None
    operands = [layouts.last(value) if rank_of(value) == 4 else value for value in inputs]
    outs = layouts.last(init) if rank_of(init) == 4 else init
    new_maps = [_permuted_map(m, rank_of(value) == 4) for m, value in zip(maps, [*inputs, init], strict=True)]
    kinds = list(op.attributes["iterator_types"])
    generic = linalg.GenericOp(
        [outs.type], operands, [outs],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in new_maps]),
        ir.ArrayAttr.get([kinds[i] for i in TO_NHWC]),
    )  # fmt: skip
    _copy_body(op, generic.operation)
    if rank_of(init) == 4:
        return generic.results[0]
    if LAYER in op.attributes:
        generic.operation.attributes[LAYER] = op.attributes[LAYER]
    op.results[0].replace_all_uses_with(generic.results[0])
    return None


def _copy_body(source: ir.Operation, target: ir.Operation) -> None:
    """Clone a linalg body; loop indices that the body asks for are renumbered."""
    old = source.regions[0].blocks[0]
    arguments = list(old.arguments)
    block = target.regions[0].blocks.append(*[a.type for a in arguments], arg_locs=[source.location] * len(arguments))
    values = dict(zip(arguments, block.arguments, strict=True))
    with ir.InsertionPoint(block):
        for inner in old.operations:
            clone = inner.operation.clone()
            for i, operand in enumerate(clone.operands):
                if operand in values:
                    clone.operands[i] = values[operand]
            for nested in walk(clone):
                if nested.name == "linalg.index":
                    dim = TO_NHWC.index(ir.IntegerAttr(nested.attributes["dim"]).value)
                    nested.attributes["dim"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)
            values.update(zip(inner.operation.results, clone.results, strict=True))


def _permuted_map(affine_map: ir.AffineMap, permute_results: bool) -> ir.AffineMap:
    """A map over (n, c, h, w) as one over (n, h, w, c); the results too, where the operand was transposed."""
    dims = [ir.AffineExpr.get_dim(TO_NHWC.index(i)) for i in range(4)]
    results = [_replace_dims(expression, dims) for expression in affine_map.results]
    if permute_results:
        results = [results[i] for i in TO_NHWC]
    return ir.AffineMap.get(4, 0, results)


def _replace_dims(expression: ir.AffineExpr, dims: Sequence[ir.AffineExpr]) -> ir.AffineExpr:
    return expression.compose(ir.AffineMap.get(4, 0, list(dims)))
