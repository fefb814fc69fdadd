"""A device server for tests: in a thread of this process, or a process that may lack features of the processor."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from quantune.device.address import Address
from quantune.device.server import Limits, Server

TOKEN = "correct horse battery staple"

_RESTRICTED = """
import dataclasses, sys
from quantune.device import identity
from quantune.runtime import devices, host

lacking = sys.argv.pop(1).split(",")
features = {name: has and name not in lacking for name, has in host.host_features().items()}
here = host.this_host()
cpu = host.target_cpu(here.architecture, features)
identity.this_host = lambda: dataclasses.replace(here, features=features, cpu=cpu, digest="another")
devices.host_features = lambda: features
from quantune.cli.device import main
sys.exit(main(sys.argv[1:]))
"""


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
def as_process(store: Path, log: Path, *options: str, lacking: str = "") -> Iterator[tuple[subprocess.Popen, int]]:
    """The command, as a process; ``lacking`` names features that its processor then has not."""
    main = ["-c", _RESTRICTED, lacking] if lacking else ["-m", "quantune.cli.device"]
    command = [sys.executable, *main, "serve", "--port", "0", "--store", str(store), *options]
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline().decode()
            yield child, int(line.rpartition(":")[2])
        finally:
            child.kill()
