"""How the layers of a compiled program run, and what it needs of a processor: plain data, kept with the artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerExecution:
    """How one layer's multiply-accumulate loop runs.

    layer: the name in its location, empty without one. op: conv, depthwise, matmul or kernel. macs: multiplications of
    one call. precision: what they multiply: i8 (of two 8-bit integers), another integer width, f32, f16, bf16, or
    UNKNOWN. dispatch: the name of the compiled function, as benchmarks print it.
    """

    layer: str
    op: str
    macs: int
    precision: str
    dispatch: str

    @property
    def is_integer(self) -> bool:
        """Whether the multiplications are integer ones."""
        return self.precision.startswith("i")


@dataclass(frozen=True)
class Processor:
    """What a CPU program was compiled for: architecture (x86_64), LLVM's processor name and its features (avx2, …)."""

    architecture: str
    name: str
    features: tuple[str, ...]


def integer_share(rows: Iterable[LayerExecution]) -> float:
    """The share of multiplications that are integer ones, 0 to 1 (0 when there are none)."""
    rows = tuple(rows)
    total = sum(row.macs for row in rows)
    return sum(row.macs for row in rows if row.is_integer) / total if total else 0.0
