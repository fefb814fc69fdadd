"""The child process that reads a file of others: ``python -m quantune.frontend.reader FILE OUTPUT``.

What torch and MLIR do to this process on a file made for that, the process that asked lives on (see files.py). OUTPUT
becomes the imported module as bytecode, or the weights where it ends in .safetensors; standard output gets one JSON
object, {} or the error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from quantune.errors import QuantuneError, UsageError, missing
from quantune.process.guard import bounded

_LOWERING_SECONDS = 60.0  # of processor time: torch-mlir's passes are part of reading a program


def main(arguments: list[str]) -> int:
    """Read one file and tell how that went."""
    path, output = map(Path, arguments)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints belongs to the log
    answer: dict[str, str] = {}
    what = "weights" if output.suffix == ".safetensors" else "model"
    try:
        output.write_bytes(_weights(path) if what == "weights" else _model(path))
    except QuantuneError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        answer = {"error": UsageError.__name__, "message": f"{what} '{path}': takes too much memory to read"}
    except RecursionError:
        answer = {"error": UsageError.__name__, "message": f"{what} '{path}': is nested too deeply"}
    print(json.dumps(answer), file=answers, flush=True)
    return 0


def _weights(path: Path) -> bytes:
    from safetensors.torch import save

    from quantune.frontend.checkpoints import tensors

    with bounded(path.stat().st_size):
        return save(tensors(path))


def _model(path: Path) -> bytes:
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".pt2":
        from quantune.frontend.importer import import_program
        from quantune.frontend.pt2 import read_program

        with bounded(path.stat().st_size, _LOWERING_SECONDS):
            return import_program(read_program(path), path.stem).bytecode
    import torch_mlir.ir  # noqa: F401 - before the bounds: what it maps is not the file's fault

    from quantune.frontend.imported import read_model

    source = path.read_bytes()
    with bounded(len(source)):
        return read_model(source, path.stem).bytecode


def _onnx(path: Path) -> bytes:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise missing(error, "onnx", "reads and writes ONNX files") from error
    from quantune.frontend.importer import import_program
    from quantune.frontend.onnx_files import read_onnx

    with bounded(path.stat().st_size, _LOWERING_SECONDS):
        return import_program(read_onnx(path), path.stem).bytecode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
