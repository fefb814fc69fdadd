"""quantune-summarize: a second function gives a sample and the extremes of each tensor instead of the tensor.

before -> after, for ``strides=33,1``:

    func.func @main(%x) -> (tensor<1x10xf32>, tensor<1x64x28x28xf32>, tensor<1x512xf32>) { … }
    ->
    func.func @main(%x) -> …                                            as it was
    func.func @summary(%x, %first: tensor<1xi64>) -> tensor<1x2035xf32> { … }

A stride belongs to each of the last results, f32[n, …]. Of each image the summary holds, result by result, the values
number o, o + stride, … of the result in its own order, where o is the remainder of the image's number by the stride and
the image's number is ``%first`` plus its place in the batch; where o leaves one value less than there is room for, the
last value follows. Unless the stride is 1, the smallest and the largest value come behind them, NaN if one is.

Run it last: what is read is the tensor as the program stores it, before the transpose and the slice that bring it to
its form as a result, so that these are not made. Leaves alone: ``@main``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import match
from mlir_passes.ir.build import defining_op, elementwise, erase_dead, generic
from mlir_passes.ir.moves import reshape
from mlir_passes.ops.reader import main_function

FUNCTION = "summary"


@dataclass(frozen=True)
class Summarize(Pass):
    """Adds the function ``summary``, which samples each of the last results with its stride."""

    name: ClassVar[str] = "quantune-summarize"
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides {self.strides}: expected one or more, each at least 1")

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure where the results are not f32[n, …] of one n, or fewer than the strides."""
        main = main_function(module)
        types = [ir.RankedTensorType(value.type) for value in _return(main).operands][-len(self.strides) :]
        f32 = ir.F32Type.get(module.context)
        if len(types) < len(self.strides) or any(
            kind.rank < 2 or kind.element_type != f32 or kind.shape[0] != types[0].shape[0] for kind in types
        ):
            found = ", ".join(map(str, types))
            raise PassFailure(main, f"has results {found}; expected {len(self.strides)} or more f32[n, …] of one n")
        self._rewrite(main.clone(ip=ir.InsertionPoint(main)))

    def _rewrite(self, function: ir.Operation) -> None:
        block, old = function.regions[0].blocks[0], _return(function)
        with old.location, ir.InsertionPoint(old):
            i64 = ir.IntegerType.get_signless(64)
            first = block.add_argument(ir.RankedTensorType.get([1], i64), old.location)
            results = list(old.operands)[-len(self.strides) :]
            pieces = [p for value, s in zip(results, self.strides, strict=True) for p in _summary(value, s, first)]
            width = sum(match.shape_of(piece)[1] for piece in pieces)
            kind = ir.RankedTensorType.get([match.shape_of(results[0])[0], width], ir.F32Type.get())
            dim = {"dim": ir.IntegerAttr.get(i64, 1)}
            summary = ir.Operation.create("tensor.concat", [kind], pieces, dim).result
            ir.Operation.create("func.return", [], [summary])
            old.erase()
            erase_dead(function)
            signature = ir.FunctionType.get([argument.type for argument in block.arguments], [kind])
            function.attributes["function_type"] = ir.TypeAttr.get(signature)
            function.attributes["sym_name"] = ir.StringAttr.get(FUNCTION)
            for name in ("arg_attrs", "res_attrs"):
                if name in function.attributes:
                    del function.attributes[name]


def _return(function: ir.Operation) -> ir.Operation:
    operations = function.regions[0].blocks[0].operations
    return operations[len(operations) - 1].operation


def _summary(value: ir.Value, stride: int, first: ir.Value) -> list[ir.Value]:
    """The columns of one result, f32[n, …] each."""
    sample = _sample(value, stride, first)
    return [sample] if stride == 1 else [sample, *_extremes(_Stored.of(value).inside)]


@dataclass(frozen=True)
class _Stored:
    """Where a value's elements lie: element i is that of ``value`` at ``i[order[d]] + offsets[d]`` for each d.

    inside: ``value`` without what surrounds the elements; it has all of them in some order.
    """

    value: ir.Value
    inside: ir.Value
    order: Sequence[int]
    offsets: Sequence[int]

    @classmethod
    def of(cls, value: ir.Value) -> _Stored:
        rank = len(match.shape_of(value))
        order = list(range(rank))
        op = defining_op(value)
        if op is not None and op.name == "linalg.transpose":
            order = [match.ints(op, "permutation").index(d) for d in range(rank)]
            value = op.operands[0]
            op = defining_op(value)
        offsets, inside = [0] * rank, value
        if op is not None and op.name == "tensor.extract_slice" and _is_window(op):
            offsets, value = list(match.ints(op, "static_offsets")), op.operands[0]
        return cls(value, inside, order, offsets)


def _is_window(slice_: ir.Operation) -> bool:
    """Whether a slice is a window of its operand: known offsets, no steps, no dimension dropped."""
    same_rank = len(match.shape_of(slice_.operands[0])) == len(match.shape_of(slice_.results[0]))
    return len(slice_.operands) == 1 and same_rank and set(match.ints(slice_, "static_strides")) == {1}


def _sample(value: ir.Value, stride: int, first: ir.Value) -> ir.Value:
    images, *shape = match.shape_of(value)
    size = math.prod(shape)
    stored = _Stored.of(value)

    def body(*_: ir.Value) -> ir.Value:
        image, number = linalg.IndexOp(0).result, linalg.IndexOp(1).result
        index = arith.index_cast(ir.IndexType.get(), tensor.extract(first, [_number(0)]))
        start = arith.remui(arith.addi(index, image), _number(stride))
        rest = arith.addi(start, arith.muli(number, _number(stride)))
        rest = arith.minui(rest, _number(size - 1))
        place: list[ir.Value] = []
        for length in reversed(shape[1:]):
            place.append(arith.remui(rest, _number(length)))
            rest = arith.divui(rest, _number(length))
        place = [image, rest, *reversed(place)]
        at = [arith.addi(place[d], _number(o)) for d, o in zip(stored.order, stored.offsets, strict=True)]
        return tensor.extract(stored.value, at)

    return elementwise([], ir.RankedTensorType.get([images, -(-size // stride)], ir.F32Type.get()), body)


def _extremes(value: ir.Value) -> list[ir.Value]:
    """The smallest and the largest value of each image, f32[n, 1] each."""
    images, rank, f32 = match.shape_of(value)[0], len(match.shape_of(value)), ir.F32Type.get()
    starts = [
        linalg.fill(arith.ConstantOp(f32, worst).result, outs=[tensor.empty([images], f32)])
        for worst in (math.inf, -math.inf)
    ]
    maps = [ir.AffineMap.get_identity(rank), *[ir.AffineMap.get(rank, 0, [ir.AffineExpr.get_dim(0)])] * 2]
    made = generic(
        [value], starts, maps, range(1, rank),
        lambda element, low, high: [arith.minimumf(element, low), arith.maximumf(element, high)],
    )  # fmt: skip
    return [reshape(result, [images, 1], "[[0, 1]]") for result in made.results]


def _number(value: int) -> ir.Value:
    return arith.ConstantOp(ir.IndexType.get(), value).result
