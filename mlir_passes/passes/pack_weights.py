"""quantune-pack-weights: weights of fewer than eight bits are stored packed, and unpacked when a program is loaded.

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

Requires: the weights' final layout, and no pass after it but IREE's. Leaves alone: weights that need eight bits, and
what is not tagged ``<layer>.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg

from mlir_passes.base import Pass
from mlir_passes.ir import build
from mlir_passes.ir.moves import extract_slice, reshape

_ROLE = ".weight"
_ALIGNMENT = 512
"""Integers: a layer's weights begin at a byte of each plane and, unpacked, at a cache line and where GPUs allow."""


@dataclass(frozen=True)
class PackWeights(Pass):
    """Stores the bits of narrow weights in planes and unpacks them in an initializer of the program."""

    name: ClassVar[str] = "quantune-pack-weights"

    def run(self, module: ir.Operation) -> None:
        """Replace the constants by loads of globals; one initializer for each width fills them."""
        # util is IREE's: to these bindings it is an unregistered dialect.
        module.context.allow_unregistered_dialects = True
        by_width: dict[int, dict[str, np.ndarray]] = {}
        for op in list(build.walk(module)):
            numbers = _weight(op)
            bits = 8 if numbers is None else width_of(numbers)
            if numbers is None or bits >= 8:
                continue
            symbol = f"packed.{build.parameter_name(op)}"
            by_width.setdefault(bits, {})[symbol] = numbers
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(_load(symbol, numbers.shape))
            op.erase()
        # A location it must be: without one, iree-compile writes whatever is in its memory for the line of the loop.
        here = ir.Location.file(self.name, 1, 1, context=module.context)
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), here:
            for bits, weights in sorted(by_width.items()):
                for symbol, numbers in weights.items():
                    _declare(symbol, numbers.shape)
                _initialize(bits, weights)


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
    bits = width_of(array) if array.dtype == np.int8 else 8
    return array.nbytes if bits >= 8 else bits * -(-array.size // _ALIGNMENT) * _ALIGNMENT // 8


def to_planes(integers: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.int8]:
    """Pack integers [n] of ``bits`` bits into planes [bits, ceil(n / 8)]; ValueError for one outside of the range."""
    largest = (1 << (bits - 1)) - 1
    shifted = integers.astype(np.int16) + largest
    if np.any((shifted < 0) | (shifted > 2 * largest)):
        raise ValueError(f"an integer is outside of [{-largest}, {largest}], the range of {bits} bits")
    planes = [np.packbits((shifted >> k & 1).astype(np.uint8), bitorder="little") for k in range(bits)]
    return np.stack(planes).view(np.int8)


def from_planes(planes: npt.NDArray[np.int8], count: int) -> npt.NDArray[np.int8]:
    """The first ``count`` integers of planes [bits, bytes]: what a program computes when it is loaded."""
    bits = len(planes)
    unpacked = [np.unpackbits(plane.view(np.uint8), bitorder="little")[:count].astype(np.int16) for plane in planes]
    total = sum((plane << k for k, plane in enumerate(unpacked)), np.zeros(count, np.int16))
    return (total - ((1 << (bits - 1)) - 1)).astype(np.int8)


def _initialize(bits: int, weights: dict[str, np.ndarray]) -> None:
    padded = [np.append(w.reshape(-1), np.zeros(-w.size % _ALIGNMENT, np.int8)) for w in weights.values()]
    planes = to_planes(np.concatenate(padded), bits)
    function = ir.TypeAttr.get(ir.FunctionType.get([], []))
    initializer = ir.Operation.create("util.initializer", attributes={"function_type": function}, regions=1)
    with ir.InsertionPoint(initializer.regions[0].blocks.append()):
        constant = build.constant(planes)
        barrier = ir.Operation.create("util.optimization_barrier", [constant.type], [constant])
        flat, offset = _unpacked(barrier.result), 0
        for (symbol, numbers), room in zip(weights.items(), padded, strict=True):
            value = _part(flat, offset, numbers.shape)
            ir.Operation.create("util.global.store", [], [value], {"global": ir.FlatSymbolRefAttr.get(symbol)})
            offset += room.size
        ir.Operation.create("util.return")


def _unpacked(planes: ir.Value) -> ir.Value:
    """The integers i8[8 * bytes] of planes i8[bits, bytes]. In i32: narrower shifts are not safe on every target."""
    i8, i32 = build.element_type(np.int8), build.element_type(np.int32)
    bits, size = ir.RankedTensorType(planes.type).shape
    j = ir.AffineExpr.get_dim(0)
    maps = [ir.AffineMap.get(2, 0, [ir.AffineExpr.get_constant(k), j]) for k in range(bits)]

    def body(*bytes_: ir.Value) -> ir.Value:
        t = arith.index_cast(i32, linalg.IndexOp(1).result)
        total = arith.constant(i32, 1 - (1 << (bits - 1)))
        for k, byte in enumerate(bytes_):
            bit = arith.andi(arith.shrui(arith.extui(i32, byte), t), arith.constant(i32, 1))
            total = arith.addi(total, arith.shli(bit, arith.constant(i32, k)))
        return arith.trunci(i8, total)

    table = build.elementwise([planes] * bits, build.tensor_type([size, 8], i8), body, maps=maps)
    return reshape(table, [8 * size], "[[0, 1]]")


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
