"""Who a thing belongs to: a process named so that others can tell, later, whether it is surely gone."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def lease() -> dict[str, Any]:
    """This process, written beside what it is at work on, so that others can tell whether it still is."""
    return {
        "host": socket.gethostname(), "boot": boot_id(), "space": pid_space(), "pid": os.getpid(),
        "started": started(os.getpid()),
    }  # fmt: skip


def lease_is_dead(value: object) -> bool:
    """Whether the process that wrote the lease is known to be gone; one on another machine is taken to live."""
    if not isinstance(value, Mapping):
        return True
    here = lease()
    return _is_dead({"space": here["space"], **value}, here)


def name() -> str:
    """This process in letters, digits and hyphens, for a file's name: no other process, ever, has the same."""
    return "-".join(str(value) for value in _short(lease()).values())


def name_is_dead(text: str) -> bool:
    """Whether the process that ``name`` names is known to be gone; what is no such name belongs to someone else."""
    values = text.split("-")
    here = _short(lease())
    if len(values) != len(here):
        return False
    return _is_dead(dict(zip(here, values, strict=True)), here)


def _short(value: Mapping[str, Any]) -> dict[str, str]:
    """The lease with values that fit into a name."""
    host = f"{value['host']} {_read('/etc/machine-id')}"
    return {
        "host": hashlib.sha256(host.encode()).hexdigest()[:8],
        "boot": re.sub("[^0-9a-f]", "", value["boot"])[:12] or "0",
        "space": re.sub("[^0-9]", "", value["space"]) or "0",
        "pid": str(value["pid"]),
        "started": str(value["started"]),
    }


def _is_dead(value: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    if value.get("host") != here["host"]:
        return False
    if value.get("boot") != here["boot"]:
        return True
    if value.get("space") != here["space"]:  # a container beside this one, which counts its processes itself
        return False
    pid = str(value.get("pid"))
    begun = started(int(pid)) if pid.isdecimal() else None
    # The start time guards against a process number that was given to someone else.
    return begun is None or begun != value.get("started")


def boot_id() -> str:
    """What the system calls the time since it was started; empty where it does not tell."""
    return _read("/proc/sys/kernel/random/boot_id")


def pid_space() -> str:
    """The name of the space in which process numbers are counted; empty where the system does not tell."""
    try:
        return Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """The start time of a process in clock ticks since boot, or None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
