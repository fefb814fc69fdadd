"""A device server for tests: in a thread of this process, or a process that may lack features of the processor."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from quantune.device.address import Address
from quantune.device.client import Device
from quantune.device.connection import Known
from quantune.device.server import Limits, Server

TOKEN = "correct horse battery staple"

ARM = "neoverse-n1"

_RESTRICTED = (
    f"ARM = {ARM!r}"
    + """
import dataclasses, sys
from quantune.device import identity
from quantune.runtime import devices, host

here, what = host.this_host(), sys.argv.pop(1)
if what == ARM:
    features = dict.fromkeys(("neon", "fullfp16", "dotprod", "crc", "lse", "rcpc", "ssbs", "aes", "sha2"), True)
    features["i8mm"] = features["bf16"] = False
    there = dataclasses.replace(here, architecture="aarch64", cpu="neoverse-n1", features=features, digest="another")
else:
    lacking = tuple(what.split(","))
    features = {name: has and not name.startswith(lacking) for name, has in host.host_features().items()}
    cpu = host.target_cpu(here.architecture, features)
    there = dataclasses.replace(here, features=features, cpu=cpu, digest="another")
identity.this_host = lambda: there
devices.host_features = lambda: features
from quantune.cli.device import main
sys.exit(main(sys.argv[1:]))
"""
)


@contextlib.contextmanager
def in_thread(
    store: Path, *, token: str | None = TOKEN, limits: Limits | None = None, port: int = 0
) -> Iterator[tuple[Server, Address]]:
    server = Server("127.0.0.1", port, token=token, store=store, limits=limits)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server, Address(*server.address, token or "", wait_s=1.0)
    finally:
        server.close()
        thread.join()


@contextlib.contextmanager
def as_process(
    store: Path, log: Path, *options: str, lacking: str = "", port: int = 0
) -> Iterator[tuple[subprocess.Popen, int]]:
    """The command, as a process; ``lacking``: how features begin that its processor then has not, or ARM."""
    main = ["-c", _RESTRICTED, lacking] if lacking else ["-m", "quantune.cli.device"]
    command = [sys.executable, *main, "serve", "--port", str(port), "--store", str(store), *options]
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline().decode()
            yield child, int(line.rpartition(":")[2])
        finally:
            child.kill()


def greet(address: Address) -> Known:
    """What a server says of itself."""
    with contextlib.closing(Device(address)) as device:
        return device.known
