"""The vector instructions of each CPU variant, as far as the kernels' descriptions differ by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlir_passes.cpu.kernels.text import Kernel

# Packs of two i32 vectors into i16, and of two i16 vectors into u8, both saturating and within 128-bit lanes.
_PACKS = {
    64: ("llvm.x86.avx512.packusdw.512", "llvm.x86.avx512.packuswb.512"),
    32: ("llvm.x86.avx2.packusdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.sse41.packusdw", "llvm.x86.sse2.packuswb.128"),
}


_PRODUCT_SUMS = {32: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.sse2.pmadd.wd"}


@dataclass(frozen=True)
class Isa:
    """One CPU variant.

    features: what the CPU must have. width: bytes of a vector. registers: how many vectors a tile may hold.
    has_dot_product: whether one instruction multiplies u8 by s8 and adds four products.
    """

    name: str
    features: tuple[str, ...]
    width: int
    registers: int
    has_dot_product: bool = True

    @property
    def lanes(self) -> int:
        """i32 or f32 numbers in a vector register: the channels of one block."""
        return self.width // 4

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit, per i32 lane, acc plus the four products of u8 ``x`` and s8 ``weight``, vectors of ``width`` bytes."""
        sums, data, words = f"vector<{width // 4}xi32>", f"vector<{width}xi8>", f"vector<{width // 2}xi16>"
        if self.has_dot_product:
            name = f"llvm.x86.avx512.vpdpbusd.{8 * width}"
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

    def packs(self, width: int) -> tuple[str, str]:
        """The intrinsics that pack i32 into u16 and i16 into u8, on vectors of ``width`` bytes."""
        return _PACKS[width]


AVX512_VNNI = Isa("avx512vnni", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 64, 32)
AVX_VNNI = Isa("avxvnni", ("avx2", "fma", "avxvnni"), 32, 16)
AVX2 = Isa("avx2", ("avx2", "fma"), 32, 13, has_dot_product=False)

VARIANTS = {isa.name: isa for isa in (AVX512_VNNI, AVX_VNNI, AVX2)}
"""By the name that the pass's option ``features`` takes; the fastest first."""
