"""How exact and how good int8 artifacts of torchvision's networks are, as a table.

  python test/benchmark/exactness.py [NAME ...] [--size N]

Random weights, batch norms calibrated to them; asymmetric, max, per channel; one image calibrates, another compares.

  bits      whether the compiled int8 program equals the numpy simulation in every bit
  int8 dB   SQNR of the compiled int8 program against f32
  fake dB   the same when only the operands of layers are rounded, in f32 arithmetic: what int8 could reach
  i8        share of the multiplications that the compiled program makes in 8-bit integers
  MB        of the f32 and the int8 program, and their ratio
  s         of the import and of the two compilations
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mlir_passes.network import Network, Node
from quantune.compiler.iree import compiler_version
from quantune.frontend.imported import ImportedModel
from quantune.frontend.models import ModelRequest, load_model
from quantune.numerics.affine import dequantize, quantize
from quantune.numerics.simulate import simulate
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import quantized  # the helpers of the end-to-end tests

NAMES = ("mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "googlenet", "resnet50")
COLUMNS = ("network", "bits", "int8 dB", "fake dB", "i8", "f32 MB", "int8 MB", "ratio", "import s", "f32 s", "int8 s")


def fake_quantized(model: ImportedModel, plan: QuantizationPlan, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The f32 network with the operands of its layers rounded to their integers and back."""

    def rounded(node: Node) -> Node:
        params = plan.weights.get(node.name)
        if params is None or node.weight is None:
            return node
        return replace(node, weight=dequantize(quantize(node.weight, params), params))

    network = Network(tuple(map(rounded, model.network.nodes)), model.network.outputs)
    read_by_layers = {node.inputs[0]: plan.activations[node.inputs[0]] for node in network.layers}
    return simulate(network, read_by_layers, {}, x)[network.outputs[0]]  # type: ignore[return-value]


def measure(name: str, size: int) -> tuple[str, ...]:
    """One row of the table."""
    start = time.monotonic()
    model = load_model(ModelRequest(f"torchvision:{name}", shape=(3, size, size)))
    imported = time.monotonic() - start
    images = np.random.default_rng(0).normal(0, 1, (2, 3, size, size)).astype(np.float32)
    calibration, x = np.split(images, 2)
    plan = quantized.plan_from_images(model, calibration, QuantConfig())
    exact = simulate(model.network, {}, {}, x)[model.network.outputs[0]]
    with tempfile.TemporaryDirectory() as folder:
        programs = {}
        for precision, numbers in (("f32", None), ("int8", plan)):
            lowered = quantized.lower(model, numbers, quantized.Form(), precision)
            programs[precision] = lowered, quantized.compile_to(lowered, Path(folder) / precision)
        lowered, module = programs["int8"]
        (actual,) = quantized.call(quantized.load(module, lowered), x)
        megabytes = {precision: made.path.stat().st_size / 1e6 for precision, (_, made) in programs.items()}
    share = quantized.integer_share(quantized.executions(model, module))
    same = np.array_equal(actual, quantized.reference(model, plan, x)[0])
    fake = fake_quantized(model, plan, x)
    return (
        f"{name} {size}",
        "equal" if same else "DIFFER",
        f"{quantized.sqnr_db(exact, actual):.1f}",
        f"{quantized.sqnr_db(exact, fake):.1f}",
        f"{share:.1%}",
        *(f"{megabytes[precision]:.2f}" for precision in ("f32", "int8")),
        f"{megabytes['int8'] / megabytes['f32']:.1%}",
        f"{imported:.1f}",
        *(f"{programs[precision][1].seconds:.1f}" for precision in ("f32", "int8")),
    )


def main() -> None:
    """Print the table, one row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="torchvision networks")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = []
    for name in arguments.names:
        rows.append(measure(name, arguments.size))
        console.print("  ".join(rows[-1]), highlight=False)
    table = Table(*COLUMNS, title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
                  f"IREE {compiler_version()}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
