"""The one table of targets: which IREE flags compile for one, and which runtime device runs the result."""

from __future__ import annotations

import difflib
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlir_passes.cpu.isa import VARIANTS, in_cpuinfo
from quantune.errors import UsageError

# name -> (aliases, field that refines it, what a user may write for that field)
_TABLE: dict[str, tuple[tuple[str, ...], str, str]] = {
    "cpu": (
        ("llvm-cpu",),
        "cpu",
        "host, generic or an LLVM processor name such as znver4 or neoverse-v1, with +FEATURE where it has more",
    ),
    "vulkan": (("vulkan-spirv",), "vulkan_target", "a GPU name such as llvmpipe, ada, rdna3"),
    "cuda": ((), "cuda_arch", "an architecture such as sm_80"),
}
CUDA_ARCHS = ("sm_60", "sm_61", "sm_70", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_120")
CUDA_NAMES = ("turing", "ampere", "ada", "a100", "rtx4090")
# Architectures IREE 3.13 cannot name. Their driver translates an older architecture's PTX when a program is loaded.
_NEWER_CUDA = ("sm_90", "sm_90a", "hopper", "h100", "h200", "sm_100", "sm_100a", "blackwell", "b200")
_SOFTWARE_VULKAN = ("lavapipe", "cpu", "swiftshader")
GENERIC_ARM = "arm64"
"""What a 64-bit Arm processor is called here that has no name; LLVM calls it generic, as it does every other."""
_ARM_WITHOUT_KERNELS = (
    "cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73", "carmel", "a64fx", "thunderx2t99",
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Target:
    """What an artifact is compiled for.

    name: cpu, vulkan or cuda. cpu: an LLVM processor name, ``host`` (this machine), ``generic`` or ``arm64``, and
    features that it has besides: ``x86-64-v3+avx512f+avx512bw``. cuda_arch: as IREE names it. vulkan_target: IREE's GPU
    name; it fixes the subgroup size, and a wrong one gives wrong results silently.
    Only the field that belongs to ``name`` has an effect. Raises UsageError for names IREE does not know.
    """

    name: str
    cpu: str = "host"
    cuda_arch: str = "sm_80"
    vulkan_target: str = "llvmpipe"

    def __post_init__(self) -> None:
        if self.name not in _TABLE:
            hint = _hint(self.name, _spellings())
            raise UsageError(f"target '{self.name}': expected one of {', '.join(_TABLE)}{hint}")
        field, example = _TABLE[self.name][1:]
        if not _WORD.fullmatch(self.detail):
            raise UsageError(f"target {self.name}: {field}='{self.detail}' is not a name; expected {example}")
        if self.name == "cuda":
            _check_cuda(self.cuda_arch)
        if self.name == "vulkan" and self.vulkan_target in _SOFTWARE_VULKAN:
            raise UsageError(f"target {self}: IREE knows no such GPU; the software device is called llvmpipe")

    @property
    def detail(self) -> str:
        """The processor, architecture or GPU name this target is refined by."""
        return getattr(self, _TABLE[self.name][1])

    @property
    def driver(self) -> str:
        """The runtime driver for one thread of control: local-sync, vulkan or cuda."""
        return self.device()

    def device(self, *, threads: int = 1) -> str:
        """Return the runtime device that runs this target's artifacts on ``threads`` processor threads."""
        if self.name != "cpu":
            return self.name
        return "local-sync" if threads == 1 else "local-task"

    def flags(self) -> tuple[str, ...]:
        """Return the iree-compile flags of this target."""
        if self.name == "vulkan":
            return ("--iree-hal-target-device=vulkan", f"--iree-vulkan-target={self.detail}", "--iree-opt-level=O3")
        if self.name == "cuda":
            return ("--iree-hal-target-device=cuda", f"--iree-cuda-target={self.detail}", "--iree-opt-level=O3")
        # The compiler takes its own machine's architecture unless told, and knows a processor's name in one only.
        triple = ("--iree-llvmcpu-target-triple=aarch64-unknown-linux-gnu",) if self.is_arm else ()
        name, *features = self.cpu.split("+")
        added = ",".join(f"+{feature}" for feature in features)
        return (
            "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu",
            *triple,
            f"--iree-llvmcpu-target-cpu={'generic' if name == GENERIC_ARM else name}",
            *((f"--iree-llvmcpu-target-cpu-features={added}",) if added else ()),
            "--iree-opt-level=O3",
        )

    @property
    def is_arm(self) -> bool:
        """Whether ``cpu`` is the name of a 64-bit Arm processor that quantune knows."""
        named = (cpu for isa in VARIANTS.values() if isa.arm for cpu in isa.cpus)
        return self.name == "cpu" and self.cpu.partition("+")[0] in (GENERIC_ARM, *_ARM_WITHOUT_KERNELS, *named)

    def kernels(self) -> str | None:
        """Return which of quantune's own CPU kernels run there (see mlir_passes.cpu.isa), or None for generic code."""
        if self.name != "cpu":
            return None
        flags = _host_flags() if self.cpu == "host" else _flags_of(self.cpu)
        return next((name for name, isa in VARIANTS.items() if isa.flags <= flags), None)

    def __str__(self) -> str:
        return f"{self.name}:{self.detail}"


def parse(text: str, **details: str | None) -> Target:
    """Read ``name`` or ``name:detail`` (``cpu``, ``llvm-cpu``, ``cpu:znver4``, ``cuda:sm_86``, ``vulkan:llvmpipe``).

    ``details`` are the fields of Target as options (cpu=, cuda_arch=, vulkan_target=); None leaves the default.
    Raises UsageError when the name is unknown or a detail is given twice or for another target.
    """
    word, colon, detail = text.strip().partition(":")
    name = next((n for n, (aliases, _, _) in _TABLE.items() if word.lower() in (n, *aliases)), word)
    chosen = {field: value for field, value in details.items() if value is not None}
    if name not in _TABLE:
        return Target(name)  # raises, with the list of names
    field, example = _TABLE[name][1:]
    for other in chosen:
        if other != field:
            raise UsageError(f"target {name}: {other}={chosen[other]} is for another target; {name} takes {example}")
    if colon and field in chosen:
        raise UsageError(f"target '{text}': {field} is given twice, as '{detail}' and as '{chosen[field]}'")
    if colon:
        chosen[field] = detail
    return Target(name, **chosen)


@cache
def host_identity() -> str:
    """Return a text that differs between processors with different instructions; part of a host program's cache key."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "features")
    return "\n".join(line for line in lines if line.partition(":")[0].strip().lower() in wanted)


@cache
def _host_flags() -> frozenset[str]:
    lines = host_identity().splitlines()
    wanted = (line for line in lines if line.startswith(("flags", "Features")))  # x86 and Arm
    return frozenset(flag for line in wanted for flag in line.partition(":")[2].split())


def _flags_of(cpu: str) -> frozenset[str]:
    """The flags of /proc/cpuinfo that the kernels ask for and a processor has by its name or its features."""
    name, *features = cpu.split("+")
    named = (isa.flags for isa in VARIANTS.values() if name in isa.cpus)
    arm = {"asimd"} if name == GENERIC_ARM else set()
    return frozenset().union(*named, arm, map(in_cpuinfo, features))


def _check_cuda(arch: str) -> None:
    if arch in CUDA_ARCHS or arch in CUDA_NAMES:
        return
    if arch.lower() in _NEWER_CUDA:
        raise UsageError(
            f"target cuda: IREE cannot compile for '{arch}'; compile for sm_80, sm_86 or sm_89: the PTX runs there too"
        )
    known = (*CUDA_ARCHS, *CUDA_NAMES)
    hint = _hint(arch, known)
    raise UsageError(f"target cuda: unknown architecture '{arch}', expected one of {', '.join(known)}{hint}")


def _spellings() -> tuple[str, ...]:
    return tuple(name for key, (aliases, _, _) in _TABLE.items() for name in (key, *aliases))


def _hint(value: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(value.lower(), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
