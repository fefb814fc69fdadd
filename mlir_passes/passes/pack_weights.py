"""quantune-pack-weights: weights of few integers are stored packed, and unpacked when a program is loaded.

before -> after, for a weight whose integers all lie in [-7, 7], which are four bits:

    %w = arith.constant {quantune.parameter = "conv.weight"} dense<…> : tensor<8x3xi8>
    ->
    util.global private @packed.conv.weight : tensor<8x3xi8>
    util.initializer {                                            (once a width, for all the layers that have it)
      %planes = util.optimization_barrier dense<…> : tensor<4x3xi8>
      %flat = linalg.generic {w[j, t] = ((planes[0, j] >> t) & 1) + … + (((planes[3, j] >> t) & 1) << 3) - 7}
      util.global.store %flat[0:24] as tensor<8x3xi8>, @packed.conv.weight
    }
    %w = util.global.load immutable @packed.conv.weight : tensor<8x3xi8>

An integer w of b bits, |w| <= 2**(b-1) - 1, is stored as the b bits of w + 2**(b-1) - 1, each in a plane of its own:
bit t of byte j of plane k is bit k of the integer 8j + t. So every width from 2 to 7 takes exactly its bits, whatever
the layer's shape. The barrier keeps iree-compile from evaluating the initializer, which would store the result; the
program needs nothing but IREE's own runtime. The width is that of the integers that are there, which for a quantized
weight is the one asked for, or less.

A weight of n integers, whatever they are, may also be stored as ceil(log2 n) bits each, which number the integers of a
table: it is wherever that takes fewer bytes. Layers of one number of bits share an initializer here too; each has a row
of the table, and each 512 integers the number of their row.

    %codes = planes as above, [bits, blocks, 64]        w = table[rows[block], code]

What fills a layer's room up is an integer that it has, so that it costs no bit. Zeros with which a kernel's layout pads
windows and channels are integers as any: a weight without a 0 of its own has one more by them.

Requires: the weights' final layout, and no pass after it but IREE's. Leaves alone: weights that need eight bits, and
what is not tagged ``<layer>.weight``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import build
from mlir_passes.ir.moves import extract_slice, reshape

_ROLE = ".weight"
_ALIGNMENT = 512
"""Integers: a layer's weights begin at a byte of each plane and, unpacked, at a cache line and where GPUs allow."""


@dataclass(frozen=True)
class PackWeights(Pass):
    """Stores the bits of weights of few integers in planes and unpacks them in an initializer of the program."""

    name: ClassVar[str] = "quantune-pack-weights"

    def run(self, module: ir.Operation) -> None:
        """Replace the constants by loads of globals; one initializer for each kind of storage fills them.

        Raises PassFailure for two weights of one name and different integers.
        """
        # util is IREE's: to these bindings it is an unregistered dialect.
        module.context.allow_unregistered_dialects = True
        by_storage: dict[tuple[bool, int], dict[str, np.ndarray]] = {}
        seen: dict[str, np.ndarray] = {}
        for op in list(build.walk(module)):
            numbers = _weight(op)
            storage = None if numbers is None else storage_of(numbers)
            if numbers is None or storage is None:
                continue
            symbol = f"packed.{build.parameter_name(op)}"
            if not np.array_equal(seen.setdefault(symbol, numbers), numbers):
                name = build.parameter_name(op)
                raise PassFailure(op, f"is parameter '{name}' with other numbers than the one before it")
            by_storage.setdefault((storage.tabled, storage.bits), {})[symbol] = numbers
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(_load(symbol, numbers.shape))
            op.erase()
        # A location it must be: without one, iree-compile writes whatever is in its memory for the line of the loop.
        here = ir.Location.file(self.name, 1, 1, context=module.context)
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), here:
            for (tabled, bits), weights in sorted(by_storage.items()):
                for symbol, numbers in weights.items():
                    _declare(symbol, numbers.shape)
                with _initializer():
                    flat = _numbered(bits, list(weights.values())) if tabled else _offset(bits, list(weights.values()))
                    _store(flat, weights)


@dataclass(frozen=True)
class Storage:
    """How a weight is stored: in so many bits each, as numbers of a table's integers or as the integers themselves."""

    bits: int
    tabled: bool
    bytes: int


