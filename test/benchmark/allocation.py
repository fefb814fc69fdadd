"""Per-layer bit widths against uniform ones of the same size: accuracy of the artifacts, seconds of the allocation.

  python test/benchmark/allocation.py [MODEL] [--calib DATA] [--eval DATA] [--bits 8,6,5,4,3] [--max-drop …]

For each uniform width its weights' bytes are the budget of an allocation by each scorer, with the same other settings.
Every row is an artifact, compiled and run on all evaluation images from its file. With --times only the seconds of
scoring and allocating are measured, for a network of random weights at 224x224 and in a cold cache of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from quantune import api
from quantune.allocation.base import Scorer
from quantune.allocation.orthogonality import Orthogonality
from quantune.allocation.output_error import OutputError
from quantune.allocation.solve import Budget
from quantune.allocation.sqnr import Sqnr
from quantune.cache import ArtifactCache
from quantune.data.base import ImageSource
from quantune.data.sources import open_source
from quantune.data.splits import Split
from quantune.quantization.bits import BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.quantization.space import CALIBRATION_SIZES
from quantune.tuning.bit_widths import Allocator
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator

SCORERS: dict[str, Scorer] = {
    "sqnr": Sqnr(),
    "sqnr-128": Sqnr(images=128),
    "sqnr-f32": Sqnr(against="f32"),
    "output-error": OutputError(),
    "orthogonality-1e-9": Orthogonality(beta=1e-9),
    "orthogonality": Orthogonality(),
}


class Noise(ImageSource):
    """Reproducible noise with arbitrary labels."""

    def __init__(self, count: int, size: int) -> None:
        self.name, self.shape, self.classes = "noise", (3, size, size), 1000
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.random.default_rng(index).standard_normal(self.shape, np.float32), index % 1000


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--calib", default="builtin:shapes")
    parser.add_argument("--eval", default="builtin:shapes")
    parser.add_argument("--bits", default="8,6,5,4,3", help="uniform widths, whose sizes are the budgets")
    parser.add_argument("--config", default="", help="the other settings, such as clip=mse,calib=1000")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--scorers", default=",".join(SCORERS), help="some of " + ", ".join(SCORERS))
    parser.add_argument("--times", action="store_true", help="only the seconds, at 224x224")
    arguments = parser.parse_args(argv)
    scorers = {name: SCORERS[name] for name in arguments.scorers.split(",")}
    model = arguments.model or "torchvision:mobilenet_v2"
    rows = times(model, scorers) if arguments.times else accuracies(arguments, scorers)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)
    return 0


def _first(reference: str, role: str) -> Split:
    """All images in their own order, as in the tables of docs/bits.md: a set whose images are drawn at random."""
    source = open_source(reference, role)
    return Split(source, tuple(range(len(source))))


def accuracies(arguments: argparse.Namespace, scorers: dict[str, Scorer]) -> list[dict[str, Any]]:
    """A row for each uniform width and each allocation of its size."""
    calib = _first(arguments.calib, "calibration")
    builder = api.make_builder(
        arguments.model or "builtin:mobilenet_v2_shapes", calib=calib, target="cpu", sizes=CALIBRATION_SIZES
    )
    config = QuantConfig.parse(arguments.config) if arguments.config else QuantConfig()
    allocator, rows = Allocator(builder, config=config), []
    seconds = {name: _seconds(lambda by=by: allocator.scores(by)) for name, by in scorers.items()}
    with Evaluator(builder, _first(arguments.eval, "evaluation")) as evaluator:
        _ = evaluator.images  # written once, before a file is verified on them
        rows.append(_row(evaluator, "f32", 32, QuantConfig(precision="f32"), 0))
        for width in map(int, arguments.bits.split(",")):
            uniform = BitWidths(LayerBits(width))
            limit = allocator.weight_bytes(uniform)
            rows.append(_row(evaluator, "uniform", width, _with(config, uniform), limit))
            if width == 8:
                continue
            for name, by in scorers.items():
                begin = time.monotonic()
                bits = allocator.allocate(by, [Budget(allocator.sizes, limit)]).bits
                row = _row(evaluator, name, width, _with(config, bits), allocator.weight_bytes(bits))
                rows.append({**row, "scoring_s": seconds[name], "allocation_s": time.monotonic() - begin - row["s"]})
    return rows


def times(model: str, scorers: dict[str, Scorer]) -> list[dict[str, Any]]:
    """Seconds of each scorer from a model that is imported and calibrated, compilations included, nothing cached."""
    rows = []
    for name, by in scorers.items():
        with tempfile.TemporaryDirectory() as folder:
            builder = api.make_builder(
                model, calib=Noise(128, 224), target="cpu", sizes=(1000,), cache=ArtifactCache(Path(folder))
            )
            _ = builder.calibration.statistics
            _prepare(builder, by)
            allocator = Allocator(builder)
            scoring = _seconds(lambda by=by, allocator=allocator: allocator.scores(by))
            budget = Budget(allocator.sizes, allocator.eight_bits * 6 // 8)
            solving = _seconds(lambda by=by, allocator=allocator, budget=budget: allocator.allocate(by, [budget]))
            rows.append({"method": name, "bits": 6, "scoring_s": scoring, "allocation_s": solving})
    return rows


def _prepare(builder: Builder, by: Scorer) -> None:
    """The programs that a search needs anyway are not counted: f32's and the integer one."""
    if isinstance(by, Sqnr):
        builder.build(QuantConfig(precision="f32"))
        builder.build(QuantConfig())


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("bits", "method", "top-1 %", "weights kB", "artifact kB", "scoring s", "allocation s")
    for row in rows:
        table.add_row(
            str(row["bits"]), row["method"], _number(row.get("accuracy"), 100, 2), _number(row.get("weights"), 1e-3, 0),
            _number(row.get("size"), 1e-3, 0), _number(row.get("scoring_s"), 1, 2),
            _number(row.get("allocation_s"), 1, 3),
        )  # fmt: skip
    Console(width=140).print(table)


def _row(evaluator: Evaluator, method: str, bits: int, config: QuantConfig, weights: int) -> dict[str, Any]:
    begin = time.monotonic()
    artifact = evaluator.builder.artifact(config)
    with tempfile.TemporaryDirectory() as folder:
        accuracy = evaluator.verify(artifact.save(Path(folder) / "a.vmfb"))
    print(f"{bits:2} {method}: {100 * accuracy:.2f} % in {artifact.size_bytes} bytes", file=sys.stderr, flush=True)
    return {
        "method": method, "bits": bits, "accuracy": accuracy, "weights": weights, "size": artifact.size_bytes,
        "config": str(config), "s": time.monotonic() - begin,
    }  # fmt: skip


def _with(config: QuantConfig, bits: BitWidths) -> QuantConfig:
    return QuantConfig(config.calib, config.scheme, config.clip, config.granularity, "int8", bits)


def _seconds(work: Any) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
