"""The one table of targets: one object for each kind, which says how to compile for it and what runs the result.

Flags, rewrites, checks and the command line's options come from ``BACKENDS``, the runtime device from
`quantune.artifact.targets`. A new kind is a subclass of ``Backend``, registered, a line of ``DEVICES`` there, and a
field of ``Target`` where it is refined by a name of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from mlir_passes.cpu.isa import VARIANTS, in_cpuinfo
from mlir_passes.vocabulary import Vocabulary
from quantune.artifact.targets import DEVICES, GENERIC_ARM, host_identity
from quantune.errors import UsageError, hint
from quantune.quantization.precisions import PRECISIONS

CUDA_ARCHS = ("sm_60", "sm_61", "sm_70", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_120")
CUDA_NAMES = ("turing", "ampere", "ada", "a100", "rtx4090")
# Architectures IREE 3.13 cannot name. Their driver translates an older architecture's PTX when a program is loaded.
_NEWER_CUDA = ("sm_90", "sm_90a", "hopper", "h100", "h200", "sm_100", "sm_100a", "blackwell", "b200")
_SOFTWARE_VULKAN = ("lavapipe", "cpu", "swiftshader")
HOST = "host"
"""The processor of the machine that compiles."""
_ARM_WITHOUT_KERNELS = (
    "cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73", "carmel", "a64fx", "thunderx2t99",
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Backend:
    """A kind of target.

    name: in ``name:detail``; aliases: other spellings. field: of Target, the name that refines it; expected: what it
    may be. option, metavar, help: of the command line, for that field.
    """

    name: str
    field: str
    expected: str
    option: str
    metavar: str
    help: str
    aliases: tuple[str, ...] = ()

    on_processor: ClassVar[bool] = False
    """Whether processors run it: several workers, with a memory limit, and LLVM's features say what it needs."""

    def check(self, detail: str) -> None:
        """Raise UsageError for a detail that IREE cannot compile for."""

    def flags(self, detail: str) -> tuple[str, ...]:
        """The flags of iree-compile."""
        raise NotImplementedError

    def kernels(self, detail: str) -> str | None:
        """Which of quantune's own kernels run there, or None for generic code."""
        return None

    def passes(self, detail: str, precision: str) -> tuple[str, ...]:
        """The last rewrites before IREE, besides layout: what code generation needs to be right or fast."""
        return ()

    def unknown(self, detail: str, log: str) -> str | None:
        """What to say where the compiler's output shows that it does not know ``detail``; None where it does."""
        return None


class _Cpu(Backend):
    on_processor = True

    def flags(self, detail: str) -> tuple[str, ...]:
        # The compiler takes its own machine's architecture unless told, and knows a processor's name in one only.
        triple = ("--iree-llvmcpu-target-triple=aarch64-unknown-linux-gnu",) if _is_arm(detail) else ()
        name, *features = detail.split("+")
        added = ",".join(f"+{feature}" for feature in features)
        return (
            "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu",
            *triple,
            f"--iree-llvmcpu-target-cpu={'generic' if name == GENERIC_ARM else name}",
            *((f"--iree-llvmcpu-target-cpu-features={added}",) if added else ()),
            "--iree-opt-level=O3",
        )

    def kernels(self, detail: str) -> str | None:
        flags = _host_flags() if detail == HOST else _flags_of(detail)
        return next((name for name, isa in VARIANTS.items() if isa.flags <= flags), None)

    def passes(self, detail: str, precision: str) -> tuple[str, ...]:
        kernels = self.kernels(detail)
        if kernels is None or PRECISIONS[precision].is_half:
            return ()
        return (f"quantune-lower-to-cpu-kernels{{features={kernels}}}",)

    def unknown(self, detail: str, log: str) -> str | None:
        if "Unknown CPU for target architecture" not in log:
            return None
        return "IREE knows no such processor; expected host, generic or an LLVM name such as znver4"


class _Vulkan(Backend):
    def check(self, detail: str) -> None:
        if detail in _SOFTWARE_VULKAN:
            raise UsageError(f"target vulkan:{detail}: IREE knows no such GPU; the software device is called llvmpipe")

    def flags(self, detail: str) -> tuple[str, ...]:
        return ("--iree-hal-target-device=vulkan", f"--iree-vulkan-target={detail}", "--iree-opt-level=O3")

    def passes(self, detail: str, precision: str) -> tuple[str, ...]:
        if PRECISIONS[precision].is_float:
            return ()
        return ("linalg-generalize-named-ops", "quantune-vulkan-sign-extension")

    def unknown(self, detail: str, log: str) -> str | None:
        if f"Unknown Vulkan target '{detail}'" not in log:
            return None
        return "IREE knows no such GPU; expected a name such as llvmpipe, ada, rdna3"


class _Cuda(Backend):
    def check(self, detail: str) -> None:
        if detail in CUDA_ARCHS or detail in CUDA_NAMES:
            return
        if detail.lower() in _NEWER_CUDA:
            raise UsageError(
                f"target cuda: IREE cannot compile for '{detail}'; compile for sm_80, sm_86 or sm_89: the PTX "
                "runs there too"
            )
        known = (*CUDA_ARCHS, *CUDA_NAMES)
        near = hint(detail.lower(), known)
        raise UsageError(f"target cuda: unknown architecture '{detail}', expected one of {', '.join(known)}{near}")

    def flags(self, detail: str) -> tuple[str, ...]:
        return ("--iree-hal-target-device=cuda", f"--iree-cuda-target={detail}", "--iree-opt-level=O3")


