"""GMAC/s of the CPU kernels, one row for each layer shape of well-known networks, on one thread.

    python test/benchmark/kernels.py [--variant=avx512vnni] [--float] [--tiles=N] [--resident] [--seconds=0.5]

Each kernel is compiled alone and called on buffers of its own layout; the time is that of its dispatch. Run it on an
idle machine: the fastest of three runs counts. With --resident a second time, marked *, is that of the same work on
two rows again and again, so that activations stay in the first cache: the most that fusing layers by rows could gain.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import tempfile
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

from mlir_passes.cpu.isa import VARIANTS, Isa
from mlir_passes.cpu.kernels.conv import Conv
from mlir_passes.cpu.kernels.depthwise import Depthwise
from mlir_passes.cpu.kernels.epilogue import MULTIPLIER, FloatForm, Form
from mlir_passes.cpu.tiles import choose_tile, ranked_tiles
from mlir_passes.kernels.text import NAME, Layout
from mlir_passes.kernels.windows import Window
from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target

# kind, output height and width, input channels, output channels, window, stride
SHAPES = (
    ("conv", 112, 3, 64, 7, 2), ("conv", 56, 64, 64, 3, 1), ("conv", 28, 64, 128, 3, 2), ("conv", 28, 128, 128, 3, 1),
    ("conv", 14, 256, 256, 3, 1), ("conv", 7, 512, 512, 3, 1), ("conv", 56, 64, 256, 1, 1),
    ("conv", 14, 1024, 256, 1, 1),
    ("conv", 112, 16, 96, 1, 1), ("conv", 56, 24, 144, 1, 1), ("conv", 56, 144, 24, 1, 1), ("conv", 14, 96, 576, 1, 1),
    ("conv", 7, 160, 960, 1, 1), ("conv", 7, 960, 160, 1, 1), ("conv", 1, 1280, 1000, 1, 1),
    ("depthwise", 112, 32, 32, 3, 1),
    ("depthwise", 56, 96, 96, 3, 2), ("depthwise", 56, 144, 144, 3, 1), ("depthwise", 14, 384, 384, 3, 1),
    ("depthwise", 7, 960, 960, 5, 1), ("grouped", 56, 128, 128, 3, 1), ("grouped", 28, 256, 256, 3, 1),
    ("grouped", 14, 512, 512, 3, 1),
)  # fmt: skip
GROUPS = 32


class Overlaid(Layout):
    """Images that all lie in the same place."""

    @property
    def image(self) -> int:
        """Bytes from image to image."""
        return 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.rows * self.pitch


def kernel(shape: tuple[str, int, int, int, int, int], isa: Isa, *, real: bool) -> Conv | Depthwise:
    """The kernel for one shape, with bounds as a ReLU6 has them."""
    kind, size, ci, co, window, stride = shape
    around, groups = window // 2, GROUPS if kind == "grouped" else 1
    if real:
        x = Layout(size * stride + 2 * around, size * stride + 2 * around, ci, floating=True)
        y, place = Layout(size, size, co, floating=True), Window((window, window), (stride, stride))
        tile = choose_tile(x, y, place, isa, group=1, groups=groups)
        return Conv(x, y, place, FloatForm((0.0, 6.0)), isa, tile, groups)
    packed = ci < 4
    x = Layout(size * stride, size * stride, ci, around, around, around, around + packed, packed=packed)
    y, place = Layout(size, size, co), Window((window, window), (stride, stride), (1, 1), around, around)
    if kind == "depthwise":
        return Depthwise(x, y, place, Form(MULTIPLIER), isa)
    tile = choose_tile(x, y, place, isa, groups=groups)
    return Conv(x, y, place, Form(MULTIPLIER), isa, tile, groups)


def resident(spec: Conv | Depthwise) -> Conv | Depthwise:
    """The same work on images of two rows that all lie in the same place; the height must be even."""
    above = (spec.y.h - 2) * spec.window.strides[0]
    extents = ((spec.x, spec.x.h - above), (spec.y, 2))
    x, y = (Overlaid(**{**vars(layout), "h": h, "images": spec.y.h // 2}) for layout, h in extents)
    if isinstance(spec, Depthwise):
        return replace(spec, x=x, y=y)
    return replace(spec, x=x, y=y, tile=replace(spec.tile, rows=min(spec.tile.rows, 2)))


def next_best(spec: Conv, count: int) -> list[Conv]:
    """The kernel with the tiles that the model takes for the best, at most ``count``; the first is its choice."""
    tiles = ranked_tiles(spec.x, spec.y, spec.window, spec.isa, spec.group, spec.groups)
    return [replace(spec, tile=tile) for tile in tiles[:count]]


def module(spec: Conv | Depthwise) -> tuple[str, list[str]]:
    """A program that calls the kernel on its arguments, and the arguments for IREE's tools."""
    element = spec.form.input_element
    channels = len(spec.pack_channels(np.zeros(spec.y.c, np.float32)))
    weights = spec.steps * channels * spec.group if isinstance(spec, Conv) else len(spec.starts) * spec.block_bytes
    arguments = [(element, spec.x.size), (element, weights), *spec.form.bindings(channels)]
    types = [f"tensor<{count}x{kind}>" for kind, count in arguments]
    names = [f"%a{i}" for i in range(len(types))]
    result = f"tensor<{spec.y.size}x{spec.form.result_element}>"
    declared = ", ".join(f"{name}: {kind}" for name, kind in zip(names, types, strict=True))
    text = f"""{spec.text().replace(NAME, "kernel")}
func.func @main({declared}) -> {result} {{
  %y = flow.dispatch @kernel::@kernel({", ".join(names)}) : ({", ".join(types)}) -> {result}
  return %y : {result}
}}"""
    return text, [f"--input={count}x{kind}=1" for kind, count in arguments]


