"""Every small change of a linalg.generic, and what a changed one computes, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from integer_layers import Case
from torch_mlir import ir

from mlir_passes.ir.build import walk

# All dimensions are 4, so that an operation with another map is still a valid one.
CASE = Case("conv", 4, 4, 4, 4, (3, 3), pads=(1, 1, 1, 1), seed=3, n=4)
KERNELS = "quantune-lower-to-cpu-kernels{features=avx2}"
IMAGE = "tensor<4x4x4x4xTYPE>"
MUTANT = "test.mutant"
"""Names on an operation what was changed in it."""
_SIBLINGS = {
    "arith.addi": "arith.subi", "arith.subi": "arith.addi", "arith.muli": "arith.addi", "arith.maxsi": "arith.minsi",
    "arith.minsi": "arith.maxsi", "arith.shrsi": "arith.shrui", "arith.shli": "arith.shrsi", "arith.andi": "arith.ori",
    "arith.extsi": "arith.extui", "arith.extui": "arith.extsi", "arith.sitofp": "arith.uitofp",
    "arith.mulf": "arith.addf", "arith.addf": "arith.subf", "arith.divf": "arith.mulf",
    "arith.maximumf": "arith.minimumf", "arith.minimumf": "arith.maximumf", "arith.maxnumf": "arith.minnumf",
    "arith.minnumf": "arith.maxnumf", "arith.fptosi": "arith.fptoui", "math.roundeven": "math.floor",
}  # fmt: skip
Edit = Callable[[ir.Operation], None]


def mutants(op: ir.Operation) -> list[ir.Operation]:
    """Copies of a linalg.generic behind it, each changed in one place and named for it."""
    made = []
    with op.context:
        for name, edit in _edits(op):
            copy = op.clone(ip=ir.InsertionPoint.after(op))
            edit(copy)
            copy.attributes[MUTANT] = ir.StringAttr.get(name)
            try:
                copy.verify()
            except ir.MLIRError:
                copy.erase()
            else:
                made.append(copy)
    return made


def parse_form(text: str) -> tuple[ir.Module, ir.Operation, ir.Operation]:
    """A module, its function, and the linalg.generic that has the form: the first, or the last of three and more."""
    module = ir.Module.parse(text, context=ir.Context())
    function = module.body.operations[0].operation
    generics = [op for op in walk(function) if op.name == "linalg.generic"]
    return module, function, generics[0] if len(generics) < 3 else generics[-1]


def hand_out(function: ir.Operation, values: list[ir.Value]) -> None:
    """Let a function return these values."""
    block = function.regions[0].blocks[0]
    end = block.operations[len(block.operations) - 1].operation
    with function.context, ir.Location.unknown():
        ir.Operation.create("func.return", [], values, ip=ir.InsertionPoint(end))
        end.erase()
        kind = ir.FunctionType.get([argument.type for argument in block.arguments], [value.type for value in values])
        function.attributes["function_type"] = ir.TypeAttr.get(kind)


def _edits(op: ir.Operation) -> Iterator[tuple[str, Edit]]:
    block = op.regions[0].blocks[0]
    inner = [each.operation for each in block.operations]
    known = [(f"argument {i}", value) for i, value in enumerate(block.arguments)]
    for at, step in enumerate(inner):
        label = f"{at} {step.name}"
        for number, operand in enumerate(step.operands):
            for which, (other, value) in enumerate(known):
                if value != operand and value.type == operand.type:
                    yield f"{label}: operand {number} is {other}", _operand(at, number, which)
        if step.name in _SIBLINGS:
            yield f"{label}: is {_SIBLINGS[step.name]}", _name(at, _SIBLINGS[step.name])
        if "predicate" in step.attributes:
            own = ir.IntegerAttr(step.attributes["predicate"]).value
            for other in range(2, 6) if step.name == "arith.cmpi" else range(1, 15):
                if other != own:
                    yield f"{label}: predicate {other}", _attribute(at, "predicate", f"{other} : i64")
        if step.name == "arith.constant":
            value = step.attributes["value"]
            changed = value.value + 1
            yield f"{label}: value {changed}", _attribute(at, "value", f"{changed} : {value.type}")
        if "fastmath" in step.attributes:
            yield f"{label}: fast", _attribute(at, "fastmath", "#arith.fastmath<fast>")
        if "overflowFlags" in step.attributes:
            yield f"{label}: nsw", _attribute(at, "overflowFlags", "#arith.overflow<nsw>")
        known += [(label, result) for result in step.results]
    maps = list(op.attributes["indexing_maps"])
    for number, found in enumerate(maps):
        for other in _other_maps(ir.AffineMapAttr(found).value):
            changed = [*maps[:number], ir.AffineMapAttr.get(other), *maps[number + 1 :]]
            yield f"map {number} is {other}", _whole("indexing_maps", ir.ArrayAttr.get(changed))
    kinds = [str(kind) for kind in op.attributes["iterator_types"]]
    for loop, kind in enumerate(kinds):
        other = kind.replace("parallel", "reduction") if "parallel" in kind else kind.replace("reduction", "parallel")
        changed = [ir.Attribute.parse(each) for each in (*kinds[:loop], other, *kinds[loop + 1 :])]
        yield f"loop {loop} is {other}", _whole("iterator_types", ir.ArrayAttr.get(changed))


def _other_maps(found: ir.AffineMap) -> Iterator[ir.AffineMap]:
    """The map with one result changed, and with two exchanged."""
    results = list(found.results)
    for i, result in enumerate(results):
        for dim in range(found.n_dims):
            other = ir.AffineExpr.get_dim(dim)
            if other != result:
                yield ir.AffineMap.get(found.n_dims, 0, [*results[:i], other, *results[i + 1 :]])
    for i in range(len(results) - 1):
        exchanged = [*results[:i], results[i + 1], results[i], *results[i + 2 :]]
        yield ir.AffineMap.get(found.n_dims, 0, exchanged)


def _steps(op: ir.Operation) -> list[ir.Operation]:
    return [each.operation for each in op.regions[0].blocks[0].operations]


def _operand(at: int, number: int, which: int) -> Edit:
    def edit(op: ir.Operation) -> None:
        steps = _steps(op)
        values = [*op.regions[0].blocks[0].arguments, *(result for step in steps[:at] for result in step.results)]
        steps[at].operands[number] = values[which]

    return edit


def _name(at: int, name: str) -> Edit:
    def edit(op: ir.Operation) -> None:
        step = _steps(op)[at]
        with ir.Location.unknown():
            types = [result.type for result in step.results]
            made = ir.Operation.create(name, types, list(step.operands), ip=ir.InsertionPoint(step))
        step.results[0].replace_all_uses_with(made.results[0])
        step.erase()

    return edit


def _attribute(at: int, name: str, text: str) -> Edit:
    def edit(op: ir.Operation) -> None:
        _steps(op)[at].attributes[name] = ir.Attribute.parse(text)

    return edit


def _whole(name: str, value: ir.Attribute) -> Edit:
    def edit(op: ir.Operation) -> None:
        op.attributes[name] = value

    return edit


# What an operation computes. Poison, such as a shift by 40, may be anything: it is counted as undefined.


def evaluate(op: ir.Operation, operands: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The result of a linalg.generic on ``operands`` (the last is its start value), and where it is defined.

    Without a reduction the start value is an empty tensor's, which may be anything.
    """
    maps = [ir.AffineMapAttr(each).value for each in op.attributes["indexing_maps"]]
    reduces = ["reduction" in str(kind) for kind in op.attributes["iterator_types"]]
    extents = [0] * len(reduces)
    for array, each in zip(operands, maps, strict=True):
        for size, result in zip(array.shape, each.results, strict=True):
            if isinstance(result, ir.AffineDimExpr):
                extents[result.position] = size
    parallel = [1 if reduced else extent for extent, reduced in zip(extents, reduces, strict=True)]
    out, defined = operands[-1].copy(), np.ones(operands[-1].shape, bool)
    for offset in np.ndindex(*(e if reduced else 1 for e, reduced in zip(extents, reduces, strict=True))):
        grid = [index + offset[d] for d, index in enumerate(np.indices(parallel))]
        places = [
            tuple(grid[r.position] if isinstance(r, ir.AffineDimExpr) else 0 * grid[0] for r in each.results)
            for each in maps
        ]
        values = [array[place] for array, place in zip([*operands[:-1], out], places, strict=True)]
        found, good = _body(op, values, started=any(reduces))
        defined[places[-1]] &= np.broadcast_to(good, values[-1].shape)
        out[places[-1]] = found
    return out, defined


