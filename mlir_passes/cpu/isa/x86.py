"""x86: dot products of VNNI, and without them products of 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlir_passes.cpu.isa.base import Isa, register, vectors

if TYPE_CHECKING:
    from mlir_passes.kernels.text import Kernel

# Packs of two i32 vectors into i16, and of two i16 vectors into u8, both saturating and within 128-bit lanes.
_PACKS = {
    64: ("llvm.x86.avx512.packusdw.512", "llvm.x86.avx512.packuswb.512"),
    32: ("llvm.x86.avx2.packusdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.sse41.packusdw", "llvm.x86.sse2.packuswb.128"),
}
_PRODUCT_SUMS = {32: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.sse2.pmadd.wd"}


class _X86(Isa):
    def narrow(self, k: Kernel, sums: Sequence[str], width: int) -> str:
        """Emit two saturating packs."""
        wide, words, data = vectors(width)
        to_words, to_bytes = _PACKS[width]
        packed = [k.intrinsic(to_words, list(pair), [wide] * 2, words) for pair in (sums[:2], sums[2:])]
        return k.intrinsic(to_bytes, packed, [words] * 2, data)


@dataclass(frozen=True)
class Vnni(_X86):
    """Four products a lane in one instruction."""

    products = {"vpdpb": "i8", "vpdpw": "i16"}  # noqa: RUF012

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit VPDPBUSD."""
        sums, _, data = vectors(width)
        return k.intrinsic(f"llvm.x86.avx512.vpdpbusd.{8 * width}", [acc, x, weight], [sums, data, data], sums)


@dataclass(frozen=True)
class Avx2(_X86):
    """Two products a lane at a time, of 16 bits: those of bytes would saturate."""

    products = {"pmadd.wd": "i16", "pmaddw": "i16", "pmaddub": "i8"}  # noqa: RUF012

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit products of even and odd bytes apart, widened to 16 bits."""
        sums, words, data = vectors(width)
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


AVX512_VNNI = register(Vnni(
    "avx512vnni", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 64, 32,
    (
        "cascadelake", "cooperlake", "icelake-client", "icelake-server", "rocketlake", "tigerlake", "sapphirerapids",
        "emeraldrapids", "graniterapids", "graniterapids-d", "znver4", "znver5",
    ),
))  # fmt: skip
AVX_VNNI = register(Vnni(
    "avxvnni", ("avx2", "fma", "avxvnni"), 32, 16,
    (
        "alderlake", "raptorlake", "meteorlake", "gracemont", "arrowlake", "arrowlake-s", "lunarlake", "pantherlake",
        "sierraforest", "grandridge", "clearwaterforest",
    ),
))  # fmt: skip
AVX2 = register(Avx2(
    "avx2", ("avx2", "fma"), 32, 13,
    (
        "haswell", "broadwell", "skylake", "skylake-avx512", "cannonlake", "x86-64-v3", "x86-64-v4", "znver1", "znver2",
        "znver3",
    ),
))  # fmt: skip
