"""The instruction sets that kernels for CPUs are written for: one file an architecture, one class a way to multiply."""

from __future__ import annotations

from mlir_passes.cpu.isa import arm, x86
from mlir_passes.cpu.isa.base import VARIANTS, Isa, in_cpuinfo, register

__all__ = ["VARIANTS", "Isa", "arm", "in_cpuinfo", "register", "x86"]
