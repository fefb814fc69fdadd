"""The command of a search with short measurements, and another program in the place of the compiler or of a worker."""

from __future__ import annotations

import atexit
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import quantune.compiler.checker
import quantune.compiler.iree
import quantune.frontend.files
import quantune.tuning.builder
import quantune.tuning.evaluator
from quantune.cli.entry import quantune_compile
from quantune.process import children
from quantune.runtime.measure import Effort


def main() -> NoReturn:
    """``quantune-compile``, with what the environment asks for.

    FAULT_COMPILER: another compiler. FAULT_MODULE: a faulty child in its place. FAULT_PATIENCE: seconds for a child.
    FAULT_FILE_SIZE: the most bytes that a file may have.
    """
    quantune.tuning.evaluator.QUICK = quantune.tuning.evaluator.FINAL = Effort(
        repetitions=2, min_seconds=0.01, warmup_seconds=0.0
    )
    if program := os.environ.get("FAULT_COMPILER"):
        os.environ["REAL_COMPILER"] = str(quantune.compiler.iree.find_compiler())
        quantune.compiler.iree.find_compiler = lambda: Path(program)
    if faulty := os.environ.get("FAULT_MODULE"):
        real = children.start_python

        def start_python(module: str, *arguments: str, **options: Any) -> Any:
            """Start another program, which is told which one it stands for."""
            instead = ["faulty_child"] if module == faulty else []
            return real(*instead, module, *arguments, **options)

        children.start_python = start_python
    if seconds := float(os.environ.get("FAULT_PATIENCE", "0")):
        for owner in (quantune.tuning.evaluator.Evaluator, quantune.tuning.builder.Builder):
            owner.__init__.__kwdefaults__["timeout_s"] = seconds
        quantune.compiler.checker._TIMEOUT_S = quantune.frontend.files._SECONDS = seconds
    if size := int(os.environ.get("FAULT_FILE_SIZE", "0")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    quantune_compile()


def fork(words: list[str], environment: dict[str, str], folder: Path, log: Path) -> NoReturn:
    """Become the command: of this process nothing is left but what it imported."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.path[:0] = [path for path in environment["PYTHONPATH"].split(":") if path not in sys.path]
    sys.argv = ["quantune-compile", *words]
    with log.open("wb") as stream, Path(os.devnull).open("rb") as nothing:
        for number, file in ((0, nothing), (1, stream), (2, stream)):
            os.dup2(file.fileno(), number)
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    main()
