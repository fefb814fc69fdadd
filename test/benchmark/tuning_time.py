"""How long a whole search takes, part by part, and how long plain random search would take to get as far.

  python test/benchmark/tuning_time.py [MODEL] [--trials 8] [--images 1000] [--plain 2] [--random-trials 20.2]

Calibration and evaluation images are JPEG files of procedural shapes, as many of each, at the model's size. The search
runs with an empty cache, then once more into another folder with what the first one left in the cache. A plain trial
calibrates, compiles one artifact with its numbers inside and evaluates it on all images, one after the other, with a
cache of its own: what a tool does that keeps nothing but the imported model. The ratio is (seconds of a plain trial) x
(trials random search needs) / (seconds of the search): the number of trials is not measured here but taken from a
replay of measured tables (test/benchmark/search_replay.py), and so is that the search's few trials are enough.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from quantune import api
from quantune.builder import Builder
from quantune.compiler.cache import ArtifactCache
from quantune.compiler.targets import parse
from quantune.config import QuantConfig
from quantune.data import shapes
from quantune.evaluator import Evaluator
from quantune.search.progress import TuningEvent
from quantune.space import LEVEL1


class Clock:
    """Adds up the seconds between what a search tells."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._part, self._since = "start", time.monotonic()

    def enter(self, part: str) -> None:
        """End the current part and begin another."""
        now = time.monotonic()
        self.parts[self._part] = self.parts.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    def on_stage(self, text: str) -> None:
        """A stage of ``quantune.compile``."""
        self.enter(text)

    def on_event(self, event: TuningEvent) -> None:
        """An event of the search."""
        if event.kind == "started":
            self.enter(f"measuring {event.config}" if event.is_baseline else "trials")
        elif event.kind == "note":
            self.enter(event.message)
        else:
            self.enter("choosing the next trial")


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="torchvision:mobilenet_v2")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--plain", type=int, default=2, help="plain trials to measure; 0 leaves the comparison out")
    parser.add_argument("--random-trials", type=float, default=20.2, help="trials random search needs (from a replay)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="quantune-tuning-time-") as name:
        folder = Path(name)
        data = [
            _write(folder / split, split, arguments.images, arguments.size) for split in ("calibration", "evaluation")
        ]
        # An artifact of random weights answers like any other as far as time goes.
        options = api.ModelOptions(arguments.weights, (3, arguments.size, arguments.size), classes=len(shapes.CLASSES))
        cache = ArtifactCache(folder / "cache")
        seconds = []
        for run in ("empty cache", "same cache"):
            clock = Clock()
            api.compile(
                arguments.model, calib=data[0], eval=data[1], max_trials=arguments.trials, out=folder / run,
                options=options, cache=cache, progress=api.Progress(on_stage=clock.on_stage, on_event=clock.on_event),
            )  # fmt: skip
            clock.enter("end")
            after = {part: value for part, value in clock.parts.items() if part not in ("start", "importing the model")}
            seconds.append(sum(after.values()))
            table = Table("part", "seconds", title=f"{arguments.trials} trials, {run}", show_edge=False)
            for part, value in clock.parts.items():
                table.add_row(part, f"{value:.1f}")
            table.add_row("all after the import", f"{seconds[-1]:.1f}")
            console.print(table)
        if arguments.plain:
            model = api.import_any(arguments.model, options, cache)
            plain = _plain(model, data, arguments.plain)
            ratio = plain * arguments.random_trials / seconds[0]
            console.print(
                f"a plain trial {plain:.1f} s; {arguments.random_trials:g} of them "
                f"{plain * arguments.random_trials:.0f} s, {ratio:.1f} times the search"
            )
    return 0


def _write(folder: Path, split: str, count: int, size: int) -> str:
    for index in range(count):
        image, label = shapes.image(split, index)
        pixels = Image.fromarray((image.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8))
        path = folder / f"{label:02d}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.resize((size, size), Image.Resampling.BILINEAR).save(path, quality=90)
    return f"imagefolder:{folder}?resize={size}&crop={size}&mean=0&std=1"


def _plain(model: api.ImportedModel, data: list[str], count: int) -> float:
    """The median seconds of a plain trial of ``count`` configurations drawn at random."""
    seconds = []
    for index in np.random.default_rng(0).choice(len(LEVEL1), count, replace=False):
        with tempfile.TemporaryDirectory(prefix="quantune-plain-") as folder, contextlib.ExitStack() as stack:
            calib, evaluation = api.open_splits(*data)
            builder = Builder(model, parse("cpu"), calib=calib, cache=ArtifactCache(Path(folder)))
            evaluator = stack.enter_context(Evaluator(builder, evaluation))
            _ = evaluator.images  # a plain tool has decoded images too
            start = time.monotonic()
            config: QuantConfig = LEVEL1[int(index)]
            path = builder.artifact(config).save(Path(folder) / "a.vmfb")
            evaluator.verify(path)
            seconds.append(time.monotonic() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
