"""What operations on constants give, in numpy: the places of a gather, a weight that is turned around.

Only what torch-mlir makes of index arithmetic is known; of anything else the answer is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch_mlir import ir

from mlir_passes.ir import match
from mlir_passes.ir.build import constant_array, defining_op, relaid_constant

_RESHAPES = ("tensor.expand_shape", "tensor.collapse_shape")
_LARGEST = 1 << 22
"""Elements of a constant that is worth computing."""
_INTEGERS = (None, np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)
_FLOATS: dict[int, np.ufunc] = {
    1: np.equal, 2: np.greater, 3: np.greater_equal, 4: np.less, 5: np.less_equal, 6: np.not_equal, 8: np.equal,
    9: np.greater, 10: np.greater_equal, 11: np.less, 12: np.less_equal, 13: np.not_equal,
}  # fmt: skip
_STEPS: dict[str, Callable[..., np.ndarray]] = {
    "arith.addi": np.add, "arith.subi": np.subtract, "arith.muli": np.multiply, "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum, "arith.addf": np.add, "arith.subf": np.subtract, "arith.mulf": np.multiply,
    "arith.divf": np.divide, "arith.maximumf": np.maximum, "arith.minimumf": np.minimum, "math.floor": np.floor,
    "math.ceil": np.ceil, "math.roundeven": np.rint, "arith.select": np.where, "arith.index_cast": np.asarray,
    "arith.sitofp": np.asarray, "arith.extf": np.asarray, "arith.truncf": np.asarray, "arith.extsi": np.asarray,
    "arith.floordivsi": np.floor_divide,
    "arith.divsi": lambda a, b: np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b),
    "math.absf": np.abs, "math.absi": np.abs,
    "math.sqrt": np.sqrt, "math.rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip
Known = Mapping[ir.Value, np.ndarray]


def evaluate(value: ir.Value) -> np.ndarray | None:
    """The numbers of a tensor that is made of constants alone; None where they are not known."""
    numbers = constant_array(value)
    op = defining_op(value)
    if numbers is not None or op is None:
        return numbers
    shape = match.shape_of(value) if isinstance(value.type, ir.RankedTensorType) else ()
    if op.name == "linalg.fill":
        number = match.scalar(value)
        return None if number is None else np.full(shape, number, _dtype(value.type))
    if op.name in _RESHAPES:
        inner = evaluate(op.operands[0])
        return None if inner is None else inner.reshape(shape)
    if not match.is_elementwise(op) or np.prod(shape) > _LARGEST:
        return None
    *_, end = match.body_of(op)
    grid = open_grid(shape)
    found = on_grid(op, grid)
    result = None if found is None else found.get(end.operands[0], _outside(end.operands[0]))
    if result is None or not np.isfinite(result).all():
        return None
    return np.ascontiguousarray(np.broadcast_to(result, shape)).astype(_dtype(value.type))


def constant_numbers(value: ir.Value) -> np.ndarray | None:
    """The numbers of a constant, relaid or computed of others; None for any other value."""
    numbers = relaid_constant(value)
    return evaluate(value) if numbers is None else numbers


def open_grid(shape: Sequence[int]) -> list[np.ndarray]:
    """The indices of each dimension, of extent 1 in all others: what is computed of them shows what it depends on."""
    return list(np.ogrid[tuple(slice(size) for size in shape)])


def on_grid(op: ir.Operation, grid: list[np.ndarray], skipped: ir.Operation | None = None) -> Known | None:
    """What each step of an elementwise body is on a grid; None where one is not known.

    skipped: a step whose result nobody but the body's end reads. An input that is not constant is skipped too, as long
    as no step reads it.
    """
    known: dict[ir.Value, np.ndarray] = {}
    arguments = op.regions[0].blocks[0].arguments
    for argument, value, affine_map in zip(arguments, match.inputs_of(op), match.maps_of(op), strict=False):
        numbers = evaluate(value)
        if numbers is not None:
            known[argument] = placed(numbers, affine_map, grid)
    *steps, _ = match.body_of(op)
    for step in steps:
        if step.name == "cf.assert" or (skipped is not None and step == skipped):
            continue  # torch-mlir's checks of a divisor: a number that is not finite is no constant worth having
        found = _computed(step, known, grid)
        if found is None:
            return None
        known[step.results[0]] = found
    return known


def placed(numbers: np.ndarray, affine_map: ir.AffineMap, grid: list[np.ndarray]) -> np.ndarray:
    """What an operand with this map is on a grid."""
    found = numbers[tuple(_index(result, grid, affine_map.context) for result in affine_map.results)]
    return found.reshape((1,) * (len(grid) - found.ndim) + found.shape)


def _index(result: ir.AffineExpr, grid: list[np.ndarray], context: ir.Context) -> np.ndarray | int:
    """The indices that a map's result stands for; what is no dimension is a 0."""
    dims = (ir.AffineExpr.get_dim(number, context) for number in range(len(grid)))
    return next((indices for dim, indices in zip(dims, grid, strict=True) if dim == result), 0)


def _computed(step: ir.Operation, known: Known, grid: list[np.ndarray]) -> np.ndarray | None:
    dtype = _dtype(step.results[0].type) if len(step.results) == 1 else None
    if step.name == "linalg.index":
        return grid[ir.IntegerAttr(step.attributes["dim"]).value]
    operands = [known.get(operand, _outside(operand)) for operand in step.operands]
    values = [value for value in operands if value is not None]
    if dtype is None or len(values) != len(operands):
        return None
    if step.name == "arith.constant":
        return _outside(step.results[0])
    if step.name == "arith.fptosi":
        return np.trunc(values[0]).astype(dtype)
    if step.name in ("arith.cmpi", "arith.cmpf"):
        predicate = ir.IntegerAttr(step.attributes["predicate"]).value
        relation = _FLOATS.get(predicate) if step.name == "arith.cmpf" else _signed(predicate)
        return None if relation is None else relation(*values)
    if step.name == "tensor.extract":
        return values[0][tuple(values[1:])]
    return _STEPS[step.name](*values).astype(dtype) if step.name in _STEPS else None


def _signed(predicate: int) -> np.ufunc | None:
    """eq ne slt sle sgt sge; None for unsigned ones."""
    return _INTEGERS[predicate + 1] if predicate < len(_INTEGERS) - 1 else None


def _outside(value: ir.Value) -> np.ndarray | None:
    """A constant that a body takes from outside, or holds."""
    if isinstance(value.type, ir.RankedTensorType):
        return evaluate(value)
    op = defining_op(value)
    if op is None or op.name != "arith.constant":
        return None
    return np.asarray(op.attributes["value"].value, _dtype(value.type))


def _dtype(kind: ir.Type) -> type:
    element = str(kind.element_type if isinstance(kind, ir.RankedTensorType) else kind)
    known = {"i1": np.bool_, "i8": np.int8, "i32": np.int32, "i64": np.int64, "index": np.int64, "f32": np.float32}
    return known.get(element, np.float64)
