"""What a device says of itself when it is greeted."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from quantune.device.jobs import LOCAL
from quantune.errors import EnvironmentFailure
from quantune.runtime.devices import open_device
from quantune.runtime.host import this_host
from quantune.versions import VERSION


def describe(device: str = LOCAL) -> dict[str, Any]:
    """A device as plain data. Raises EnvironmentFailure where there is no runtime or no such device."""
    if device != LOCAL:
        open_device(device)
    host = this_host()
    return {
        "device": device,
        "name": host.name,
        "architecture": host.architecture,
        "cpu": host.cpu,
        "features": host.features,
        "digest": host.digest,
        "processors": host.processors,
        "system": f"{platform.system()} {platform.release()}",
        "iree": runtime_version(),
        "quantune": VERSION,
    }


def runtime_version() -> str:
    """The version of IREE's runtime here; EnvironmentFailure without one."""
    try:
        return importlib.metadata.version("iree-base-runtime")
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentFailure("the package iree-base-runtime is not installed") from None
