"""Builders and readers that the rewrites share. All build at the current insertion point and location.

with ir.InsertionPoint(op), op.location:
    bias = parameter("features.0.bias", array)                     # a constant whose numbers may be supplied later
    out = elementwise([acc, bias], out_type, lambda a, b: arith.addi(a, b))
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

# IREE's dialects have no Python bindings here. Without this, every one of their operations is looked for on disk.
for _dialect in ("flow", "hal", "stream", "util"):
    sys.modules.setdefault(f"torch_mlir.dialects.{_dialect}", None)  # type: ignore[arg-type]

#: Names a constant whose numbers are data: `quantune-outline-parameters` makes a parameter of it.
PARAMETER = "quantune.parameter"
#: Names the network's layer an operation comes from.
LAYER = "quantune.layer"
#: Annotations that ask for quantization; spent once the integer network stands, and full of numbers.
ANNOTATIONS = ("quantune.output", "quantune.weight")
#: On a layer: "shift" where it is to requantize by shifts; spent by the lowering to integers.
REQUANTIZE = "quantune.requantize"

_RESHAPES = frozenset({"tensor.collapse_shape", "tensor.expand_shape"})
_DATA_MOVEMENT = _RESHAPES | {"arith.constant", "linalg.transpose", "tensor.empty", "tensor.pad"}

_ELEMENT_TYPES: dict[str, Callable[[], ir.Type]] = {
    "int8": lambda: ir.IntegerType.get_signless(8),
    "int32": lambda: ir.IntegerType.get_signless(32),
    "int64": lambda: ir.IntegerType.get_signless(64),
    "float16": ir.F16Type.get,
    "float32": ir.F32Type.get,
}


def element_type(dtype: npt.DTypeLike) -> ir.Type:
    """The MLIR element type of a numpy dtype (i8, i32, i64, f16, f32); raises ValueError for any other."""
    name = np.dtype(dtype).name
    if name not in _ELEMENT_TYPES:
        raise ValueError(f"no element type for dtype {name}; expected one of {', '.join(_ELEMENT_TYPES)}")
    return _ELEMENT_TYPES[name]()


def tensor_type(shape: Sequence[int], element: ir.Type | npt.DTypeLike) -> ir.RankedTensorType:
    """The tensor type of a shape and an element type, given as MLIR type or numpy dtype."""
    return ir.RankedTensorType.get(list(shape), element if isinstance(element, ir.Type) else element_type(element))


def dense(array: npt.ArrayLike) -> ir.DenseElementsAttr:
    """The readable constant attribute with an array's numbers; rank 0 and splat included."""
    contiguous = np.require(array, requirements="C")  # keeps rank 0, which ascontiguousarray does not
    return ir.DenseElementsAttr.get(contiguous, type=element_type(contiguous.dtype))


def constant(array: npt.ArrayLike) -> ir.Value:
    """A tensor constant with an array's numbers."""
    attribute = dense(array)
    return arith.ConstantOp(attribute.type, attribute).result


def parameter(name: str, array: npt.ArrayLike) -> ir.Value:
    """A tensor constant tagged `quantune.parameter = name` (`<layer>.<role>`), rank 0 for a scalar.

    Programs that differ only in parameters must be the same text: build the same operations whatever the numbers are.
    """
    value = constant(array)
    value.owner.attributes[PARAMETER] = ir.StringAttr.get(name)
    return value


def constant_array(value: ir.Value) -> np.ndarray | None:
    """The numbers of an `arith.constant` tensor; None for any other value and for unreadable `dense_resource` data."""
    op = defining_op(value)
    if op is None or op.name != "arith.constant":
        return None
    attribute = op.attributes["value"]
    return np.array(attribute) if isinstance(attribute, ir.DenseElementsAttr) else None


def relaid_constant(value: ir.Value) -> np.ndarray | None:
    """The numbers of a constant seen through `linalg.transpose` and static reshapes; None for any other value."""
    op = defining_op(value)
    if op is None or op.name not in _RESHAPES | {"linalg.transpose"}:
        return constant_array(value)
    numbers = relaid_constant(op.operands[0])
    if numbers is None:
        return None
    if op.name == "linalg.transpose":
        return numbers.transpose(list(op.attributes["permutation"]))
    return numbers.reshape(ir.RankedTensorType(value.type).shape)


def defining_op(value: ir.Value) -> ir.Operation | None:
    """The operation that makes `value`; None for a block argument."""
    owner = value.owner
    return None if isinstance(owner, ir.Block) else owner.operation


def layer_of(op: ir.Operation | ir.OpView) -> str | None:
    """The layer name on an operation (`quantune.layer`), or None."""
    return _string_attribute(op, LAYER)


