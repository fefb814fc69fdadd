"""Write sign extensions so that SPIR-V code generation computes them right.

    %r = arith.extsi %x : i8 to i32
    ->
    %u = arith.extui %x : i8 to i32;  %t = arith.xori %u, 128;  %r = arith.subi %t, 128

IREE's Vulkan backend loads four i8 as one word and then zero-extends some of the `extsi` (also of i16): the results are
silently wrong. The form above is the same function for every input and needs only the zero extension. It costs the
dot-product instruction, so it is for Vulkan alone.

Requires: linalg operations that carry sign extensions in generic form; run `linalg-generalize-named-ops` before.
Leaves alone: `arith.sitofp`, which that backend converts right, and extensions from other widths than 8 and 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import build

_WIDTHS = (8, 16)


@dataclass(frozen=True)
class SignExtension(Pass):
    """Replace each sign extension of i8 and i16 by a zero extension, an exclusive or and a subtraction."""

    name: ClassVar[str] = "quantune-vulkan-sign-extension"

    def run(self, module: ir.Operation) -> None:
        """Rewrite every matching `arith.extsi`; named linalg operations that hold one are an error."""
        for op in [each for each in build.walk(module) if each.name == "arith.extsi"]:
            width = _width(op.operands[0].type)
            if width in _WIDTHS:
                _rewrite(op, width)


def _rewrite(op: ir.Operation, width: int) -> None:
    parent = op.parent
    # A named operation's body follows from its name: an edit of it is lost when the module is printed.
    if parent.name.startswith("linalg.") and parent.name != "linalg.generic":
        raise PassFailure(parent, "sign-extends inside a named operation; run linalg-generalize-named-ops before")
    if isinstance(op.results[0].type, ir.ShapedType):
        raise PassFailure(op, f"extends a whole {op.results[0].type}; expected a scalar in a linalg body")
    wide, sign = op.results[0].type, 1 << (width - 1)
    with ir.InsertionPoint(op), op.location:
        bit = arith.constant(wide, sign)
        extended = arith.subi(arith.xori(arith.extui(wide, op.operands[0]), bit), bit)
    op.results[0].replace_all_uses_with(extended)
    op.erase()


def _width(integers: ir.IntegerType | ir.ShapedType) -> int:
    """Bits of an integer type, or of a tensor's elements."""
    return (integers.element_type if isinstance(integers, ir.ShapedType) else integers).width
