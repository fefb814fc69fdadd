"""What CUDA artifacts are made of: instructions in their PTX, and whether ptxas assembles them. Needs no GPU.

python test/benchmark/ptx.py [MODEL] [--calib DATA] [--arch sm_80] [--assemble sm_80,sm_90]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from quantune.api import make_builder
from quantune.artifact.records import integer_share
from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target
from quantune.quantization.config import QuantConfig

GROUPS = {
    "tensor core mma": r"\b(?:wmma|mma)\.",
    "dp4a": r"\bdp4a\b",
    "integer mad": r"\bmad(?:\.\w+)*\.[su](?:16|32)\b",
    "f32 fma": r"\bfma\.rn\.f32\b",
    "f16 fma": r"\bfma\.rn\.f16(?:x2)?\b",
}


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:mobilenet_v2_shapes")
    parser.add_argument("--calib", default="builtin:shapes?count=100")
    parser.add_argument("--arch", default="sm_80")
    parser.add_argument("--assemble", default="sm_80,sm_90")
    arguments = parser.parse_args(argv)
    target = Target("cuda", cuda_arch=arguments.arch)
    builder = make_builder(arguments.model, calib=arguments.calib, target=target, sizes=(1000,))
    assembler = shutil.which("ptxas")
    table = Table(show_edge=False)
    for heading in (
        "",
        "MB",
        "MACs in integers",
        "kernels",
        *GROUPS,
        *(f"ptxas {a}" for a in arguments.assemble.split(",")),
    ):
        table.add_column(heading)
    for precision in ("int8", "f16", "f32"):
        with tempfile.TemporaryDirectory(prefix="quantune-ptx-") as folder:
            lowered = builder.lower(QuantConfig(precision=precision))
            dump = Path(folder) / "dump"
            program = compile_module(lowered.module, target, output_dir=Path(folder), dump_executables=dump)
            files = sorted(dump.rglob("*.ptx"))
            text = "\n".join(file.read_text() for file in files)
            counts = Counter({name: len(re.findall(pattern, text)) for name, pattern in GROUPS.items()})
            table.add_row(
                precision,
                f"{program.path.stat().st_size / 1e6:.2f}",
                f"{integer_share(builder.executed(program)):.1%}",
                str(len(re.findall(r"\.entry\b", text))),
                *(str(counts[name]) for name in GROUPS),
                *(assemble(assembler, files, arch) for arch in arguments.assemble.split(",")),
            )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def assemble(assembler: str | None, files: list[Path], arch: str) -> str:
    """How many of the PTX files ptxas accepts for an architecture."""
    if assembler is None:
        return "not installed"
    results = [
        subprocess.run([assembler, f"-arch={arch}", str(file), "-o", "/dev/null"], capture_output=True)
        for file in files
    ]
    return f"{sum(r.returncode == 0 for r in results)} of {len(files)}"


if __name__ == "__main__":
    sys.exit(main())
