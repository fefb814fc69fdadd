"""The vector instructions of each CPU variant, as far as the kernels' descriptions differ by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlir_passes.kernels.text import Kernel

# Packs of two i32 vectors into i16, and of two i16 vectors into u8, both saturating and within 128-bit lanes.
_PACKS = {
    64: ("llvm.x86.avx512.packusdw.512", "llvm.x86.avx512.packuswb.512"),
    32: ("llvm.x86.avx2.packusdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.sse41.packusdw", "llvm.x86.sse2.packuswb.128"),
}
_PRODUCT_SUMS = {32: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.sse2.pmadd.wd"}
VPDPBUSD, PMADDWD, USDOT, SDOT = "vpdpbusd", "pmaddwd", "usdot", "sdot"
"""How u8 and s8 are multiplied: four products a lane at once, or (PMADDWD) in two steps of 16 bits."""


@dataclass(frozen=True)
class Isa:
    """One CPU variant.

    features: what the CPU must have, as LLVM names it. width: bytes of a vector. registers: how many vectors a tile may
    hold. product: VPDPBUSD, PMADDWD, USDOT or SDOT.
    """

    name: str
    features: tuple[str, ...]
    width: int
    registers: int
    product: str

    @property
    def lanes(self) -> int:
        """i32 or f32 numbers in a vector register: the channels of one block."""
        return self.width // 4

    @property
    def zero(self) -> int:
        """The u8 that the products take for 0: 0, or 128 where they multiply signed numbers only."""
        return 128 if self.product == SDOT else 0

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit, per i32 lane, acc plus the four products of u8 ``x`` less ``zero`` and s8 ``weight``.

        The two are vectors of ``width`` bytes.
        """
        sums, data, words = f"vector<{width // 4}xi32>", f"vector<{width}xi8>", f"vector<{width // 2}xi16>"
        if self.product == SDOT:  # u8 less 128 is s8 with the sign bit flipped
            x = k.op(f"arith.xori {x}, {k.constant('dense<-128>', data)} : {data}")
        if self.product != PMADDWD:
            name = {
                VPDPBUSD: f"llvm.x86.avx512.vpdpbusd.{8 * width}",
                USDOT: f"llvm.aarch64.neon.usdot.v{width // 4}i32.v{width}i8",
                SDOT: f"llvm.aarch64.neon.sdot.v{width // 4}i32.v{width}i8",
            }[self.product]
            return k.intrinsic(name, [acc, x, weight], [sums, data, data], sums)
        # Products of pairs in 16 bits would saturate: even and odd bytes go apart, widened to 16 bits.
        x, weight = (k.op(f"vector.bitcast {value} : {data} to {words}") for value in (x, weight))
        eight = k.constant("dense<8>", words)
        raised = k.op(f"arith.shli {weight}, {eight} : {words}")
        pairs = (
            (k.op(f"arith.andi {x}, {k.constant('dense<255>', words)} : {words}"), raised),
            (k.op(f"arith.shrui {x}, {eight} : {words}"), weight),
        )
        for unsigned, signed in pairs:
            factors = [unsigned, k.op(f"arith.shrsi {signed}, {eight} : {words}")]
            products = k.intrinsic(_PRODUCT_SUMS[width], factors, [words, words], sums)
            acc = k.op(f"arith.addi {acc}, {products} : {sums}")
        return acc

    def narrow(self, k: Kernel, sums: Sequence[str], width: int) -> str:
        """Emit the bytes of four vectors of i32 lanes that hold u8, joined within each 128 bits; ``width`` bytes."""
        wide, words, data = f"vector<{width // 4}xi32>", f"vector<{width // 2}xi16>", f"vector<{width}xi8>"
        if self.product in (USDOT, SDOT):  # a vector is 128 bits, and nothing has to saturate
            double = f"vector<{width // 2}xi32>"
            pairs = [
                k.op(f"vector.shuffle {a}, {b} {list(range(width // 2))} : {wide}, {wide}")
                for a, b in (sums[:2], sums[2:])
            ]
            joined = k.op(f"vector.shuffle {pairs[0]}, {pairs[1]} {list(range(width))} : {double}, {double}")
            return k.op(f"arith.trunci {joined} : vector<{width}xi32> to {data}")
        to_words, to_bytes = _PACKS[width]
        packed = [k.intrinsic(to_words, list(pair), [wide] * 2, words) for pair in (sums[:2], sums[2:])]
        return k.intrinsic(to_bytes, packed, [words] * 2, data)


AVX512_VNNI = Isa("avx512vnni", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 64, 32, VPDPBUSD)
AVX_VNNI = Isa("avxvnni", ("avx2", "fma", "avxvnni"), 32, 16, VPDPBUSD)
AVX2 = Isa("avx2", ("avx2", "fma"), 32, 13, PMADDWD)
I8MM = Isa("i8mm", ("neon", "dotprod", "i8mm"), 16, 32, USDOT)
# One register goes to the constant that flips signs.
DOTPROD = Isa("dotprod", ("neon", "dotprod"), 16, 31, SDOT)

VARIANTS = {isa.name: isa for isa in (AVX512_VNNI, AVX_VNNI, AVX2, I8MM, DOTPROD)}
"""By the name that the pass's option ``features`` takes; of each architecture the fastest first."""
