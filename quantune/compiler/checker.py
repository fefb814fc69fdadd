"""Whether a compiled program is whole: what a compiler wrote is believed only after it was read and loaded once.

A .vmfb is laid out as a zip archive, with a checksum of each part that the compiler computed before it wrote. They tell
a file that is cut, filled with noise or has changed bits, in data and in machine code alike. Then a child loads the
program into IREE's virtual machine, which verifies its tables and its bytecode; that needs no device, so programs for a
GPU that is elsewhere are checked in the same way. Nothing is run: a program that is whole and computes something else
is found by comparing the artifact with its trial, not here.

The child is kept for the next program. It is this module: ``python -m quantune.compiler.checker``.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import zipfile
from pathlib import Path

from quantune.process.servant import Lost, Servant

logger = logging.getLogger(__name__)

_TIMEOUT_S = 120.0
_MODULE = "module.fb"
_lock = threading.Lock()
_servant: Servant | None = None


def damage(path: Path) -> str | None:
    """What is wrong with a compiled program, in words that follow "wrote", or None when it is whole."""
    try:
        if not path.stat().st_size:
            return "no artifact"
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = archive.namelist()
    except FileNotFoundError:
        return "no artifact"
    except Exception as error:  # zipfile raises whatever it stumbles over
        return f"something that is not a whole .vmfb ({error})"
    if broken:
        return f"a .vmfb of which {broken} is damaged"
    if _MODULE not in names:
        return "something that is not a .vmfb"
    return _load(path)


def prepare() -> None:
    """Start the child ahead of the first check, without waiting for it."""
    _kept().start()


def close() -> None:
    """End the child."""
    global _servant
    with _lock:
        servant, _servant = _servant, None
    if servant is not None:
        servant.close()


def _load(path: Path) -> str | None:
    try:
        answer = _kept().request({"path": str(path)}, timeout_s=_TIMEOUT_S)
    except Lost as error:
        return f"a .vmfb that cannot be loaded: {error}"
    return f"a .vmfb that cannot be loaded: {answer['message']}" if "error" in answer else None


def _kept() -> Servant:
    global _servant
    with _lock:
        if _servant is None:
            _servant = Servant("quantune.compiler.checker")
        return _servant


def _forget() -> None:
    """A fork has a child of its own."""
    global _servant, _lock
    _servant, _lock = None, threading.Lock()


def main() -> int:
    """Load programs until standard input ends: a path on each line, an answer for each."""
    import iree.runtime as rt

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to standard error
    instance = rt.VmInstance()
    for line in sys.stdin:
        try:
            rt.VmModule.mmap(instance, json.loads(line)["path"])
            answer = {"result": {}}
        except Exception as error:  # an answer, whatever happens
            text = str(error).partition(": c/")[2] or str(error)
            answer = {"error": type(error).__name__, "message": text.splitlines()[0] if text else "no reason given"}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


atexit.register(close)
os.register_at_fork(after_in_child=_forget)

if __name__ == "__main__":
    sys.exit(main())