def storage_of(integers: npt.NDArray[np.int8]) -> Storage | None:
    """The storage of the fewest bytes; None where it is the integers as they are."""
    rooms = _room(integers.size) // _ALIGNMENT
    width, count = width_of(integers), len(np.unique(integers))
    bits = max((count - 1).bit_length(), 1)
    numbered = Storage(bits, True, rooms * (bits * _ALIGNMENT // 8 + 1) + (1 << bits))
    plain = Storage(width, False, rooms * width * _ALIGNMENT // 8)
    found = min((each for each in (plain, numbered) if each.bits < 8), key=lambda each: each.bytes, default=None)
    return None if found is None or found.bytes >= rooms * _ALIGNMENT else found


def _room(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _weight(op: ir.Operation) -> np.ndarray | None:
    """The integers of a constant that is tagged as a weight; None for anything else."""
    if op.name != "arith.constant" or not (build.parameter_name(op) or "").endswith(_ROLE):
        return None
    numbers = build.constant_array(op.results[0])
    return numbers if numbers is not None and numbers.dtype == np.int8 else None


def width_of(integers: npt.NDArray[np.integer]) -> int:
    """The bits that hold all of the integers in [-(2**(bits-1) - 1), 2**(bits-1) - 1], at least 2; 9 with -128."""
    largest = int(np.abs(integers.astype(np.int16)).max(initial=0))
    return max(largest.bit_length() + 1, 2)


def packed_bytes(parameters: Mapping[str, np.ndarray]) -> int:
    """The bytes that named numbers take in an artifact whose weights this pass has packed."""
    return sum(_packed_bytes(array) if name.endswith(_ROLE) else array.nbytes for name, array in parameters.items())


def _packed_bytes(array: np.ndarray) -> int:
    storage = storage_of(array) if array.dtype == np.int8 else None
    return array.nbytes if storage is None else storage.bytes


def to_planes(integers: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.int8]:
    """Pack integers [n] of ``bits`` bits into planes [bits, ceil(n / 8)]; ValueError for one outside of the range."""
    largest = (1 << (bits - 1)) - 1
    shifted = integers.astype(np.int16) + largest
    if np.any((shifted < 0) | (shifted > 2 * largest)):
        raise ValueError(f"an integer is outside of [{-largest}, {largest}], the range of {bits} bits")
    return _planes(shifted, bits)


def _planes(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.int8]:
    planes = [np.packbits((codes >> k & 1).astype(np.uint8), bitorder="little") for k in range(bits)]
    return np.stack(planes).view(np.int8)


def from_planes(planes: npt.NDArray[np.int8], count: int) -> npt.NDArray[np.int8]:
    """The first ``count`` integers of planes [bits, bytes]: what a program computes when it is loaded."""
    bits = len(planes)
    unpacked = [np.unpackbits(plane.view(np.uint8), bitorder="little")[:count].astype(np.int16) for plane in planes]
    total = sum((plane << k for k, plane in enumerate(unpacked)), np.zeros(count, np.int16))
    return (total - ((1 << (bits - 1)) - 1)).astype(np.int8)


@contextlib.contextmanager
def _initializer() -> Iterator[None]:
    function = ir.TypeAttr.get(ir.FunctionType.get([], []))
    initializer = ir.Operation.create("util.initializer", attributes={"function_type": function}, regions=1)
    with ir.InsertionPoint(initializer.regions[0].blocks.append()):
        yield
        ir.Operation.create("util.return")


def _store(flat: ir.Value, weights: Mapping[str, np.ndarray]) -> None:
    offset = 0
    for symbol, numbers in weights.items():
        value = _part(flat, offset, numbers.shape)
        ir.Operation.create("util.global.store", [], [value], {"global": ir.FlatSymbolRefAttr.get(symbol)})
        offset += _room(numbers.size)


def _offset(bits: int, weights: Sequence[np.ndarray]) -> ir.Value:
    """The integers i8[n] of weights in their rooms, stored as they are but for an offset."""
    padded = np.concatenate([np.pad(w.reshape(-1), (0, _room(w.size) - w.size)) for w in weights])
    return _unpacked(_kept(to_planes(padded, bits)), lambda code, _: arith.addi(code, _i32(1 - (1 << (bits - 1)))))


def _numbered(bits: int, weights: Sequence[np.ndarray]) -> ir.Value:
    """The integers i8[n] of weights in their rooms, stored as numbers of a table's columns; a row for each weight."""
    tables = np.zeros((len(weights), 1 << bits), np.int8)
    codes, rows = [], []
    for row, w in enumerate(weights):
        levels, numbers = np.unique(w, return_inverse=True)
        tables[row, : len(levels)] = levels
        codes.append(np.pad(numbers.reshape(-1), (0, _room(w.size) - w.size)))
        rows += [row] * (_room(w.size) // _ALIGNMENT)
    table = build.constant(tables)
    of_blocks = build.constant(np.array(rows, np.int8 if len(weights) <= 128 else np.int32))

    def value(code: ir.Value, row: ir.Value) -> ir.Value:
        index = ir.IndexType.get()
        places = [arith.index_cast(index, row), arith.index_cast(index, code)]
        return arith.extsi(_i32_type(), tensor.extract(table, places))

    return _unpacked(_kept(_planes(np.concatenate(codes), bits)), value, of_blocks)


def _kept(planes: npt.NDArray[np.int8]) -> ir.Value:
    """A constant that is not computed with at compile time."""
    constant = build.constant(planes)
    return ir.Operation.create("util.optimization_barrier", [constant.type], [constant]).result


def _i32_type() -> ir.Type:
    return build.element_type(np.int32)


def _i32(number: int) -> ir.Value:
    return arith.constant(_i32_type(), number)


def _unpacked(planes: ir.Value, value: Callable[..., ir.Value], of_blocks: ir.Value | None = None) -> ir.Value:
    """The integers i8[8 * bytes] that ``value`` makes of the codes in planes i8[bits, bytes].

    of_blocks: a number for each `_ALIGNMENT` codes, which ``value`` is given too. In i32: narrower shifts are not safe
    on every target.
    """
    i8 = build.element_type(np.int8)
    bits, size = ir.RankedTensorType(planes.type).shape
    block = size if of_blocks is None else _ALIGNMENT // 8
    split = reshape(planes, [bits, size // block, block], "[[0], [1, 2]]")
    b, j = ir.AffineExpr.get_dim(0), ir.AffineExpr.get_dim(1)
    maps = [ir.AffineMap.get(3, 0, [ir.AffineExpr.get_constant(k), b, j]) for k in range(bits)]
    inputs = [split] * bits
    if of_blocks is not None:
        inputs, maps = [*inputs, of_blocks], [*maps, ir.AffineMap.get(3, 0, [b])]

    def body(*elements: ir.Value) -> ir.Value:
        t = arith.index_cast(_i32_type(), linalg.IndexOp(2).result)
        code = _i32(0)
        for k, byte in enumerate(elements[:bits]):
            bit = arith.andi(arith.shrui(arith.extui(_i32_type(), byte), t), _i32(1))
            code = arith.addi(code, arith.shli(bit, _i32(k)))
        return arith.trunci(i8, value(code, elements[-1]))

    unpacked = build.elementwise(inputs, build.tensor_type([size // block, block, 8], i8), body, maps=maps)
    return reshape(unpacked, [8 * size], "[[0, 1, 2]]")


def _part(flat: ir.Value, offset: int, shape: Sequence[int]) -> ir.Value:
    size = int(np.prod(shape))
    part = extract_slice(flat, [offset], [size])
    return part if len(shape) == 1 else reshape(part, shape, str([list(range(len(shape)))]))


def _declare(symbol: str, shape: Sequence[int]) -> None:
    attributes = {
        "sym_name": ir.StringAttr.get(symbol),
        "sym_visibility": ir.StringAttr.get("private"),
        "type": ir.TypeAttr.get(build.tensor_type(shape, np.int8)),
    }
    ir.Operation.create("util.global", attributes=attributes)


def _load(symbol: str, shape: Sequence[int]) -> ir.Value:
    attributes = {"global": ir.FlatSymbolRefAttr.get(symbol), "is_immutable": ir.UnitAttr.get()}
    return ir.Operation.create("util.global.load", [build.tensor_type(shape, np.int8)], [], attributes).result
