"""Runtime devices: opening one, or saying in one line why there is none; and what this processor can do."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

from quantune.artifact.records import Processor
from quantune.errors import EnvironmentFailure, UsageError
from quantune.runtime.host import architecture, host_features

logger = logging.getLogger(__name__)

DRIVERS = ("local-sync", "local-task", "vulkan", "cuda", "hip")
_ADVICE = {
    "vulkan": "install a Vulkan driver (Debian: mesa-vulkan-drivers and libvulkan1 for the software device)",
    "cuda": "install the NVIDIA driver, which provides libcuda.so, on a machine with such a GPU",
    "hip": "install the AMD ROCm runtime on a machine with such a GPU",
}
_task_threads: list[int] = []  # IREE's task system reads its flags once in a process


def open_device(device: str, *, threads: int = 1) -> Any:
    """The IREE device named by a driver or a device URI (``local-task``, ``vulkan://GPU-…``).

    threads: for local-task only; a process can have one thread count. Raises EnvironmentFailure when the machine has no
    such device, UsageError for a name that is no driver or a second thread count.
    """
    import iree.runtime as rt

    driver = device.partition("://")[0]
    if driver not in DRIVERS:
        raise UsageError(
            f"device '{device:.60}': expected one of {', '.join(DRIVERS)}, or a URI such as vulkan://GPU-…"
        )
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


def check_processor(required: Processor, where: str) -> None:
    """Raise EnvironmentFailure when this machine lacks something a CPU program was compiled for.

    Without this check the program would end the process with an illegal instruction.
    """
    machine, has = architecture(platform.machine()), host_features()
    if reason := lacking(required, machine, has, "this machine"):
        raise EnvironmentFailure(f"{where}: {reason}; compile it again here, or for --target-cpu generic")


def lacking(required: Processor, machine: str, has: Mapping[str, bool], which: str) -> str | None:
    """Why a machine with these features (by LLVM's names) cannot run a program, or None where it can."""
    wanted = architecture(required.architecture)
    if wanted != machine:
        return f"compiled for {wanted}, {which} is {machine}"
    missing = [name for name in required.features if not has.get(name, True)]
    if missing:
        return f"compiled for a processor ({required.name}) with {', '.join(missing)}, which {which} lacks"
    return None


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
    """What IREE said, without its source position and its stack."""
    text = str(error).splitlines()[0].partition(": c/")[2] or str(error).splitlines()[0]
    text = text.partition(".c:")[2].partition(": ")[2] or text
    return text.partition("; creating device")[0].partition("; while")[0]
