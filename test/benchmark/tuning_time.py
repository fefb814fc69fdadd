"""How long a whole search takes, part by part, and how long plain random search would take to get as far.

  python test/benchmark/tuning_time.py [MODEL] [--trials 8] [--images 1000] [--plain 1] [--random-trials 20.2]
  python test/benchmark/tuning_time.py builtin:NAME --calib builtin:shapes?count=10000 --eval builtin:shapes?count=10000

Without --calib and --eval the images are JPEG files of procedural shapes, --images of each kind, at --size. The search
runs with an empty cache, then once more into another folder with what the first one left in the cache. A plain trial
calibrates with as many images as its configuration asks for, compiles one artifact with its numbers inside and
evaluates it on all images, one after the other, with a cache of its own: what a tool does that keeps nothing but the
imported model and the decoded evaluation images. A third of the trials of a random search asks for each of the three
numbers of calibration images, so --plain trials of each are measured. The ratio is (seconds of a plain trial) x (trials
random search needs) / (seconds of the search): the number of trials is not measured here but taken from a replay of
measured tables (test/benchmark/search_replay.py), and so is that the search's few trials are enough.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from quantune import api
from quantune.cache import ArtifactCache
from quantune.compiler.targets import parse
from quantune.data import shapes
from quantune.data.splits import open_splits
from quantune.quantization.config import QuantConfig
from quantune.quantization.space import CALIBRATION_SIZES, LEVEL1
from quantune.search.progress import TuningEvent
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator


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
    parser.add_argument("--calib", help="reference to calibration images; else JPEG files are written")
    parser.add_argument("--eval", help="reference to evaluation images")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument(
        "--plain", type=int, default=1, help="plain trials for each number of calibration images; 0: no comparison"
    )
    parser.add_argument("--random-trials", type=float, default=20.2, help="trials random search needs (from a replay)")
    arguments = parser.parse_args(argv)
    if (arguments.calib is None) != (arguments.eval is None):
        parser.error("--calib and --eval come together")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="quantune-tuning-time-") as name:
        folder = Path(name)
        options = api.ModelOptions(arguments.weights)
        data = (arguments.calib, arguments.eval)
        if arguments.calib is None:
            size = arguments.size
            data = [_write(folder / split, split, arguments.images, size) for split in ("calibration", "evaluation")]
            # An artifact of random weights answers like any other as far as time goes.
            options = api.ModelOptions(arguments.weights, (3, size, size), classes=len(shapes.CLASSES))
        cache = ArtifactCache(folder / "cache")
        seconds = [
            _search(arguments.model, data, arguments.trials, options, cache, folder / run, f"{run} cache", console)
            for run in ("empty", "same")
        ]
        if arguments.plain:
            model = api.import_any(arguments.model, options, cache)
            plain = _plain(model, data, arguments.plain, console)
            ratio = plain * arguments.random_trials / seconds[0]
            console.print(
                f"a plain trial {plain:.1f} s; {arguments.random_trials:g} of them "
                f"{plain * arguments.random_trials:.0f} s, {ratio:.1f} times the search"
            )
    return 0


def _search(
    model: str,
    data: Sequence[str],
    trials: int,
    options: api.ModelOptions,
    cache: ArtifactCache,
    out: Path,
    title: str,
    console: Console,
) -> float:
    """The seconds of a search after the import; prints them part by part."""
    clock = Clock()
    api.compile(
        model, calib=data[0], eval=data[1], max_trials=trials, out=out, options=options, cache=cache,
        progress=api.Progress(on_stage=clock.on_stage, on_event=clock.on_event),
    )  # fmt: skip
    clock.enter("end")
    seconds = sum(value for part, value in clock.parts.items() if part not in ("start", "importing the model"))
    table = Table("part", "seconds", title=f"{trials} trials, {title}", show_edge=False)
    for part, value in clock.parts.items():
        table.add_row(part, f"{value:.1f}")
    table.add_row("all after the import", f"{seconds:.1f}")
    console.print(table)
    return seconds


def _write(folder: Path, split: str, count: int, size: int) -> str:
    for index in range(count):
        image, label = shapes.image(split, index)
        pixels = Image.fromarray((image.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8))
        path = folder / f"{label:02d}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.resize((size, size), Image.Resampling.BILINEAR).save(path, quality=90)
    return f"imagefolder:{folder}?resize={size}&crop={size}&mean=0&std=1"


def _plain(model: api.ImportedModel, data: Sequence[str], count: int, console: Console) -> float:
    """The mean seconds of plain trials, ``count`` drawn at random for each calibration size; prints the parts."""
    table = Table("plain trial", "calibrate", "build", "evaluate", "all", show_edge=False)
    calib, evaluation = open_splits(*data)
    seconds = []
    random = np.random.default_rng(0)
    drawn: list[QuantConfig] = []
    for size in CALIBRATION_SIZES:
        candidates = [config for config in LEVEL1 if config.calib == size]
        drawn += [candidates[int(i)] for i in random.choice(len(candidates), count, replace=False)]
    for config in drawn:
        with tempfile.TemporaryDirectory(prefix="quantune-plain-") as folder, contextlib.ExitStack() as stack:
            builder = Builder(
                model, parse("cpu"), calib=calib, cache=ArtifactCache(Path(folder)), sizes=(config.calib,)
            )
            evaluator = stack.enter_context(Evaluator(builder, evaluation))
            evaluator.take_up()  # a plain tool has decoded images too
            marks = [time.monotonic()]
            builder.plan(config)
            marks.append(time.monotonic())
            path = builder.artifact(config).save(Path(folder) / "a.vmfb")
            marks.append(time.monotonic())
            evaluator.verify(path)
            marks.append(time.monotonic())
        seconds.append(marks[-1] - marks[0])
        table.add_row(str(config), *(f"{value:.1f}" for value in (*np.diff(marks), seconds[-1])))
    console.print(table)
    return statistics.mean(seconds)


if __name__ == "__main__":
    sys.exit(main())
