"""What a compiled program really does: read from the compiler's own dispatches, not from what was asked for.

The text comes from the compilation that made the artifact (CompiledModule.dispatches): every dispatch the program runs
is there with its loops, types and arithmetic. A layer counts as integer only when the multiplications of its reduction
are integer multiplications; weights stored in i8 but multiplied in f32 are f32.

Discardable attributes do not survive IREE's pipeline; locations do. A layer is therefore found by the name in its
operation's location, ``loc("features.0.0")``.

A hand-written kernel (stream.executable) has no loop nest that could be counted: the call, whose attributes do survive,
states its multiplications as ``quantune.macs``; their precision is read from the kernel's instructions.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from mlir_passes.cpu.isa import VARIANTS
from quantune.artifact.records import LayerExecution, Processor
from quantune.errors import CompileFailed, first_line

# The strings of a printed location: names, and files, which a line number follows.
_LOCATION_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(:\d+)?')
_EXECUTABLE_TARGET = re.compile(
    r'#hal\.executable\.target<"llvm-cpu", "[a-z-]*?elf-([a-z0-9_]+)", '
    r'\{[^{}]*?cpu = "([^"]*)", cpu_features = "([^"]*)"'
)
UNKNOWN = "unknown"
"""The precision of a kernel that states multiplications of which none is recognized; it does not count as integer."""
_MACS = "quantune.macs"
_CASTS = frozenset({"arith.extsi", "arith.extui", "arith.sitofp", "arith.uitofp", "arith.extf", "arith.truncf"})
_INTEGER_STEPS = frozenset({"arith.subi", "arith.addi", "arith.xori", "arith.andi", "arith.shli", "arith.shrsi"})


@dataclass(frozen=True)
class _Contraction:
    op: str
    macs: int
    precision: str
    names: tuple[str, ...]


def layer_executions(dispatches: str, *, layers: Collection[str] = ()) -> tuple[LayerExecution, ...]:
    """One row for each multiply-accumulate loop a call of the program runs, in order.

    layers: the names to look for in locations; without them any name counts. Work done once when the program is loaded
    is left out. Raises CompileFailed when the text cannot be read.
    """
    ir = _ir()
    with ir.Context():
        try:
            module = ir.Module.parse(dispatches)
        except ir.MLIRError as error:
            raise CompileFailed(f"the compiler's dispatches cannot be read: {first_line(error)}") from error
        functions = {
            _symbol(function): (executable.operation.name, function)
            for executable in module.body.operations
            if executable.operation.name in ("flow.executable", "stream.executable")
            for function in _walk(executable.operation)
            if function.name == "func.func"
        }
        contractions = {
            name: list(_contractions(function))
            for name, (kind, function) in functions.items()
            if kind == "flow.executable"
        }
        kernels = {
            name: _kernel_precision(function) for name, (_, function) in functions.items() if name not in contractions
        }
        calls = [
            op
            for function in module.body.operations
            if function.operation.name in ("util.func", "func.func")
            for op in _walk(function.operation)
            if op.name == "flow.dispatch"
        ]
        entries = [(re.findall(r"@([\w$.-]+)", str(call.attributes["entry_points"]))[-1], call) for call in calls]
        uses = [entry for entry, _ in entries]
        rows = []
        for entry, call in entries:
            if entry in kernels and (kernels[entry] or _MACS in call.attributes):
                layer, precision = _layer(_names(call), layers), kernels[entry] or UNKNOWN
                rows.append(LayerExecution(layer, "kernel", _stated_macs(call, entry), precision, entry))
            for found in contractions.get(entry, ()):
                # Equal dispatches are merged: then only the call still knows which layer it is for.
                names = found.names if uses.count(entry) == 1 else _names(call)
                layer = _layer((*names, *_names(call)), layers)
                rows.append(LayerExecution(layer, found.op, found.macs, found.precision, entry))
    return tuple(rows)


def required_processor(dispatches: str) -> Processor | None:
    """What the program's CPU code needs, or None when it has no CPU code."""
    match = _EXECUTABLE_TARGET.search(dispatches)
    if not match:
        return None
    architecture, name, features = match.groups()
    return Processor(architecture, name, tuple(dict.fromkeys(f[1:] for f in features.split(",") if f.startswith("+"))))


def _ir() -> Any:
    """IREE's MLIR bindings: imported late, since whoever only runs artifacts need not have the compiler."""
    return importlib.import_module("iree.compiler.ir")


def _linalg() -> Any:
    return importlib.import_module("iree.compiler.dialects.linalg")


def _walk(op: Any) -> Iterator[Any]:
    for region in op.regions:
        for block in region:
            for child in block.operations:
                yield child.operation
                yield from _walk(child.operation)


def _symbol(op: Any) -> str:
    return str(op.attributes["sym_name"]).strip('"')


def _names(op: Any) -> tuple[str, ...]:
    return tuple(name for name, line in _LOCATION_STRING.findall(str(op.location)) if not line)


def _layer(names: tuple[str, ...], layers: Collection[str]) -> str:
    return next((name for name in names if not layers or name in layers), "")


