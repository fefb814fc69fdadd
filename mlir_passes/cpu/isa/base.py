"""What kernels for CPUs ask of an instruction set, and the table of those there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlir_passes.kernels.windows import widest
from mlir_passes.vocabulary import Vocabulary

if TYPE_CHECKING:
    from mlir_passes.kernels.text import Kernel, Layout


_IN_CPUINFO = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "dotprod": "asimddp", "neon": "asimd"}


@dataclass(frozen=True)
class Isa:
    """The vector instructions of one CPU variant; a subclass says how they multiply u8 by s8.

    features: what the CPU must have, as LLVM names it. width: bytes of a vector. registers: how many vectors a tile may
    hold. cpus: LLVM's names of processors that have it.

    arm: whether it is of 64-bit Arm, else of x86. zero: the u8 that the products take for 0. products: parts of the
    names of the intrinsics that multiply, and the type of what they multiply.
    """

    name: str
    features: tuple[str, ...]
    width: int
    registers: int
    cpus: tuple[str, ...]

    arm: ClassVar[bool] = False
    zero: ClassVar[int] = 0
    products: ClassVar[dict[str, str]] = {}

    @property
    def flags(self) -> frozenset[str]:
        """What the CPU must have, as /proc/cpuinfo names it."""
        return frozenset(in_cpuinfo(feature) for feature in self.features)

    @property
    def lanes(self) -> int:
        """i32 or f32 numbers in a vector register: the channels of one block."""
        return self.width // 4

    def fitting(self, layout: Layout) -> int:
        """Channels of the widest vector that a pixel fills; any pixel of stored integers has room for 16."""
        if layout.floating:
            return widest(self.lanes, layout.c)
        return max(16, widest(self.width, layout.c))

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit, per i32 lane, acc plus the four products of u8 ``x`` less ``zero`` and s8 ``weight``.

        The two are vectors of ``width`` bytes.
        """
        raise NotImplementedError

    def narrow(self, k: Kernel, sums: Sequence[str], width: int) -> str:
        """Emit the bytes of four vectors of i32 lanes that hold u8, joined within each 128 bits; ``width`` bytes."""
        raise NotImplementedError


VARIANTS: Vocabulary[Isa] = Vocabulary("instruction set")
"""By the name that the pass's option ``features`` takes; of each architecture the fastest first."""

register = VARIANTS.register


def in_cpuinfo(feature: str) -> str:
    """What /proc/cpuinfo calls a feature that LLVM names."""
    return _IN_CPUINFO.get(feature, feature)


def vectors(width: int) -> tuple[str, str, str]:
    """The types of a vector of ``width`` bytes: as i32, i16 and i8."""
    return f"vector<{width // 4}xi32>", f"vector<{width // 2}xi16>", f"vector<{width}xi8>"
