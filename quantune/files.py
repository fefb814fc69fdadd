"""Models in files from anywhere, read in a child process: .mlir, .mlirbc and .pt2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from quantune import errors
from quantune.errors import UsageError
from quantune.guard import ended
from quantune.model import ImportedModel, read_model
from quantune.process import children, scratch

SUFFIXES = (".mlir", ".mlirbc", ".pt2")
"""How the names of such files end."""

_SECONDS, _SECONDS_PER_BYTE = 900.0, 1e-5  # far beyond the processor time it has: for machines that do other work too


def import_file(reference: str) -> ImportedModel:
    """Read a model's file. Raises UsageError for one that cannot be read, ImportFailed for one that is no network.

    Whatever the file does to its reader, crash, hang or growth, is a UsageError here.
    """
    path, source = Path(reference), model_file(reference)
    size = source.stat().st_size
    with scratch.folder("read") as folder:
        output = folder / "module.mlirbc"
        status, told, said = _read(source, output, _SECONDS + size * _SECONDS_PER_BYTE)
        if status is None:
            raise UsageError(f"model '{reference}': takes too long to read")
        if status:
            how = children.ending(status) if status > 0 else ended(-status)
            raise UsageError(f"model '{reference}': its reader {how}{_last_words(said)}; expected a whole file")
        answer = json.loads(told)
        if answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return read_model(output.read_bytes(), path.stem)


def model_file(reference: str) -> Path:
    """The file that a reference names; UsageError when there is none."""
    path = Path(reference)
    try:
        if path.is_file():
            return path
        reason = "is no file" if path.exists() else "No such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UsageError(f"model '{reference}': {reason}")


def _read(source: Path, output: Path, timeout_s: float) -> tuple[int | None, bytes, bytes]:
    """Run the reader; returns its exit status (None when it ran out of time), its answer and what it said."""
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    arguments = "quantune.frontend.reader", str(source), str(output)
    with children.start_python(*arguments, stdin=none, stdout=pipe, stderr=pipe) as child:
        try:
            told, said = child.communicate(timeout=timeout_s)
            return child.returncode, told, said
        except subprocess.TimeoutExpired:
            return None, b"", b""
        finally:
            children.kill(child)


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    telling = next((line for line in lines if "ERROR" in line), "")
    return f" ({telling[:200]})" if telling else ""