def parameter_name(op: ir.Operation | ir.OpView) -> str | None:
    """The tag of a parameter constant (`quantune.parameter`), or None."""
    return _string_attribute(op, PARAMETER)


def set_layer(op: ir.Operation | ir.OpView, layer: str | None) -> None:
    """Name the operation's layer; None leaves it as it is."""
    if layer is not None:
        op.operation.attributes[LAYER] = ir.StringAttr.get(layer, context=op.operation.context)


def strip_annotations(op: ir.Operation | ir.OpView) -> None:
    """Remove the requests for quantization (`ANNOTATIONS`) from an operation and from a function's arguments."""
    attributes, context = op.operation.attributes, op.operation.context
    for name in ANNOTATIONS:
        if name in attributes:
            del attributes[name]
    if "arg_attrs" in attributes:
        kept = [{n.name: n.attr for n in argument if n.name not in ANNOTATIONS} for argument in attributes["arg_attrs"]]
        attributes["arg_attrs"] = ir.ArrayAttr.get(
            [ir.DictAttr.get(each, context=context) for each in kept], context=context
        )


MISSED = "quantune.missed"
"""On the module: why layers are left as they are, by their names."""


def note_missed(module: ir.Operation, reasons: Mapping[str, str]) -> None:
    """Add to the module's reasons; of a layer that has one already, behind it."""
    known = missed_in(module)
    for layer, reason in reasons.items():
        known[layer] = f"{known[layer]}; {reason}" if known.get(layer, reason) != reason else reason
    if known:
        attributes = {layer: ir.StringAttr.get(text, context=module.context) for layer, text in sorted(known.items())}
        module.attributes[MISSED] = ir.DictAttr.get(attributes, context=module.context)


def missed_in(module: ir.Operation) -> dict[str, str]:
    """Layer -> why it is left as it is."""
    if MISSED not in module.attributes:
        return {}
    return {named.name: ir.StringAttr(named.attr).value for named in module.attributes[MISSED]}


def take_missed(module: ir.Operation) -> dict[str, str]:
    """Layer -> why it is left as it is; the module is rid of it."""
    found = missed_in(module)
    if found:
        del module.attributes[MISSED]
    return found


KERNEL = "stream.executable"
"""The operation that holds generated code, which is most of a lowered module and none of the network."""


def walk(root: ir.Operation | ir.OpView) -> Iterator[ir.Operation]:
    """All operations under `root` but those in a `KERNEL`, itself first, in program order.

    Take the list of them before erasing any.
    """
    yield root.operation
    if root.operation.name == KERNEL:
        return
    for region in root.operation.regions:
        for block in region.blocks:
            for op in block.operations:
                yield from walk(op)


def reads(op: ir.Operation | ir.OpView) -> list[ir.Value]:
    """The values `op` reads: its operands, and what its regions take from outside (a gather's `tensor.extract`)."""
    found: dict[ir.Value, None] = dict.fromkeys(op.operation.operands)
    inside: set[ir.Value] = set()
    for nested in walk(op):
        for region in nested.regions:
            for block in region.blocks:
                inside.update(block.arguments)
        if nested != op.operation:
            inside.update(nested.results)
            found.update(dict.fromkeys(nested.operands))
    return [value for value in found if value not in inside]


def identity_map(rank: int) -> ir.AffineMap:
    """`(d0, …) -> (d0, …)`: the operand has the result's shape."""
    return ir.AffineMap.get_identity(rank)


def channel_map(rank: int, dim: int) -> ir.AffineMap:
    """`(d0, …) -> (d<dim>)`: a rank-1 operand with one number for each index along `dim`."""
    return ir.AffineMap.get(rank, 0, [ir.AffineExpr.get_dim(dim)])


def scalar_map(rank: int) -> ir.AffineMap:
    """`(d0, …) -> ()`: a rank-0 operand."""
    return ir.AffineMap.get(rank, 0, [])


def elementwise(
    inputs: Sequence[ir.Value],
    out_type: ir.RankedTensorType,
    body: Callable[..., ir.Value],
    *,
    maps: Sequence[ir.AffineMap | None] | None = None,
    channel: int = 1,
    layer: str | None = None,
) -> ir.Value:
    """A `linalg.generic` with parallel loops over `out_type`'s shape whose body is `body(*elements)`.

    An input's map, where not given, follows from its rank: the result's rank is the identity, rank 0 a scalar, rank 1
    one number for each index along dimension `channel`. The operation is named `layer`, where given.
    """
    rank = out_type.rank
    chosen = maps or [None] * len(inputs)
    if len(chosen) != len(inputs):
        raise ValueError(f"{len(chosen)} maps for {len(inputs)} inputs")
    indexing = [given or _map_by_rank(value, rank, channel) for given, value in zip(chosen, inputs, strict=True)]
    init = tensor.empty(out_type.shape, out_type.element_type)
    made = generic(inputs, [init], [*indexing, identity_map(rank)], (), lambda *elements: [body(*elements[:-1])])
    set_layer(made, layer)
    return made.results[0]


