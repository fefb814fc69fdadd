"""Replays search algorithms on tables of measured configurations: how many trials until the best is found?

  python test/benchmark/search_replay.py TABLE.csv [--samplers xgboost,random,…] [--seeds 20] [--transfer]

TABLE is a CSV with columns model, precision, calib_images, granularity, clipping, scheme, accuracy (in percent), or a
JSON list of rows with model, calib, scheme, clip, granularity, precision, accuracy (a fraction), latency_ms,
size_bytes, and optionally the predictions features and predicted_db (test/benchmark/table.py writes such a list).
Nothing is compiled or run: a trial looks its accuracy up. With --transfer the other models of the table are the prior.
The sampler xgboost+features sees the predictions as features; xgboost+prior also takes predicted_db for its prior.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from quantune.search.features import enumerate_space, key_of
from quantune.search.sampler import XGBoostSampler
from quantune.search.transfer import PastStudy, TransferPrior

KEYS = ("calib", "scheme", "clip", "granularity", "precision")
TARGETS = (0.0, 0.001, 0.005)
SAMPLERS = ("random", "grid", "genetic", "tpe", "xgboost")
Table = dict[str, list[tuple[dict[str, Any], float]]]


def read_table(path: Path) -> Table:
    """Model name to rows (parameters, accuracy as a fraction)."""
    table: Table = {}
    if path.suffix == ".json":
        for row in json.loads(path.read_text(encoding="utf-8")):
            table.setdefault(row["model"], []).append(({k: row[k] for k in KEYS}, float(row["accuracy"])))
        return table
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            params = {
                "calib": int(row["calib_images"]),
                "scheme": row["scheme"],
                "clip": row["clipping"].lower(),
                "granularity": row["granularity"],
                "precision": row["precision"],
            }
            table.setdefault(row["model"], []).append((params, float(row["accuracy"]) / 100))
    return table


def read_predictions(path: Path) -> dict[str, dict[tuple[Any, ...], tuple[tuple[float, ...], float]]]:
    """Model name to options to (features, predicted signal-to-noise ratio in dB); empty where a table has none."""
    found: dict[str, dict[tuple[Any, ...], tuple[tuple[float, ...], float]]] = {}
    if path.suffix == ".json":
        for row in json.loads(path.read_text(encoding="utf-8")):
            if "features" in row:
                key = tuple(row[k] for k in KEYS)
                found.setdefault(row["model"], {})[key] = (tuple(row["features"]), float(row["predicted_db"]))
    return found


def space_of(rows: list[tuple[dict[str, Any], float]]) -> dict[str, CategoricalDistribution]:
    """The choices that occur in the rows, in their order of appearance."""
    return {k: CategoricalDistribution(tuple(dict.fromkeys(p[k] for p, _ in rows))) for k in KEYS}


def make_sampler(name: str, space: Mapping[str, Any], seed: int, prior: Any, predictions: Mapping[Any, Any]) -> Any:
    """The sampler under test."""
    if name == "xgboost":
        return XGBoostSampler(seed=seed, space=space, prior=prior)
    if name in ("xgboost+features", "xgboost+prior"):

        def predicted(params: Mapping[str, Any]) -> tuple[tuple[float, ...], float]:
            return predictions[tuple(params[k] for k in KEYS)]

        merit = (lambda p: predicted(p)[1]) if name == "xgboost+prior" else prior
        return XGBoostSampler(seed=seed, space=space, prior=merit, features=lambda p: predicted(p)[0])
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
    if name == "genetic":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=8)
    raise ValueError(f"sampler '{name}': expected one of {', '.join(SAMPLERS)}")


def proposals(
    name: str,
    space: Mapping[str, Any],
    seed: int,
    lookup: Mapping[tuple[float, ...], float],
    prior: Any,
    predictions: Mapping[Any, Any],
) -> Iterator[float]:
    """Accuracies in the order in which the sampler measures new points; a repeated point costs nothing."""
    points = enumerate_space(space) or []
    if name in ("random", "grid"):
        order = np.random.default_rng(seed).permutation(len(points)) if name == "random" else range(len(points))
        for i in order:
            yield lookup[key_of(points[i], space)]
        return
    study = optuna.create_study(direction="maximize", sampler=make_sampler(name, space, seed, prior, predictions))
    rng, seen, repeats = np.random.default_rng(seed), set(), 0
    while len(seen) < len(points):
        if repeats >= 20:
            left = [p for p in points if key_of(p, space) not in seen]
            study.enqueue_trial(left[int(rng.integers(len(left)))])
        trial = study.ask(dict(space))
        key = key_of(trial.params, space)
        study.tell(trial, lookup[key])
        repeats = repeats + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield lookup[key]


def trials_to(values: Iterator[float], best: float) -> list[int]:
    """For each of TARGETS the number of trials until a value within it of the best."""
    reached: list[int] = []
    for count, value in enumerate(values, start=1):
        while len(reached) < len(TARGETS) and value >= best - TARGETS[::-1][len(reached)] - 1e-9:
            reached.append(count)
        if len(reached) == len(TARGETS):
            break
    return reached[::-1]


def _interval(values: list[float]) -> str:
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{mean:5.1f} ±{half:4.1f}"


def main(argv: list[str] | None = None) -> int:
    """Print one table per model and the geometric means over the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--transfer", action="store_true", help="give xgboost the other models' rows as prior")
    args = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table, predictions = read_table(args.table), read_predictions(args.table)
    header = " ".join(f"{'within ' + format(100 * t, 'g') + ' pt':>14}" for t in TARGETS)
    means: dict[str, list[list[float]]] = {}
    print(f"trials until the best of the table: mean ± 95 % over {args.seeds} seeds")
    for model, rows in table.items():
        space = space_of(rows)
        lookup = {key_of(p, space): v for p, v in rows}
        points = math.prod(len(d.choices) for d in space.values())
        if len(lookup) != points:
            print(f"{model}: {len(lookup)} rows for {points} points, skipped", file=sys.stderr)
            continue
        prior = None
        if args.transfer:
            others = [PastStudy(m, tuple(r)) for m, r in table.items() if m != model]
            prior = TransferPrior(others, space)
        print(f"\n{model} ({points} points, best {100 * max(lookup.values()):.2f} %)\n{'':17}{header}")
        for name in args.samplers.split(","):
            counts = [
                trials_to(proposals(name, space, seed, lookup, prior, predictions.get(model, {})), max(lookup.values()))
                for seed in range(1 if name == "grid" else args.seeds)
            ]
            columns = [[float(c[i]) for c in counts] for i in range(len(TARGETS))]
            means.setdefault(name, []).append([statistics.fmean(c) for c in columns])
            print(f"{name:17}" + " ".join(f"{_interval(c):>14}" for c in columns), flush=True)
    print(f"\ngeometric mean over models\n{'':17}{header}")
    for name, rows_of in means.items():
        geo = [statistics.geometric_mean(r[i] for r in rows_of) for i in range(len(TARGETS))]
        print(f"{name:17}" + " ".join(f"{g:14.1f}" for g in geo))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
