"""The vector instructions of each CPU variant, as far as the kernels' descriptions differ by them."""

from __future__ import annotations

from dataclasses import dataclass

# Packs of two i32 vectors into i16, and of two i16 vectors into u8, both saturating and within 128-bit lanes.
_PACKS = {
    64: ("llvm.x86.avx512.packusdw.512", "llvm.x86.avx512.packuswb.512"),
    32: ("llvm.x86.avx2.packusdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.sse41.packusdw", "llvm.x86.sse2.packuswb.128"),
}


@dataclass(frozen=True)
class Isa:
    """One CPU variant. features: what the CPU must have. width: bytes of a vector; registers: how many there are."""

    name: str
    features: tuple[str, ...]
    width: int
    registers: int

    @property
    def lanes(self) -> int:
        """i32 or f32 numbers in a vector register: the channels of one block."""
        return self.width // 4

    def dot(self, width: int) -> str:
        """The intrinsic that adds, per i32 lane, the four products u8·s8 of vectors of ``width`` bytes."""
        return f"llvm.x86.avx512.vpdpbusd.{8 * width}"

    def packs(self, width: int) -> tuple[str, str]:
        """The intrinsics that pack i32 into u16 and i16 into u8, on vectors of ``width`` bytes."""
        return _PACKS[width]


AVX512_VNNI = Isa("avx512vnni", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 64, 32)
AVX_VNNI = Isa("avxvnni", ("avx2", "fma", "avxvnni"), 32, 16)

VARIANTS = {isa.name: isa for isa in (AVX512_VNNI, AVX_VNNI)}
"""By the name that the pass's option ``features`` takes; the fastest first."""
