"""Accuracy of single configurations without a search, against f32, and what their numbers cost in seconds.

  python test/benchmark/refinement.py [MODEL …] [--calib DATA] [--eval DATA] [--config LINE …]
  python test/benchmark/refinement.py --times

A table for each model, by default for each built-in one on shapes: eight, four and three bits for the weights, as they
are, with corrected biases and with chosen roundings. Rows are told as they are measured, so that what is broken off has
said something, and goes on from the cache.

One row a configuration: its compiled program on all evaluation images, the difference to f32 with its paired 95 %
interval, and the seconds in which its plan was found, refinement included, with statistics at hand. Nothing is compiled
within these seconds but what shows the f32 network's tensors, which a search has compiled anyway. With --times only the
seconds of refinements are measured, for MobileNetV2 of random weights on noise of 224x224, in a cold cache of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from quantune.api import ModelOptions, import_any
from quantune.cache import ArtifactCache
from quantune.compiler.targets import parse
from quantune.data.choice import calibration_images
from quantune.data.splits import open_splits
from quantune.quantization.config import QuantConfig
from quantune.refine.base import images_for
from quantune.search.scores import accuracy_difference
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator

MODELS = tuple(
    f"builtin:{name}_shapes"
    for name in ("squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v2", "resnet18", "googlenet", "resnet50")
)
_NARROW = ("", ",bias=sequential", ",bias=sequential,rounding=adaround", ",bias=sequential,rounding=brecq")
LINES = (
    "clip=max", "bias=sequential", "clip=kl", "clip=kl,bias=sequential",
    *(f"clip=kl,bits=w{bits},weight_clip=mse{rest}" for bits in (4, 3) for rest in _NARROW),
)  # fmt: skip


def measure(
    model: str, calib: str, evaluation: str, configs: list[QuantConfig], target: str, tell: Callable[[str], None]
) -> Table:
    """A row for each configuration; they share images, statistics and programs. tell: hears each row at once."""
    cache = ArtifactCache()
    table = Table("configuration", "top-1 %", "points", "seconds", "MB", title=model, show_edge=False)
    calibration, images = open_splits(calib, evaluation)
    options = ModelOptions() if model.startswith("builtin:") else ModelOptions(shape=images.source.shape)
    sizes = {config.calib for config in configs}
    builder = Builder(import_any(model, options, cache), parse(target), calib=calibration, cache=cache, sizes=sizes)
    _ = builder.calibration.statistics
    with Evaluator(builder, images) as evaluator:
        base = evaluator(QuantConfig(precision="f32"))
        table.add_row("precision=f32", f"{base.accuracy:.2%}", "", "", f"{base.size_bytes / 1e6:.2f}")
        for config in configs:
            start = time.monotonic()
            builder.plan(config)
            seconds, score = time.monotonic() - start, evaluator(config)
            difference = str(accuracy_difference(score, base))
            row = (f"{score.accuracy:.2%}", difference, f"{seconds:.1f}", f"{score.size_bytes / 1e6:.2f}")
            table.add_row(line_of(config), *row)
            tell(" ".join((model, line_of(config), *row)))
    return table


def line_of(config: QuantConfig) -> str:
    """What a configuration has that is not the default."""
    told = {name: value for name, value in config.options().items() if value != getattr(QuantConfig(), name)}
    return ",".join(f"{name}={value}" for name, value in told.items()) or "default"


def times() -> Table:
    """Seconds of each refinement behind scales that are known; the first includes the means of the f32 network."""
    table = Table("configuration", "images", "seconds", show_edge=False)
    rng = np.random.default_rng(0)
    noise = [(rng.normal(0, 1, (3, 224, 224)).astype(np.float32), 0) for _ in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        cache, split = ArtifactCache(folder), calibration_images(noise)
        model = import_any("torchvision:mobilenet_v2", ModelOptions(shape=(3, 224, 224)), cache)
        builder = Builder(model, parse("cpu"), calib=split, cache=cache, sizes=(64,))
        for line in ("bias=fast", "bias=sequential", "bias=fast,clip=kl", "bias=sequential,clip=kl"):
            config = QuantConfig.parse(f"calib=64,{line}")
            builder.plans.scales(config)
            start = time.monotonic()
            builder.plan(config)
            table.add_row(line, str(images_for(builder.model.network)), f"{time.monotonic() - start:.1f}")
    return table


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--calib", default="builtin:shapes?count=1000")
    parser.add_argument("--eval", default="builtin:shapes?count=10000")
    parser.add_argument("--config", nargs="+", default=LINES, metavar="LINE")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.times:
        Console().print(times())
        return 0
    configs = [QuantConfig.parse(line) for line in arguments.config]
    console = Console(width=None if sys.stdout.isatty() else 160)
    tell = Console(stderr=True).print
    for model in arguments.models:
        console.print(measure(model, arguments.calib, arguments.eval, configs, arguments.target, tell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
