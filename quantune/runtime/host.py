"""What this machine's processor is: its name, its features, and what to compile for it elsewhere."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quantune.artifact.targets import GENERIC_ARM, host_identity
from quantune.errors import EnvironmentFailure
from quantune.process import children

_CPUINFO = Path("/proc/cpuinfo")
_X86, _ARM = "x86_64", "aarch64"
_ARCHITECTURES = {"amd64": _X86, "arm64": _ARM, "arm_64": _ARM}
# /proc/cpuinfo -> LLVM. The first row is what x86-64-v3 and lower levels have, the second what comes on top.
_X86_BASE = {
    "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "cx16": "cx16", "lahf_lm": "sahf",
    "popcnt": "popcnt", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi1": "bmi", "bmi2": "bmi2",
    "abm": "lzcnt", "movbe": "movbe", "xsave": "xsave",
}  # fmt: skip
_X86_MORE = {
    "avx_vnni": "avxvnni", "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw",
    "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2", "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
}  # fmt: skip
_LEVELS = {
    "x86-64-v3": frozenset(_X86_BASE.values()),
    "x86-64-v2": frozenset({"sse3", "ssse3", "sse4.1", "sse4.2", "cx16", "sahf", "popcnt"}),
    "x86-64": frozenset(),
}
_ARM_MORE = {"asimddp": "dotprod", "i8mm": "i8mm", "asimdhp": "fullfp16", "bf16": "bf16"}
_NAMES = {_X86: _X86_BASE | _X86_MORE, _ARM: {"asimd": "neon", **_ARM_MORE}}
# Implementer and part of /proc/cpuinfo -> LLVM's name.
_ARM_PARTS = {
    ("0x41", "0xd03"): "cortex-a53", ("0x41", "0xd04"): "cortex-a35", ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd07"): "cortex-a57", ("0x41", "0xd08"): "cortex-a72", ("0x41", "0xd09"): "cortex-a73",
    ("0x41", "0xd0a"): "cortex-a75", ("0x41", "0xd0b"): "cortex-a76", ("0x41", "0xd0c"): "neoverse-n1",
    ("0x41", "0xd0d"): "cortex-a77", ("0x41", "0xd40"): "neoverse-v1", ("0x41", "0xd41"): "cortex-a78",
    ("0x41", "0xd44"): "cortex-x1", ("0x41", "0xd46"): "cortex-a510", ("0x41", "0xd47"): "cortex-a710",
    ("0x41", "0xd48"): "cortex-x2", ("0x41", "0xd49"): "neoverse-n2", ("0x41", "0xd4d"): "cortex-a715",
    ("0x41", "0xd4e"): "cortex-x3", ("0x41", "0xd4f"): "neoverse-v2", ("0x41", "0xd80"): "cortex-a520",
    ("0x41", "0xd81"): "cortex-a720", ("0x41", "0xd82"): "cortex-x4", ("0x41", "0xd84"): "neoverse-v3",
    ("0xc0", "0xac3"): "ampere1", ("0xc0", "0xac4"): "ampere1a",
}  # fmt: skip


@dataclass(frozen=True)
class Host:
    """A machine that runs artifacts.

    name: its processor, as the system calls it. architecture: x86_64, aarch64. cpu: what ``--target-cpu`` takes for it.
    features: by LLVM's names, whether it has each; one that is not here is not known. digest: differs between
    processors with different instructions. processors: how many may be used.
    """

    name: str
    architecture: str
    cpu: str
    features: dict[str, bool]
    digest: str
    processors: int


@cache
def this_host() -> Host:
    """Describe the machine this runs on."""
    machine, has = architecture(platform.machine()), host_features()
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    digest = hashlib.sha256(f"{machine} {host_identity()}".encode()).hexdigest()[:16]
    return Host(processor_name(), machine, target_cpu(machine, has, _read_cpuinfo()), dict(has), digest, count)


def architecture(name: str) -> str:
    """The one name used here for an architecture (amd64 and x86_64 are the same)."""
    return _ARCHITECTURES.get(name.lower(), name.lower())


def processor_name() -> str:
    """The processor as the system calls it."""
    found = re.search(r"^model name\s*: (.*)$", _read_cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


@cache
def host_features() -> dict[str, bool]:
    """The processor features that are known by LLVM's names, and whether this machine has each.

    Told by IREE's runtime, and by the system where it knows more. Empty where neither tells.
    """
    machine = architecture(platform.machine())
    names = _NAMES.get(machine, {})
    # An emulator may show the file of the machine below, whose lines have another name.
    lines = re.findall(rf"^{'Features' if machine == _ARM else 'flags'}\s*:(.*)$", _read_cpuinfo(), re.MULTILINE)
    everywhere = set.intersection(*(set(line.split()) for line in lines)) if lines else set()
    by_system = {llvm: flag in everywhere for flag, llvm in names.items()} if lines else {}
    return {**by_system, **_told_by_iree()}


def target_cpu(machine: str, has: dict[str, bool], cpuinfo: str = "") -> str:
    """What ``--target-cpu`` takes for a machine with these features: a name or a level, and what comes on top."""
    if machine == _X86:
        level = next(name for name, needed in _LEVELS.items() if all(has.get(each) for each in needed))
        more = [each for each in (*_X86_BASE.values(), *_X86_MORE.values()) if each not in _LEVELS[level]]
        return "+".join([level, *(each for each in more if has.get(each))])
    if machine != _ARM:
        return "generic"
    parts = set(re.findall(r"^CPU implementer\s*: (\S+)$(?:\n.+)*?\nCPU part\s*: (\S+)$", cpuinfo, re.MULTILINE))
    if len(parts) == 1 and (known := _ARM_PARTS.get(parts.pop())):
        return known
    return "+".join([GENERIC_ARM, *(each for each in _ARM_MORE.values() if has.get(each))])


def _told_by_iree() -> dict[str, bool]:
    spec = importlib.util.find_spec("iree._runtime_libs")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        tool = Path(folder) / "iree-cpuinfo"
        if os.access(tool, os.X_OK):
            try:
                text = children.run([tool], timeout_s=30).stdout.decode("utf-8", "replace")
            except (EnvironmentFailure, subprocess.TimeoutExpired):  # such as a tool of another system in an emulator
                return {}
            pairs = (line.split() for line in text.splitlines())
            return {pair[0]: pair[1] == "1" for pair in pairs if len(pair) == 2}
    return {}


def _read_cpuinfo() -> str:
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