def _kernel_precision(function: Any) -> str | None:
    """What a kernel multiplies and sums up, or None when it does not (a pad, a pool)."""
    found: dict[str, None] = {}
    for op in _walk(function):
        if op.name == "llvm.call_intrinsic":
            name = str(op.attributes["intrin"])
            found |= {precision: None for precision in filter(None, [product_of(name)])}
        if op.name in ("vector.fma", "math.fma", "vector.contract"):
            found[re.sub(r"^vector<.*x|>$", "", str(op.results[0].type))] = None
    # A requantization may be written with f32 multiply-adds: the integer products are then the loop.
    return next((p for p in found if p.startswith("i")), next(iter(found), None))


def product_of(intrinsic: str) -> str | None:
    """The integers that an intrinsic multiplies and sums up, as the instruction sets say; None where it does not."""
    named = (pair for isa in VARIANTS.values() for pair in isa.products.items())
    return next((precision for part, precision in named if part in intrinsic), None)


def _stated_macs(call: Any, entry: str) -> int:
    if _MACS not in call.attributes:
        raise CompileFailed(f"the call of the kernel '{entry}' has no attribute {_MACS}; its work cannot be counted")
    return int(call.attributes[_MACS].value)


def _contractions(function: Any) -> Iterator[_Contraction]:
    for op in _walk(function):
        if op.name.startswith("linalg.") and len(op.regions) == 1 and (found := _read_contraction(op)):
            yield found


def _read_contraction(op: Any) -> _Contraction | None:
    """The multiply-accumulate loop that ``op`` is, or None for anything else (an elementwise loop, a pool)."""
    product = _accumulated_product(op.regions[0].blocks[0])
    if product is None:
        return None
    maps = [attribute.value for attribute in _linalg().get_indexing_maps(op)]
    extents = _extents(op, maps)
    output = _plain_dims(maps[-1])
    if not set(extents) - set(output.values()):
        return None  # nothing is summed up
    macs = 1
    for extent in extents.values():
        macs *= extent
    return _Contraction(_kind(maps), macs, _precision(product), _names(op))


def _accumulated_product(block: Any) -> Any | None:
    """The multiplication whose result the block adds to its output, or None."""
    results = list(block.operations)[-1].operands
    if len(results) != 1:
        return None
    accumulator = block.arguments[len(block.arguments) - 1]
    add = _definition(results[0])
    while add is not None and add.name in _CASTS:
        add = _definition(add.operands[0])
    if add is None or add.name not in ("arith.addi", "arith.addf"):
        return None
    terms = [operand for operand in add.operands if operand != accumulator]
    if len(terms) != 1:
        return None
    term = _definition(terms[0])
    while term is not None and term.name in _CASTS:
        term = _definition(term.operands[0])
    return term if term is not None and term.name in ("arith.muli", "arith.mulf") else None


def _precision(product: Any) -> str:
    """The type multiplied: for integers the widest type the two factors were stored in."""
    if product.name == "arith.mulf":
        return str(product.results[0].type)
    widths = [width for operand in product.operands for width in _stored_widths(operand)]
    return f"i{max(widths, default=int(str(product.results[0].type)[1:]))}"


def _stored_widths(value: Any) -> Iterator[int]:
    """Yield the bit widths of the stored integers a factor is computed from; constants have none."""
    op = _definition(value)
    if op is None:
        yield int(str(value.type).lstrip("isu"))
    elif op.name in ("arith.extsi", "arith.extui"):
        yield int(str(op.operands[0].type).lstrip("isu"))
    elif op.name in _INTEGER_STEPS:
        for operand in op.operands:
            yield from _stored_widths(operand)
    elif op.name != "arith.constant":
        yield int(str(value.type).lstrip("isu"))


def _definition(value: Any) -> Any | None:
    return value.owner.operation if isinstance(value, _ir().OpResult) else None


def _plain_dims(map_: Any) -> dict[int, int]:
    """Result position -> loop, for the results that are a loop's index alone."""
    plain = ((i, r) for i, r in enumerate(map_.results) if isinstance(r, _ir().AffineDimExpr))
    return {i: r.position for i, r in plain}


def _extents(op: Any, maps: list[Any]) -> dict[int, int]:
    """Loop -> number of iterations, read from the shapes of the tensors the loops index."""
    extents: dict[int, int] = {}
    for operand, map_ in zip(op.operands, maps, strict=True):
        if not isinstance(operand.type, _ir().RankedTensorType):
            continue
        shape = operand.type
        for position, loop in _plain_dims(map_).items():
            if shape.is_dynamic_dim(position):
                raise CompileFailed(f"'{op.name}' has the dynamic shape {operand.type}; expected static shapes")
            extents[loop] = shape.get_dim_size(position)
    return extents


def _kind(maps: list[Any]) -> str:
    """Name a contraction by how its loops index the two factors and the result."""
    windowed = any(len(_plain_dims(map_)) < len(map_.results) for map_ in maps[:-1])
    if not windowed:
        return "matmul"
    output = set(_plain_dims(maps[-1]).values())
    shared = (
        set(_plain_dims(maps[0]).values()) & set(_plain_dims(maps[1]).values()) & output if len(maps) > 2 else output
    )
    return "depthwise" if shared else "conv"
