"""Measures all 96 configurations of a model on compiled artifacts and writes them as a table.

  python test/benchmark/table.py [MODEL] [--calib DATA] [--eval DATA] [--target T] [--out TABLE.json]

Each row of TABLE.json has model, fingerprint, the five options, accuracy (a fraction), latency_ms, size_bytes, identity
(equal for configurations that compute the same), and what a search knows before a trial (features, predicted_db and
screened_db, here of all configurations); the rows of precision f32 and f16 are what to compare with. Latencies are
measured at the end, all programs side by side. test/benchmark/search_replay.py replays searches on it;
transfer_store.py puts it into the package.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from quantune.api import ModelOptions, import_any
from quantune.cache import ArtifactCache
from quantune.compiler.targets import parse
from quantune.data.splits import open_splits
from quantune.quantization.config import QuantConfig
from quantune.quantization.predictions import Proxies
from quantune.quantization.space import LEVEL1, to_params
from quantune.tuning.builder import Builder
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.screening import Screening


def measure(model: str, calib: str, evaluation: str, target: str) -> tuple[list[dict], list[dict]]:
    """Rows of the 96 configurations, and of the float artifacts."""
    cache = ArtifactCache()
    calibration, images = open_splits(calib, evaluation)
    options = ModelOptions() if model.startswith("builtin:") else ModelOptions(shape=images.source.shape)
    builder = Builder(import_any(model, options, cache), parse(target), calib=calibration, cache=cache)
    proxies = Proxies(builder.model.network, builder.plan, builder.calibration.statistics)
    with Evaluator(builder, images) as evaluator:

        def row(config: QuantConfig) -> dict:
            start = time.monotonic()
            score = evaluator(config)
            return {
                "model": builder.model.name,
                "fingerprint": builder.model.fingerprint,
                **to_params(config),
                "accuracy": score.accuracy,
                "size_bytes": score.size_bytes,
                "images": score.images,
                "program": (score.program or "")[:12],
                "seconds": round(time.monotonic() - start, 2),
            }

        floats = [row(QuantConfig(precision=p)) for p in ("f32", "f16")]
        screening = Screening(evaluator, proxies.prior)
        screening.run(screening.candidates(LEVEL1, len(LEVEL1)))
        rows = []
        for config in track(LEVEL1, description="measuring", console=Console(stderr=True)):
            params = to_params(config)
            known = {
                "identity": builder.identity(config)[:12],
                "features": (*proxies.features(params), screening.merit(params)),
                "predicted_db": proxies.prior(params),
                "screened_db": screening.merit(params),
            }
            rows.append({**row(config), **known})
        # Side by side, so that a slow moment of the machine hits all alike; what shares a program shares its latency.
        configs = [*(QuantConfig(precision=p) for p in ("f32", "f16")), *LEVEL1]
        latencies = evaluator.retime(configs)
        for config, measured in zip(configs, [*floats, *rows], strict=True):
            measured["latency_ms"] = latencies[config]
    return rows, floats


def show(rows: list[dict], floats: list[dict]) -> None:
    """The table, best first, and its spread."""
    table = Table(show_edge=False)
    options = ("calib", "scheme", "clip", "granularity")
    for heading in ("top-1 %", "against f32", "ms", "MB", "predicted dB", "screened dB", *options, "precision"):
        table.add_column(heading)
    base = floats[0]["accuracy"]
    for row in [*floats, *sorted(rows, key=lambda r: -r["accuracy"])]:
        shown = [str(row[k]) if row in rows else "" for k in options]
        table.add_row(
            f"{100 * row['accuracy']:.2f}", f"{100 * (row['accuracy'] - base):+.2f}", f"{row['latency_ms']:.3f}",
            f"{row['size_bytes'] / 1e6:.2f}",
            *(f"{row[k]:.1f}" if row in rows else "" for k in ("predicted_db", "screened_db")),
            *shown, row["precision"],
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    accuracies = sorted(100 * r["accuracy"] for r in rows)
    quartiles = statistics.quantiles(accuracies, n=4)
    console.print(
        f"{len(rows)} configurations: best {accuracies[-1]:.2f} %, median {quartiles[1]:.2f} %, "
        f"quartiles {quartiles[0]:.2f} and {quartiles[2]:.2f} %, worst {accuracies[0]:.2f} %; f32 {100 * base:.2f} %; "
        f"{sum(100 * base - a > 1 for a in accuracies)} lose more than a point; "
        f"{len({r['program'] for r in rows})} programs compiled; "
        f"median {statistics.median(r['seconds'] for r in rows):.2f} s a trial"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:mobilenet_v2_shapes")
    parser.add_argument("--calib", default="builtin:shapes?count=10000")
    parser.add_argument("--eval", default="builtin:shapes?count=10000")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("table.json"))
    arguments = parser.parse_args(argv)
    rows, floats = measure(arguments.model, arguments.calib, arguments.eval, arguments.target)
    arguments.out.write_text(json.dumps([*floats, *rows], indent=0) + "\n", encoding="utf-8")
    show(rows, floats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