BACKENDS: Vocabulary[Backend] = Vocabulary("target")
"""By name; `DEVICES` has a line for each."""

register = BACKENDS.register
register(_Cpu(
    "cpu", "cpu",
    "host, generic or an LLVM processor name such as znver4 or neoverse-v1, with +FEATURE where it has more",
    "--target-cpu", "NAME", "processor of the cpu target (default host)", aliases=("llvm-cpu",),
))  # fmt: skip
register(_Vulkan(
    "vulkan", "vulkan_target", "a GPU name such as llvmpipe, ada, rdna3",
    "--vulkan-target", "NAME", "GPU of the vulkan target", aliases=("vulkan-spirv",),
))  # fmt: skip
register(_Cuda(
    "cuda", "cuda_arch", "an architecture such as sm_80",
    "--cuda-arch", "SM", "architecture of the cuda target, such as sm_80",
))  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What an artifact is compiled for.

    name: cpu, vulkan or cuda. cpu: an LLVM processor name, ``host`` (this machine), ``generic`` or ``arm64``, and
    features that it has besides: ``x86-64-v3+avx512f+avx512bw``. cuda_arch: as IREE names it. vulkan_target: IREE's GPU
    name; it fixes the subgroup size, and a wrong one gives wrong results silently.
    Only the field that belongs to ``name`` has an effect. Raises UsageError for names IREE does not know.
    """

    name: str
    cpu: str = HOST
    cuda_arch: str = "sm_80"
    vulkan_target: str = "llvmpipe"

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            spellings = tuple(name for each in BACKENDS.values() for name in (each.name, *each.aliases))
            near = hint(self.name.lower(), spellings)
            raise UsageError(f"target '{self.name}': expected one of {', '.join(BACKENDS)}{near}")
        kind = self.backend
        if not _WORD.fullmatch(self.detail):
            raise UsageError(
                f"target {self.name}: {kind.field}='{self.detail}' is not a name; expected {kind.expected}"
            )
        kind.check(self.detail)

    @property
    def backend(self) -> Backend:
        """Its kind."""
        return BACKENDS[self.name]

    @property
    def detail(self) -> str:
        """The processor, architecture or GPU name this target is refined by."""
        return getattr(self, self.backend.field)

    @property
    def on_processor(self) -> bool:
        """Whether processors run it, no GPU."""
        return self.backend.on_processor

    @property
    def is_host(self) -> bool:
        """Whether it is the processor of the machine that compiles, whatever that is."""
        return self.on_processor and self.detail == HOST

    @property
    def driver(self) -> str:
        """The runtime driver for one thread of control: local-sync, vulkan or cuda."""
        return self.device()

    def device(self, *, threads: int = 1) -> str:
        """The runtime device that runs this target's artifacts on ``threads`` processor threads."""
        return DEVICES[self.name][threads > 1]

    def flags(self) -> tuple[str, ...]:
        """The iree-compile flags of this target."""
        return self.backend.flags(self.detail)

    def kernels(self) -> str | None:
        """Which of quantune's own CPU kernels run there (see mlir_passes.cpu.isa), or None for generic code."""
        return self.backend.kernels(self.detail)

    def passes(self, precision: str) -> tuple[str, ...]:
        """The last rewrites before IREE, besides layout."""
        return self.backend.passes(self.detail, precision)

    def __str__(self) -> str:
        return f"{self.name}:{self.detail}"


def parse(text: str, **details: str | None) -> Target:
    """Read ``name`` or ``name:detail`` (``cpu``, ``llvm-cpu``, ``cpu:znver4``, ``cuda:sm_86``, ``vulkan:llvmpipe``).

    ``details`` are the fields of Target as options (cpu=, cuda_arch=, vulkan_target=); None leaves the default.
    Raises UsageError when the name is unknown or a detail is given twice or for another target.
    """
    word, colon, detail = text.strip().partition(":")
    kind = next((each for each in BACKENDS.values() if word.lower() in (each.name, *each.aliases)), None)
    chosen = {field: value for field, value in details.items() if value is not None}
    if kind is None:
        return Target(word)  # raises, with the list of names
    for other in chosen:
        if other != kind.field:
            raise UsageError(
                f"target {kind.name}: {other}={chosen[other]} is for another target; {kind.name} takes {kind.expected}"
            )
    if colon and kind.field in chosen:
        raise UsageError(f"target '{text}': {kind.field} is given twice, as '{detail}' and as '{chosen[kind.field]}'")
    if colon:
        chosen[kind.field] = detail
    return Target(kind.name, **chosen)


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


def _is_arm(cpu: str) -> bool:
    named = (name for isa in VARIANTS.values() if isa.arm for name in isa.cpus)
    return cpu.partition("+")[0] in (GENERIC_ARM, *_ARM_WITHOUT_KERNELS, *named)
