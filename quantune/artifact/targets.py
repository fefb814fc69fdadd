"""What whoever runs an artifact has to know of its target: plain data, for which no compiler is needed."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

GENERIC_ARM = "arm64"
"""What a 64-bit Arm processor is called here that has no name; LLVM calls it generic, as it does every other."""

DEVICES: dict[str, tuple[str, str]] = {
    "cpu": ("local-sync", "local-task"),
    "vulkan": ("vulkan", "vulkan"),
    "cuda": ("cuda", "cuda"),
}
"""Kind of target -> the runtime device that runs it on one processor thread, and on several."""


def device_of(target: str, threads: int = 1) -> str | None:
    """The runtime device of a target by its text, as records have it; None for a kind that is not known here."""
    found = DEVICES.get(target.partition(":")[0])
    return found and found[threads > 1]


@cache
def host_identity() -> str:
    """A text that differs between processors with different instructions; part of a host program's cache key."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "features")
    return "\n".join(line for line in lines if line.partition(":")[0].strip().lower() in wanted)
