"""The process that outlives its owner for a moment: ``python -I -S watcher.py TOKEN FOLDER``, a pipe as its input.

The owner holds the other end of the pipe, so that the input ends when the owner does, however it ends. Then every
process that carries the token in its environment is killed, stopped ones too, and the owner's temporary folder removed.
A child has the token from the owner (quantune.process.children) and hands it down to its own children.

A file of its own that imports nothing but the standard library: it starts in milliseconds, and beside every command.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

VARIABLE = "QUANTUNE_OWNERS"
_QUIET_ROUNDS = 3
_ROUNDS = 100
_PAUSE_S = 0.1


def main() -> None:
    """Wait for the end of the owner, then end what it left behind."""
    token, folder = sys.argv[1:]
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the owner, whose end is what counts
    while os.read(0, 64):
        pass
    # A child has its environment only once it runs its own program: one that was just being started is found later.
    quiet = 0
    for _ in range(_ROUNDS):
        quiet = 0 if kill(token) else quiet + 1
        if quiet == _QUIET_ROUNDS:
            break
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def kill(token: str) -> int:
    """Kill all processes that carry the token; returns how many there were."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _carries(entry, token):
            found += 1
            try:
                os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it ended by itself
    return found


def _carries(process: Path, token: str) -> bool:
    try:
        values = (process / "environ").read_bytes().split(b"\0")
    except OSError:  # someone else's, or gone
        return False
    owners = next((value for value in values if value.startswith(f"{VARIABLE}=".encode())), b"")
    return token.encode() in owners.partition(b"=")[2].split(b":")


if __name__ == "__main__":
    main()
