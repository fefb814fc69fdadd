"""Files from anywhere, read in a child process: models (.mlir, .mlirbc, .pt2, .onnx), and weights that torch saved."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from quantune import errors
from quantune.errors import QuantuneError, UsageError
from quantune.frontend.imported import ImportedModel, read_model
from quantune.process import children, scratch
from quantune.process.guard import ended

SUFFIXES = (".mlir", ".mlirbc", ".pt2", ".onnx")
"""How the names of such files end."""

_SECONDS, _SECONDS_PER_BYTE = 900.0, 1e-5  # far beyond the processor time it has: for machines that do other work too


def import_file(reference: str) -> ImportedModel:
    """Read a model's file. Raises UsageError for one that cannot be read, ImportFailed for one that is no network.

    Whatever the file does to its reader, crash, hang or growth, is a UsageError here.
    """
    source, what = model_file(reference), f"model '{reference}'"
    with _converted(source, "module.mlirbc", what) as output:
        return read_model(output.read_bytes(), Path(reference).stem)


@contextlib.contextmanager
def converted_weights(path: Path) -> Iterator[Path]:
    """The weights of a file that torch saved, as a file of safetensors for the time of the block.

    Raises UsageError for one that cannot be read, whatever it does to its reader.
    """
    with _converted(path, "weights.safetensors", f"weights '{path}'") as output:
        yield output


@contextlib.contextmanager
def _converted(source: Path, name: str, what: str) -> Iterator[Path]:
    """What the reader makes of a file, in a temporary folder."""
    size = source.stat().st_size
    with scratch.folder("read") as folder:
        output = folder / name
        status, told, said = _read(source, output, _SECONDS + size * _SECONDS_PER_BYTE)
        if status is None:
            raise UsageError(f"{what}: takes too long to read")
        if status:
            how = children.ending(status) if status > 0 else ended(-status)
            raise UsageError(f"{what}: its reader {how}{_last_words(said)}; expected a whole file")
        if (error := _error(told)) is not None:
            raise error
        if not output.is_file():
            raise UsageError(f"{what}: its reader wrote nothing; expected a whole file")
        yield output


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


def _error(told: bytes) -> QuantuneError | None:
    """The error that the reader answered, if it did."""
    try:
        answer = json.loads(told)
        if not answer:
            return None
        kind, message = getattr(errors, answer["error"]), answer["message"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return UsageError(f"the reader of the model answered {told[:80]!r}, which is of no use; try again")
    return kind(message) if issubclass(kind, QuantuneError) else UsageError(message)


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    telling = next((line for line in lines if "ERROR" in line), "")
    return f" ({telling[:200]})" if telling else ""
