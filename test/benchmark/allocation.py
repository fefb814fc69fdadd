"""Ways to give layers bits of their own, against uniform widths and other controls of the same size.

  python test/benchmark/allocation.py [MODEL] [--methods …] [--bits …]      accuracy at the sizes of uniform widths
  python test/benchmark/allocation.py [MODEL] --power 100 [--seeds 0,1,2]   what scores say of random allocations
  python test/benchmark/allocation.py [MODEL] --times                       seconds, in a cold cache, at 224x224

A method is SCORE/PROPOSER (quantune.allocation.table), or uniform or random alone. Every row is measured with the same
other settings on all evaluation images, as a trial of a search is. --power: for each seed so many random allocations of
one size; Spearman's rank correlation of what a score predicts with the measured divergence of the class probabilities
from f32's, and with top-1 (its sign turned, so that 1 is perfect in both). The last columns count what a score looked
at: calibration images, runs of the network on one image, labels. --times measures scoring and allocating only, for a
network of random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from quantune import api
from quantune.allocation.base import Budget, Column, Interactions, Scorer, Scores, Tensors
from quantune.allocation.controls import Random
from quantune.allocation.interactions import Clado
from quantune.allocation.sqnr import Sqnr
from quantune.allocation.table import PROPOSERS, SCORERS
from quantune.cache import ArtifactCache
from quantune.data.base import ImageSource
from quantune.data.sources import open_source
from quantune.data.splits import Split
from quantune.errors import UsageError
from quantune.quantization.bits import BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.quantization.space import CALIBRATION_SIZES
from quantune.tuning.bit_widths import CHOICES, Allocator
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.screening import divergence

METHODS = (
    "sqnr/optimal", "gram/optimal", "clado/optimal", "alone/list", "sqnr/list", "output-error/optimal",
    "output-error/greedy", "relative-error/optimal", "ompq-ptq/optimal", "orthogonality/optimal", "parameters/optimal",
    "random",
)  # fmt: skip
SEEDS = 3
"""Of the method that draws at random."""

_F32 = QuantConfig(precision="f32")


class Noise(ImageSource):
    """Reproducible noise with arbitrary labels."""

    def __init__(self, count: int, size: int) -> None:
        self.name, self.shape, self.classes = "noise", (3, size, size), 1000
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.random.default_rng(index).standard_normal(self.shape, np.float32), index % 1000


class Counting(Allocator):
    """Counts what scores look at: runs of the network on one image, and different images."""

    def __init__(self, builder: Builder, **options: Any) -> None:
        super().__init__(builder, **options)
        self.runs = self.images = 0

    def _count(self, runs: int, images: int) -> None:
        seen = len(self.builder.calibration.first(images))
        self.runs, self.images = self.runs + runs * seen, max(self.images, seen)

    def observe(self, tensors: Sequence[str], images: int) -> Iterator[Tensors]:
        """Counted."""
        self._count(1, images)
        return super().observe(tensors, images)

    def logits(self, widths: Sequence[BitWidths], images: int) -> Iterator[np.ndarray]:
        """Counted."""
        self._count(1 + len(widths), images)
        return super().logits(widths, images)

    def alone(self, columns: Sequence[Column], images: int) -> Iterator[np.ndarray]:
        """Counted."""
        self._count(1 + len(columns), images)
        return super().alone(columns, images)

    def scored(self, by: Scorer) -> dict[str, Any]:
        """What a score costs."""
        self.runs = self.images = 0
        seconds = _seconds(lambda: self.scores(by))
        return {"scoring_s": seconds, "runs": self.runs, "images": self.images, "labels": 0}


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--calib", default="builtin:shapes")
    parser.add_argument("--eval", default="builtin:shapes")
    parser.add_argument("--bits", default="8,6,5,4,3,2", help="uniform widths, whose sizes are the budgets")
    parser.add_argument("--config", default="", help="the other settings, such as clip=kl,weight_clip=power")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of SCORE/PROPOSER, uniform, random")
    parser.add_argument("--power", type=int, help="random allocations a seed")
    parser.add_argument("--seeds", default="0,1,2", help="of the random allocations")
    parser.add_argument(
        "--choices", default="4,6,8", help="widths in the random allocations; the middle one is the size"
    )
    parser.add_argument("--scores", default=",".join(SCORERS), help="some of " + ", ".join(SCORERS))
    parser.add_argument("--times", action="store_true", help="only the seconds, at 224x224")
    arguments = parser.parse_args(argv)
    if arguments.times:
        rows = times(arguments.model or "torchvision:mobilenet_v2", arguments.scores.split(","))
    elif arguments.power:
        rows = power(arguments)
    else:
        rows = accuracies(arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)
    return 0


def _first(reference: str, role: str) -> Split:
    """All images in their own order, as in the tables of docs/bits.md: a set whose images are drawn at random."""
    source = open_source(reference, role)
    return Split(source, tuple(range(len(source))))


def _builder(arguments: argparse.Namespace) -> tuple[Builder, QuantConfig]:
    calib, model = _first(arguments.calib, "calibration"), arguments.model or "builtin:mobilenet_v2_shapes"
    builder = api.make_builder(model, calib=calib, target="cpu", sizes=CALIBRATION_SIZES)
    return builder, QuantConfig.parse(arguments.config) if arguments.config else QuantConfig()


def accuracies(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for f32, and for each size one for the uniform width and for each method."""
    builder, config = _builder(arguments)
    allocator, rows = Counting(builder, config=config), []
    costs: dict[str, dict[str, Any]] = {}
    with Evaluator(builder, _first(arguments.eval, "evaluation")) as evaluator:
        rows.append({"method": "f32", "bits": 32, "accuracy": evaluator(_F32).accuracy})
        for width in map(int, arguments.bits.split(",")):
            uniform = BitWidths(LayerBits(width))
            limit = allocator.weight_bytes(uniform)
            rows.append(_row(evaluator, "uniform", width, replace(config, bits=uniform), limit))
            for method in arguments.methods.split(",") if width < 8 else ():
                name, _, how = method.partition("/")
                if how and name not in costs:
                    costs[name] = allocator.scored(SCORERS[name])
                begin = time.monotonic()
                try:
                    found = _allocated(allocator, method, limit)
                except UsageError as error:  # OMPQ's forms have no narrow or no wide choices
                    rows.append({"method": method, "bits": width, "note": str(error)})
                    continue
                seconds = (time.monotonic() - begin) / len(found)
                measured = [_row(evaluator, method, width, replace(config, bits=each), allocator.weight_bytes(each))
                            for each in found]  # fmt: skip
                middle = sorted(measured, key=lambda row: row["accuracy"])[len(measured) // 2]
                rows.append({**middle, **costs.get(name, {}), "allocation_s": seconds})
    return rows


def _allocated(allocator: Allocator, method: str, limit: int) -> list[BitWidths]:
    """What a method proposes; one for each seed where it draws at random."""
    budget, (name, _, how) = Budget(allocator.sizes, limit), method.partition("/")
    if method == "random":
        by = SCORERS["parameters"]
        return [allocator.allocate(by, [budget], Random(seed)).bits for seed in range(SEEDS)]
    return [allocator.allocate(SCORERS[name], [budget], PROPOSERS[how]).bits]


def _row(evaluator: Evaluator, method: str, bits: int, config: QuantConfig, weights: int) -> dict[str, Any]:
    score = evaluator(config)
    print(f"{bits:2} {method}: {100 * score.accuracy:.2f} % in {score.size_bytes} bytes", file=sys.stderr, flush=True)
    return {
        "method": method, "bits": bits, "accuracy": score.accuracy, "weights": weights, "size": score.size_bytes,
        "config": str(config),
    }  # fmt: skip


def power(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each score: its rank correlations with what random allocations measure, one a seed."""
    builder, config = _builder(arguments)
    widths = sorted(map(int, arguments.choices.split(",")))
    allocator = Counting(builder, choices=[LayerBits(width) for width in widths], config=config)
    limit = allocator.weight_bytes(BitWidths(LayerBits(widths[len(widths) // 2])))
    scorers = {name: _for_widths(SCORERS[name], widths) for name in arguments.scores.split(",")}
    costs = {name: allocator.scored(by) for name, by in scorers.items()}
    found: dict[str, list[tuple[float, float]]] = {}
    images = _first(arguments.eval, "evaluation")
    labels = np.array([images.source[i][1] for i in images.indices])
    spread = []
    with Evaluator(builder, images) as evaluator:
        exact = evaluator.answers(_F32, images)
        for seed in map(int, arguments.seeds.split(",")):
            drawn = _drawn(allocator, limit, seed, arguments.power)
            logits = [evaluator.answers(replace(config, bits=bits), images) for bits in drawn]
            lost = [divergence(exact, each) for each in logits]
            wrong = [float((each.argmax(axis=1) != labels).mean()) for each in logits]
            spread += wrong
            for name, by in scorers.items():
                scores = allocator.scores(by)
                forms = {name: scores}
                if isinstance(scores, Interactions):
                    forms[f"{name}, diagonal"] = scores.separable
                for label, form in forms.items():
                    said = [predicted(form, bits) for bits in drawn]
                    if None not in said:
                        pair = tuple(float(spearmanr(said, each)[0]) for each in (lost, wrong))
                        found.setdefault(label, []).append(pair)  # type: ignore[arg-type]
            print(f"seed {seed}: {len(drawn)} allocations", file=sys.stderr, flush=True)
    low, high = 1 - max(spread), 1 - min(spread)
    print(f"{len(spread)} allocations of {limit} bytes, top-1 from {100 * low:.2f} to {100 * high:.2f} %")
    rows = [{"method": name, "divergence": [a for a, _ in pairs], "top1": [b for _, b in pairs],
             **costs[name.partition(",")[0]]} for name, pairs in found.items()]  # fmt: skip
    return sorted(rows, key=lambda row: -float(np.nan_to_num(np.mean(row["divergence"]))))


def _for_widths(by: Scorer, widths: Sequence[int]) -> Scorer:
    return replace(by, widths=tuple(widths)) if isinstance(by, Clado) else by


def _drawn(allocator: Allocator, limit: int, seed: int, count: int) -> list[BitWidths]:
    """Random allocations of one size, to one per cent."""
    found: dict[BitWidths, None] = {}
    number = 0
    while len(found) < count:
        if number > 50 * count:
            raise UsageError(f"too few random allocations come within one per cent of {limit} bytes")
        budget = Budget(allocator.sizes, limit)
        bits = allocator.allocate(SCORERS["parameters"], [budget], Random(100_000 * (seed + 1) + number)).bits
        number += 1
        if allocator.weight_bytes(bits) >= 0.99 * limit:
            found[bits] = None
    return list(found)


def predicted(scores: Scores | Interactions, bits: BitWidths) -> float | None:
    """What scores say of an allocation; None where they lack one of its choices."""
    if isinstance(scores, Interactions):
        at = {column: number for number, column in enumerate(scores.columns)}
        layers = dict.fromkeys(layer for layer, _ in scores.columns)
        columns = [at.get((layer, bits.of(layer))) for layer in layers]
        return None if None in columns else float(scores.matrix[np.ix_(columns, columns)].sum())  # type: ignore[arg-type]
    if any(bits.of(layer) not in row for layer, row in scores.items()):
        return None
    return sum(row[bits.of(layer)] for layer, row in scores.items())


def times(model: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Seconds of each score from a model that is imported and calibrated, compilations included, nothing cached."""
    rows = []
    for name in names:
        by = SCORERS[name]
        with tempfile.TemporaryDirectory() as folder:
            builder = api.make_builder(
                model, calib=Noise(128, 224), target="cpu", sizes=(1000,), cache=ArtifactCache(Path(folder))
            )
            _ = builder.calibration.statistics
            if isinstance(by, Sqnr):  # the programs that a search needs anyway are not counted: f32's, the integer one
                builder.build(_F32)
                builder.build(QuantConfig())
            allocator = Counting(builder, choices=CHOICES)
            cost = allocator.scored(by)
            budget = Budget(allocator.sizes, allocator.eight_bits * 6 // 8)
            try:
                solving = _seconds(lambda a=allocator, by=by, budget=budget: a.allocate(by, [budget]))
            except UsageError:
                solving = None
            rows.append({"method": name, "bits": 6, **cost, "allocation_s": solving})
    return rows


COLUMNS: Mapping[str, tuple[str, float, int]] = {
    "accuracy": ("top-1 %", 100, 2), "weights": ("weights kB", 1e-3, 0), "size": ("artifact kB", 1e-3, 0),
    "divergence": ("rank, divergence", 1, 2), "top1": ("rank, top-1", 1, 2), "scoring_s": ("scoring s", 1, 2),
    "allocation_s": ("allocation s", 1, 3), "runs": ("runs", 1, 0), "images": ("images", 1, 0),
    "labels": ("labels", 1, 0),
}  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table; a list of values by its mean and its ends."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    table = Table("bits", "method", *(COLUMNS[name][0] for name in names), "")
    for row in rows:
        cells = [_number(row.get(name), *COLUMNS[name][1:]) for name in names]
        table.add_row(str(row.get("bits", "")), row["method"], *cells, row.get("note", ""))
    Console(width=170).print(table)


def _seconds(work: Any) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _number(value: float | list[float] | None, factor: float, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{np.mean(value):.{digits}f} ({min(value):.{digits}f} to {max(value):.{digits}f})"
    return f"{value * factor:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