def loop_index(dim: int) -> ir.Value:
    """In a body: the index of the element along dimension ``dim``."""
    number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)
    return ir.Operation.create("linalg.index", [ir.IndexType.get()], [], {"dim": number}).results[0]


def reduction(value: ir.Value, init: ir.Value, dims: Sequence[int], body: Callable[..., ir.Value]) -> ir.Value:
    """Combine ``init`` with the elements of ``value`` along ``dims`` by ``body(element, so far)``.

    The result has ``init``'s type: without those dimensions, or with an extent of 1 in their place.
    """
    kind, out = ir.RankedTensorType(value.type), ir.RankedTensorType(init.type)
    kept = [ir.AffineExpr.get_dim(d) for d in range(kind.rank) if d not in dims]
    if out.rank == kind.rank:
        zero = ir.AffineExpr.get_constant(0)
        kept = [zero if d in dims else ir.AffineExpr.get_dim(d) for d in range(kind.rank)]
    maps = [ir.AffineMap.get_identity(kind.rank), ir.AffineMap.get(kind.rank, 0, kept)]
    return generic([value], [init], maps, dims, lambda *elements: [body(*elements)]).results[0]


def generic(
    inputs: Sequence[ir.Value],
    inits: Sequence[ir.Value],
    maps: Sequence[ir.AffineMap],
    reduced: Sequence[int],
    body: Callable[..., Sequence[ir.Value]],
) -> linalg.GenericOp:
    """A `linalg.generic` whose results begin at `inits`; `body(*elements)`, those of `inits` last, makes one of each.

    maps: of the inputs and of `inits`. reduced: the loops that are reductions.
    """
    kinds = [ir.RankedTensorType(value.type) for value in (*inputs, *inits)]
    loops = ["reduction" if d in reduced else "parallel" for d in range(maps[0].n_dims)]
    made = linalg.GenericOp(
        kinds[len(inputs) :], list(inputs), list(inits),
        ir.ArrayAttr.get([ir.AffineMapAttr.get(each) for each in maps]),
        ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{loop}>") for loop in loops]),
    )  # fmt: skip
    location = ir.Location.current
    block = made.regions[0].blocks.append(*(kind.element_type for kind in kinds), arg_locs=[location] * len(kinds))
    with ir.InsertionPoint(block), location:
        linalg.YieldOp(body(*block.arguments))
    return made


class FreshNames:
    """Parameter names that no constant of the module has yet; they depend on layers and order, never on numbers."""

    def __init__(self, module: ir.Operation) -> None:
        tags = {name for op in walk(module) if (name := parameter_name(op)) is not None}
        self._taken = tags | {tag.rpartition(".")[0] for tag in tags}

    def __call__(self, layer: str, role: str) -> str:
        """`<layer>.<role>`, with a number behind it when that is taken; roles may be put under it after another dot."""
        stem = f"{layer}.{role}"
        name, count = stem, 0
        while name in self._taken:
            count += 1
            name = f"{stem}{count}"
        self._taken.add(name)
        return name


def erase_dead(function: ir.Operation) -> None:
    """Erase operations of a straight-line function whose results nobody reads."""
    for op in reversed([op.operation for op in function.regions[0].blocks[0].operations]):
        if op.name != "func.return" and not any(True for result in op.results for _ in result.uses):
            op.erase()


def erase_if_unused(value: ir.Value) -> None:
    """Erase what makes `value` if nothing uses it and it only moves or holds data; then what only that used."""
    op = defining_op(value)
    if op is None or op.name not in _DATA_MOVEMENT or any(list(result.uses) for result in op.results):
        return
    operands = list(op.operands)
    op.erase()
    for operand in dict.fromkeys(operands):
        erase_if_unused(operand)


def _map_by_rank(value: ir.Value, rank: int, channel: int) -> ir.AffineMap:
    own = ir.RankedTensorType(value.type).rank
    if own == rank:
        return identity_map(rank)
    if own == 0:
        return scalar_map(rank)
    if own == 1:
        return channel_map(rank, channel)
    raise ValueError(f"no map for an input of rank {own} and a result of rank {rank}; give one")


def _string_attribute(op: ir.Operation | ir.OpView, name: str) -> str | None:
    attributes = op.operation.attributes
    return ir.StringAttr(attributes[name]).value if name in attributes else None