def _body(op: ir.Operation, arguments: list[np.ndarray], *, started: bool) -> tuple[np.ndarray, np.ndarray]:
    known: dict[ir.Value, tuple[np.ndarray, np.ndarray]] = {
        argument: (value, np.array(started or number < len(arguments) - 1))
        for number, (argument, value) in enumerate(zip(op.regions[0].blocks[0].arguments, arguments, strict=True))
    }
    for step in _steps(op):
        pairs = [known[operand] if operand in known else _outside(operand) for operand in step.operands]
        if step.name == "linalg.yield":
            return pairs[0]
        good = np.array(True)
        for _, each in pairs:
            good = good & each
        value, whole = _step(step, [each for each, _ in pairs])
        known[step.results[0]] = value, good & whole
    raise AssertionError("a body without end")


def _outside(value: ir.Value) -> tuple[np.ndarray, np.ndarray]:
    attribute = value.owner.attributes["value"]
    return np.asarray(attribute.value, _dtype(str(value.type))), np.array(True)


def _dtype(kind: str) -> type:
    return {"i1": np.bool_, "i8": np.int8, "i32": np.int32, "f32": np.float32}[kind]


def _step(step: ir.Operation, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The result of one operation of a body, and where it is defined."""
    dtype, name = _dtype(str(step.results[0].type)), step.name.split(".")[1]
    fine = np.array(True)
    if name == "constant":
        return np.asarray(step.attributes["value"].value, dtype), fine
    if name == "select":
        return np.where(*values), fine
    if name == "cmpi":
        compare = [None, None, np.less, np.less_equal, np.greater, np.greater_equal]
        test = compare[ir.IntegerAttr(step.attributes["predicate"]).value]
        assert test is not None
        return test(*values), fine
    if name == "cmpf":  # ordered and unordered differ for NaN only: oeq ogt oge olt ole one, and then ueq ...
        relation = ir.IntegerAttr(step.attributes["predicate"]).value
        if relation in (7, 14):
            return np.full(np.broadcast_shapes(*(each.shape for each in values)), relation == 7), fine
        relations = [np.equal, np.greater, np.greater_equal, np.less, np.less_equal, np.not_equal]
        return relations[(relation - 1) if relation < 7 else (relation - 8)](*values), fine
    if name in ("shli", "shrsi", "shrui"):
        a, by = values[0].astype(np.int64), values[1].astype(np.int64)
        fine = (by >= 0) & (by < 32)
        by = np.where(fine, by, 0)
        moved = a << by if name == "shli" else ((a & 0xFFFFFFFF) if name == "shrui" else a) >> by
        return moved.astype(np.int32), fine
    if name in ("extui", "uitofp"):
        unsigned = {"int8": np.uint8, "int32": np.uint32, "bool": np.uint8}[values[0].dtype.name]
        return values[0].view(unsigned).astype(dtype), fine
    if name in ("extsi", "sitofp", "trunci"):
        signed = -values[0].astype(np.int8) if values[0].dtype == np.bool_ else values[0]
        return signed.astype(dtype), fine
    if name in ("fptosi", "fptoui"):
        low, high = (-128, 127) if name == "fptosi" else (0, 255)
        whole = np.trunc(values[0])
        fine = (whole >= low) & (whole <= high)
        return np.where(fine, whole, 0).astype(np.int32).astype(dtype), fine
    plain: dict[str, Callable[..., np.ndarray]] = {
        "addi": np.add, "subi": np.subtract, "muli": np.multiply, "addf": np.add, "subf": np.subtract,
        "mulf": np.multiply, "divf": np.divide, "maxsi": np.maximum, "minsi": np.minimum, "maximumf": np.maximum,
        "minimumf": np.minimum, "maxnumf": np.fmax, "minnumf": np.fmin, "andi": np.bitwise_and, "ori": np.bitwise_or,
        "roundeven": np.rint, "floor": np.floor,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        value = plain[name](*values)
    if dtype is np.float32:
        # Fast or not, a compiler may flush what is subnormal; infinities and NaN are left out for the same reason.
        fine = np.isfinite(value) & ((value == 0) | (np.abs(value) > 1e-30))
    elif "nsw" in str(step.attributes.get("overflowFlags", "")):
        fine = plain[name](*(each.astype(np.int64) for each in values)) == value
    return value, fine
