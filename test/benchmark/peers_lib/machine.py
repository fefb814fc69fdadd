"""The processor: its features, its clock, and how many multiplications a second they allow."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPU_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
# Precision -> flag, instruction and multiply-adds of one instruction, the widest first: those that quantune's kernels
# use. Of int8 without dot products there is no such number, as a multiplication takes several instructions.
INSTRUCTIONS = {
    "int8": (("avx512_vnni", "vpdpbusd zmm", 64), ("avx_vnni", "vpdpbusd ymm", 32)),
    "f32": (("avx512f", "vfmadd zmm", 16), ("fma", "vfmadd ymm", 8)),
}
A_CYCLE = 2  # of these instructions, on processors with two full-width units
CPU_INFO = Path("/proc/cpuinfo")

# long f(long n): n times eight dependent 32-bit multiplications of three cycles each, which no x86-64 core shortens.
CHAIN = bytes.fromhex("0fafc0" * 8 + "48ffcf" + "75e3" + "c3")  # imul eax, eax; …; dec rdi; jne; ret
CHAIN_CYCLES = 24
CHAIN_LOOPS, CHAIN_RUNS = 10_000, 500


@dataclass(frozen=True)
class Peak:
    """Multiply-adds that one core could do at best, in GMAC/s, and the formula with its numbers."""

    gmac_per_s: float
    formula: str


def cpu_flags() -> list[str]:
    """Which of CPU_FLAGS this processor has."""
    words = set(CPU_INFO.read_text().split()) if CPU_INFO.is_file() else set()
    return [flag for flag in CPU_FLAGS if flag in words]


def clock() -> tuple[float, str] | None:
    """This core's clock in GHz and where it comes from; None where neither a measurement nor the system tells."""
    try:
        return _measured_clock(), "measured"
    except OSError:
        listed = re.findall(r"^cpu MHz\s*: ([\d.]+)$", CPU_INFO.read_text(), re.MULTILINE) if CPU_INFO.is_file() else []
    return (max(map(float, listed)) / 1000, str(CPU_INFO)) if listed else None


def _measured_clock() -> float:
    """The clock in GHz from a chain of instructions whose cycles are known; OSError where it cannot run.

    The fastest run counts: the others were interrupted, or came before the clock had risen.
    """
    if platform.machine() != "x86_64" or platform.system() == "Windows":
        raise OSError(f"no chain of instructions for {platform.system()} {platform.machine()}")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(CHAIN)
    held = ctypes.c_char.from_buffer(page)
    chain = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(ctypes.addressof(held))
    fastest = min(_nanoseconds(chain) for _ in range(CHAIN_RUNS))
    return CHAIN_LOOPS * CHAIN_CYCLES / fastest


def _nanoseconds(chain: Callable[[int], int]) -> int:
    start = time.perf_counter_ns()
    chain(CHAIN_LOOPS)
    return time.perf_counter_ns() - start


def peak(precision: str, flags: list[str], ghz: tuple[float, str] | None) -> Peak | None:
    """One core's arithmetic peak at a precision; None where instruction set or clock are unknown."""
    known = [entry for entry in INSTRUCTIONS[precision] if entry[0] in flags]
    if ghz is None or not known:
        return None
    (_, instruction, macs), (rate, source) = known[0], ghz
    value = A_CYCLE * macs * rate
    return Peak(
        value, f"{A_CYCLE} {instruction} a cycle x {macs} MACs x {rate:.2f} GHz ({source}) = {value:.0f} GMAC/s"
    )
