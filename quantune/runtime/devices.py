"""Runtime devices: opening one, or saying in one line why there is none; and what this processor can do."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from quantune.compiler.inspect import Processor
from quantune.errors import EnvironmentFailure, UsageError
from quantune.process import children

logger = logging.getLogger(__name__)

DRIVERS = ("local-sync", "local-task", "vulkan", "cuda", "hip")
_ADVICE = {
    "vulkan": "install a Vulkan driver (Debian: mesa-vulkan-drivers and libvulkan1 for the software device)",
    "cuda": "install the NVIDIA driver, which provides libcuda.so, on a machine with such a GPU",
    "hip": "install the AMD ROCm runtime on a machine with such a GPU",
}
_task_threads: list[int] = []  # IREE's task system reads its flags once in a process


def open_device(device: str, *, threads: int = 1) -> Any:
    """Return the IREE device named by a driver or a device URI (``local-task``, ``vulkan://GPU-…``).

    threads: for local-task only; a process can have one thread count. Raises EnvironmentFailure when the machine has no
    such device, UsageError for a name that is no driver or a second thread count.
    """
    import iree.runtime as rt

    driver = device.partition("://")[0]
    if driver not in DRIVERS:
        raise UsageError(f"device '{device}': expected one of {', '.join(DRIVERS)}, or a URI such as vulkan://GPU-…")
    if threads < 1:
        raise UsageError(f"threads={threads}: expected 1 or more")
    if driver == "local-sync" and threads != 1:
        raise UsageError(f"device local-sync runs on one thread, not {threads}; use local-task")
    if driver == "local-task":
        _set_task_threads(threads)
    try:
        return rt.get_device(device)
    except (RuntimeError, ValueError) as error:
        advice = _ADVICE.get(driver, "check its name")
        raise EnvironmentFailure(f"no {driver} device for '{device}': {_reason(error)}; {advice}") from error


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(threads: int, processors: int) -> int:
    """How many of IREE's workers make the best use of ``threads`` processors out of ``processors``.

    A worker sleeps at the end of each dispatch, and waking it takes tens of microseconds where the processor went idle
    meanwhile. One worker more than there are processors keeps them awake; with processors to spare it would only be one
    more thread than asked for.
    """
    return threads + 1 if 1 < threads == processors else threads


def has_device(device: str) -> bool:
    """Whether this machine can open the device."""
    try:
        open_device(device)
    except EnvironmentFailure as error:
        logger.debug("%s", error)
        return False
    return True


@cache
def host_features() -> dict[str, bool]:
    """Return the processor features IREE's runtime knows by LLVM's names, and whether this machine has each.

    Empty when the runtime wheel has no tool that tells.
    """
    spec = importlib.util.find_spec("iree._runtime_libs")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        tool = Path(folder) / "iree-cpuinfo"
        if os.access(tool, os.X_OK):
            text = children.run([tool], timeout_s=30).stdout.decode("utf-8", "replace")
            pairs = (line.split() for line in text.splitlines())
            return {pair[0]: pair[1] == "1" for pair in pairs if len(pair) == 2}
    return {}


def check_processor(required: Processor, where: str) -> None:
    """Raise EnvironmentFailure when this machine lacks something a CPU program was compiled for.

    Without this check the program would end the process with an illegal instruction.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64", "arm_64": "aarch64"}
    wanted, host = (machine.get(name.lower(), name.lower()) for name in (required.architecture, platform.machine()))
    if wanted != host:
        raise EnvironmentFailure(f"{where}: compiled for {wanted}, this machine is {host}; compile it again here")
    known = host_features()
    if missing := [name for name in required.features if not known.get(name, True)]:
        raise EnvironmentFailure(
            f"{where}: compiled for a processor ({required.name}) with {', '.join(missing)}, which this one lacks; "
            "compile it again here, or for --target-cpu generic"
        )


def _set_task_threads(threads: int) -> None:
    import iree.runtime as rt

    if not _task_threads:
        rt.flags.parse_flags(f"--task_topology_group_count={workers(threads, processors())}")
        _task_threads.append(threads)
    if _task_threads[0] != threads:
        raise UsageError(
            f"local-task has {_task_threads[0]} threads in this process, and {threads} are asked for; start another"
        )


def _reason(error: Exception) -> str:
    """Return what IREE said, without its source position and its stack."""
    text = str(error).splitlines()[0].partition(": c/")[2] or str(error).splitlines()[0]
    text = text.partition(".c:")[2].partition(": ")[2] or text
    return text.partition("; creating device")[0].partition("; while")[0]