def milliseconds(text: str, inputs: list[str], seconds: float) -> float:
    """The time of one dispatch, the fastest of three runs."""
    package = importlib.util.find_spec("iree._runtime_libs")
    assert package is not None
    assert package.submodule_search_locations
    tool = Path(package.submodule_search_locations[0]) / "iree-benchmark-module"
    with tempfile.TemporaryDirectory() as folder:
        program = compile_module(text.encode(), Target("cpu"), output_dir=Path(folder))
        command = [str(tool), f"--module={program.path}", "--device=local-sync", "--function=main", *inputs,
                   "--dispatch_statistics=true", f"--benchmark_min_time={seconds}s"]  # fmt: skip
        times = []
        for _ in range(3):
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            line = next(line for line in (out.stdout + out.stderr).splitlines() if line.startswith("BM_main/kernel"))
            times.append(float(line.split()[1]))
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="GMAC/s of the CPU kernels on one thread")
    parser.add_argument("--variant", choices=list(VARIANTS), default="avx512vnni")
    parser.add_argument("--float", action="store_true", dest="real", help="the f32 kernels")
    parser.add_argument("--tiles", type=int, default=1, metavar="N", help="measure the model's N best tiles")
    parser.add_argument("--resident", action="store_true", help="also on the same two rows again and again")
    parser.add_argument("--seconds", type=float, default=0.5, help="for one run")
    options = parser.parse_args()
    print(f"{'layer':<34} {'tile':<9} {'us':>8} {'GMAC/s':>8}")
    for shape in SHAPES:
        if options.real and shape[0] == "depthwise":
            continue
        first = kernel(shape, VARIANTS[options.variant], real=options.real)
        kind, size, ci, co, window, stride = shape
        name = f"{kind} {window}x{window}/{stride} {size}x{size} {ci}->{co}"
        specs = next_best(first, options.tiles) if isinstance(first, Conv) else [first]
        if options.resident:
            specs = [each for spec in specs if spec.y.h % 2 == 0 for each in (spec, resident(spec))]
        for spec in specs:
            extents = astuple(spec.tile) if isinstance(spec, Conv) else (spec.rows,)
            tile = "x".join(map(str, extents)) + "*" * isinstance(spec.y, Overlaid)
            took = milliseconds(*module(spec), options.seconds)
            print(f"{name:<34} {tile:<9} {took * 1e3:>8.1f} {spec.macs / took / 1e6:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
