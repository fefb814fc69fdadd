"""Whether an operation computes what its emitter writes.

The function that emits a body builds a reference once; a recognizer compares with that, operand by operand, predicate
by predicate, constant by constant, map by map. Names of values, the order of independent lines and where a constant
stands make no difference; everything else does, the order of commutative operands included: the emitters are ours.

Reference and candidate live in different MLIR contexts, so both are brought into a form that needs none: `arithmetic`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch_mlir import ir
from torch_mlir.dialects import linalg

from mlir_passes.ir.build import defining_op, elementwise, tensor_type

Arithmetic = tuple[tuple[object, ...], ...]
"""Steps in the order in which the results need them: name, attributes, types, numbers of the steps that are read."""

PARALLEL, REDUCTION = (f"#linalg.iterator_type<{kind}>" for kind in ("parallel", "reduction"))
_MAPS = {
    "linalg.matmul": "[affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d2, d1)>, "
    "affine_map<(d0, d1, d2) -> (d0, d1)>]"
}
"""Of named operations that may have other maps than their name says."""
_ELEMENTS: dict[str, Callable[[], ir.Type]] = {
    "i8": lambda: ir.IntegerType.get_signless(8),
    "i32": lambda: ir.IntegerType.get_signless(32),
    "f32": ir.F32Type.get,
}


@dataclass(frozen=True)
class Elementwise:
    """An elementwise form, written once: `build` emits it, `matches` recognizes what was emitted.

    body: emits the arithmetic of one element. inputs: the element type of each input (i8, i32, f32), with ``channel``
    behind it for one number a channel and ``one`` for a single number; else it has the result's shape.
    """

    body: Callable[..., ir.Value]
    inputs: tuple[str, ...]
    result: str

    def build(
        self,
        operands: list[ir.Value],
        shape: list[int] | tuple[int, ...],
        layer: str | None,
        maps: Sequence[ir.AffineMap] = (),
    ) -> ir.Value:
        """Emit the form on tensors with channels second. maps: how the first operands are read, where not plainly."""
        given = [*maps, *[None] * (len(operands) - len(maps))]
        return elementwise(operands, tensor_type(shape, _ELEMENTS[self.result]()), self.body, maps=given, layer=layer)

    def matches(self, op: ir.Operation) -> bool:
        """Whether ``op`` is this form on tensors with channels innermost."""
        if op.name != "linalg.generic" or len(op.results) != 1 or len(op.operands) != len(self.inputs) + 1:
            return False
        kinds = [ir.RankedTensorType(value.type) for value in op.operands]
        return _described(op) == _reference(self, kinds[-1].rank) and [
            (str(kind.element_type), kind.rank) for kind in kinds
        ] == self._operands(kinds[-1].rank)

    def _operands(self, rank: int) -> list[tuple[str, int]]:
        """Element type and rank of each operand, the result's last."""
        ranks = {"": rank, "channel": 1, "one": 0}
        words = [text.partition(" ") for text in (*self.inputs, self.result)]
        return [(element, ranks[form]) for element, _, form in words]


def arithmetic(block: ir.Block) -> Arithmetic:
    """What a block hands to its end, free of names and order; equal for blocks that compute alike."""
    arguments = {argument: number for number, argument in enumerate(block.arguments)}
    inside = {op.operation for op in block.operations}
    steps: dict[tuple[object, ...], int] = {}
    known: dict[ir.Value, int] = {}

    def step(*key: object) -> int:
        return steps.setdefault(key, len(steps))

    def visit(value: ir.Value) -> int:
        if value not in known:
            known[value] = made(value)
        return known[value]

    def made(value: ir.Value) -> int:
        op = defining_op(value)
        if op is None:
            number = arguments.get(value)
            return step("argument", number, str(value.type)) if number is not None else step("outside", len(steps))
        if op.name == "arith.constant":
            return step("constant", str(op.attributes["value"]), str(value.type))
        if op not in inside or len(op.regions):
            return step("outside", len(steps))
        return step(*_step(op), *(visit(operand) for operand in op.operands))

    end = block.operations[len(block.operations) - 1].operation
    step(*_step(end), *(visit(operand) for operand in end.operands))
    return tuple(steps)


def is_plain(op: ir.Operation) -> bool:
    """Whether a named linalg operation does what its name says: no other casts, maps or body than the usual ones."""
    if "cast" in op.attributes:
        return False
    kinds = tuple((str(kind.element_type), kind.rank) for kind in (ir.RankedTensorType(v.type) for v in op.operands))
    maps = str(op.attributes["indexing_maps"]) if "indexing_maps" in op.attributes else None
    return maps in (None, _MAPS.get(op.name)) and arithmetic(op.regions[0].blocks[0]) == _named(op.name, kinds)


def iterators(op: ir.Operation) -> list[str]:
    """The loops of a linalg.generic: each PARALLEL or REDUCTION."""
    return [str(kind) for kind in op.attributes["iterator_types"]]


@functools.cache
def emitted(body: Callable[..., ir.Value], *elements: str) -> Arithmetic:
    """What ``body`` emits on block arguments of these element types."""
    with _context(), ir.Location.unknown():
        holder = ir.Module.parse("module {}").body.owner
        block = holder.regions[0].blocks.append(*(_ELEMENTS[element]() for element in elements))
        with ir.InsertionPoint(block):
            linalg.YieldOp([body(*block.arguments)])
        return arithmetic(block)


def _step(op: ir.Operation) -> tuple[object, ...]:
    attributes = tuple(f"{name}={op.attributes[name]}" for name in op.attributes if not name.startswith("quantune."))
    return op.name, attributes, tuple(str(result.type) for result in op.results)


def _described(op: ir.Operation) -> tuple[object, ...]:
    """Maps, loops and body of a linalg.generic."""
    return str(op.attributes["indexing_maps"]), iterators(op), arithmetic(op.regions[0].blocks[0])


@functools.cache
def _context() -> ir.Context:
    return ir.Context()


@functools.cache
def _reference(form: Elementwise, rank: int) -> tuple[object, ...]:
    """What ``build`` makes of tensors of this rank, with channels innermost."""
    with _context(), ir.Location.unknown():
        module = ir.Module.parse("module {}")
        with ir.InsertionPoint(module.body):
            *inputs, out = (tensor_type([1] * size, _ELEMENTS[element]()) for element, size in form._operands(rank))
            values = [ir.Operation.create("builtin.unrealized_conversion_cast", [kind], []).result for kind in inputs]
            made = elementwise(values, out, form.body, channel=rank - 1)
        return _described(made.owner.operation)


@functools.cache
def _named(name: str, kinds: tuple[tuple[str, int], ...]) -> Arithmetic:
    """The body of a named linalg operation on operands of these element types and ranks."""
    with _context(), ir.Location.unknown():
        module = ir.Module.parse("module {}")
        with ir.InsertionPoint(module.body):
            types = [tensor_type([1] * rank, ir.Type.parse(element)) for element, rank in kinds]
            values = [ir.Operation.create("builtin.unrealized_conversion_cast", [kind], []).result for kind in types]
            attributes: dict[str, ir.Attribute] = {
                "operandSegmentSizes": ir.DenseI32ArrayAttr.get([len(values) - 1, 1])
            }
            op = ir.Operation.create(name, types[-1:], values, attributes, regions=1)
            linalg.fill_builtin_region(op)
        return arithmetic(op.regions[0].blocks[0])
