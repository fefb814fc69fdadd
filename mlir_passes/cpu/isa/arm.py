"""64-bit Arm: dot products of signed numbers, and with I8MM of unsigned and signed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlir_passes.cpu.isa.base import Isa, register, vectors

if TYPE_CHECKING:
    from mlir_passes.kernels.text import Kernel


class _Arm(Isa):
    arm = True

    def narrow(self, k: Kernel, sums: Sequence[str], width: int) -> str:
        """Emit one truncation: a vector is 128 bits, and nothing has to saturate."""
        wide, _, data = vectors(width)
        double = f"vector<{width // 2}xi32>"
        pairs = [
            k.op(f"vector.shuffle {a}, {b} {list(range(width // 2))} : {wide}, {wide}") for a, b in (sums[:2], sums[2:])
        ]
        joined = k.op(f"vector.shuffle {pairs[0]}, {pairs[1]} {list(range(width))} : {double}, {double}")
        return k.op(f"arith.trunci {joined} : vector<{width}xi32> to {data}")


@dataclass(frozen=True)
class I8mm(_Arm):
    """Products of unsigned and signed numbers."""

    products = {"usdot": "i8", "ummla": "i8", "smmla": "i8", "usmmla": "i8"}  # noqa: RUF012

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit USDOT."""
        sums, _, data = vectors(width)
        name = f"llvm.aarch64.neon.usdot.v{width // 4}i32.v{width}i8"
        return k.intrinsic(name, [acc, x, weight], [sums, data, data], sums)


@dataclass(frozen=True)
class Dotprod(_Arm):
    """Products of signed numbers only: u8 less 128 is s8 with the sign bit flipped."""

    zero = 128
    products = {"sdot": "i8", "udot": "i8"}  # noqa: RUF012

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit SDOT of the flipped numbers."""
        sums, _, data = vectors(width)
        x = k.op(f"arith.xori {x}, {k.constant('dense<-128>', data)} : {data}")
        name = f"llvm.aarch64.neon.sdot.v{width // 4}i32.v{width}i8"
        return k.intrinsic(name, [acc, x, weight], [sums, data, data], sums)


I8MM = register(I8mm(
    "i8mm", ("neon", "dotprod", "i8mm"), 16, 32,
    (
        "neoverse-v1", "neoverse-v2", "neoverse-v3", "neoverse-n2", "neoverse-n3", "cortex-a510", "cortex-a520",
        "cortex-a710", "cortex-a715", "cortex-a720", "cortex-a725", "cortex-x2", "cortex-x3", "cortex-x4",
        "cortex-x925", "ampere1", "ampere1a", "ampere1b", "grace", "apple-m2", "apple-m3", "apple-m4",
    ),
))  # fmt: skip
# One register goes to the constant that flips signs.
DOTPROD = register(Dotprod(
    "dotprod", ("neon", "dotprod"), 16, 31,
    (
        "neoverse-n1", "neoverse-e1", "cortex-a55", "cortex-a65", "cortex-a75", "cortex-a76", "cortex-a77",
        "cortex-a78", "cortex-x1", "apple-m1",
    ),
))  # fmt: skip
