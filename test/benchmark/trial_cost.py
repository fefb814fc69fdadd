"""Where the seconds of a search go: import, calibration, passes, compilation, evaluation, latency.

  python test/benchmark/trial_cost.py [MODEL] [--size 224] [--images 1000]

Random weights and random images: only times are of interest. The first configuration of a program pays for its
compilation, the next ones do not. Here one thing is done after the other; a search makes plans, numbers and programs
in the background while it measures (test/benchmark/tuning_time.py), and measures equal plans once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from quantune.cache import ArtifactCache
from quantune.compiler.targets import parse
from quantune.data.base import ImageSource
from quantune.data.splits import Split
from quantune.frontend.models import ModelRequest, load_model
from quantune.quantization.config import QuantConfig
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator

CONFIGURATIONS = (
    "precision=f32",
    "scheme=asymmetric,clip=max,granularity=channel",
    "scheme=asymmetric,clip=kl,granularity=tensor",
    "scheme=symmetric,clip=kl,granularity=channel,calib=1",
    "scheme=symmetric_power2,clip=max",
    "scheme=asymmetric,clip=max,precision=mixed",
)


class RandomImages(ImageSource):
    """Reproducible noise with arbitrary labels."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.name, self.shape, self.classes = "noise", (3, size, size), 1000
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng((self._seed, index))
        return rng.standard_normal(self.shape, np.float32), int(rng.integers(1000))


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="torchvision:mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="quantune-trial-cost-") as folder:
        start = time.monotonic()
        model = load_model(ModelRequest(arguments.model, shape=(3, arguments.size, arguments.size)))
        console.print(f"import {time.monotonic() - start:.1f} s")
        splits = [
            Split(RandomImages(arguments.images, arguments.size, seed), tuple(range(arguments.images)))
            for seed in (1, 2)
        ]
        builder = Builder(model, parse("cpu"), calib=splits[0], cache=ArtifactCache(Path(folder)))
        start = time.monotonic()
        _ = builder.calibration.statistics
        console.print(f"calibration on {arguments.images} images {time.monotonic() - start:.1f} s (once per model)")
        table = Table(show_edge=False)
        for heading in (
            "seconds a trial",
            "plan",
            "passes",
            "compile",
            "evaluation",
            "latency and rest",
            "total",
            "ms an image",
        ):
            table.add_column(heading)
        with Evaluator(builder, splits[1]) as evaluator:
            evaluator.take_up()
            for line in CONFIGURATIONS:
                config = QuantConfig.parse(line)
                start = time.monotonic()
                builder.plan(config)
                plan = time.monotonic() - start
                score = evaluator(config)
                total, spent = time.monotonic() - start, score.seconds
                rest = total - plan - sum(spent[k] for k in ("passes", "compile", "evaluation"))
                cells = (plan, spent["passes"], spent["compile"], spent["evaluation"], rest, total)
                table.add_row(line, *(f"{value:.2f}" for value in cells), f"{score.latency_ms:.2f}")
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
