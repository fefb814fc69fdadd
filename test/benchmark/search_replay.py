"""Replays search methods on tables of measured configurations: how many trials until the best is found?

  python test/benchmark/search_replay.py TABLE … [--methods M,…] [--seeds 100] [--models NAME,…] [--json FILE]

TABLE is a CSV with columns model, precision, calib_images, granularity, clipping, scheme, accuracy (in percent), or a
JSON list of rows with model, calib, scheme, clip, granularity, precision, accuracy (a fraction) and maybe features and
identity, as test/benchmark/table.py writes it: a configuration that computes the same as a measured one takes no trial.
A row of precision f32 is what the model reaches unquantized. Several files count as one table. Nothing is compiled or
run: a trial looks its accuracy up. Every method sees of other models what it is made for, and never a row of the model
it searches before that row was measured (leave one model out).

Intervals are of 95 %. ± beside a model: of the mean over seeds. In the last table, first over seeds with these models,
then over models drawn again (a bootstrap). area: under the regret curve, in points of accuracy times trials.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import optuna
from search_replay_lib.figures import TARGETS, Replay, distinct, follow, geometric_mean, interval_over_seeds, summary
from search_replay_lib.methods import METHODS, Order, Task, applicable
from search_replay_lib.tables import ModelTable, read_tables

from quantune.errors import QuantuneError, UsageError

HEADER = " ".join(f"{'within ' + format(100 * t, 'g') + ' pt':>14}" for t in TARGETS) + f"{'area':>16}"


def replay(order: Order, table: ModelTable, seeds: Iterable[int]) -> Replay:
    """Run a method under each seed until it has found the best value of the table."""
    runs = [follow(distinct(order(seed), table.identity), table.accuracy) for seed in seeds]
    return Replay(np.asarray([t for t, _ in runs]), np.stack([r for _, r in runs]))


def load(paths: Iterable[Path]) -> dict[str, ModelTable]:
    """The tables of all files; a model may be in one of them only."""
    tables: dict[str, ModelTable] = {}
    for path in paths:
        found, notes = read_tables(path)
        for note in notes:
            print(f"{path}: {note}", file=sys.stderr)
        double = next((name for name in found if name in tables), None)
        if double:
            raise UsageError(f"{path}: {double} is in an earlier table too")
        tables |= found
    return tables


def main(argv: list[str] | None = None) -> int:
    """Print one table per model and the geometric means over the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE")
    parser.add_argument("--methods", metavar="M,…", help=f"default: all that the tables allow of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=100, metavar="N")
    parser.add_argument("--models", metavar="NAME,…", help="search these only; the others still teach")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and regret curves")
    arguments = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        _run(arguments)
    except QuantuneError as error:
        print(f"search_replay: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(arguments: argparse.Namespace) -> None:
    tables = load(arguments.tables)
    models = arguments.models.split(",") if arguments.models else list(tables)
    methods = arguments.methods.split(",") if arguments.methods else applicable(list(tables.values()))
    _check(models, tables, "model")
    _check(methods, METHODS, "method")
    if arguments.seeds < 1:
        raise UsageError(f"--seeds {arguments.seeds}: expected 1 or more")
    found: dict[str, dict[str, Replay]] = {}
    seconds: dict[str, float] = {}
    print(f"trials until the best of the table: mean ± 95 % over {arguments.seeds} seeds")
    for model in models:
        table = tables[model]
        task = Task(table, [t for name, t in tables.items() if name != model])
        print(f"\n{model} ({len(table.points)} points, best {100 * table.accuracy.max():.2f} %)\n{'':17}{HEADER}")
        for name in methods:
            begin = time.monotonic()
            runs = replay(METHODS[name](task), table, range(1 if name == "grid" else arguments.seeds))
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - begin
            found.setdefault(name, {})[model] = runs
            cells = [_plus_minus(runs.trials[:, i]) for i in range(len(TARGETS))]
            print(f"{name:17}" + " ".join(f"{c:>14}" for c in (*cells, _plus_minus(runs.area))), flush=True)
    means = {name: [geometric_mean(list(of.values()), i) for i in range(len(TARGETS))] for name, of in found.items()}
    _show_means(means, found, seconds)
    if arguments.json:
        _write(arguments, found, means, seconds)


def _check(names: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"{what} '{name}': expected one of {', '.join(known)}")


def _show_means(means: dict[str, list[dict]], found: dict[str, dict[str, Replay]], seconds: dict[str, float]) -> None:
    wide = " ".join(f"{'within ' + format(100 * t, 'g') + ' pt':>30}" for t in TARGETS)
    print(f"\ngeometric mean over models (95 % over seeds | over models)\n{'':17}{wide}{'area':>10}{'seconds':>9}")
    for name, of in means.items():
        cells = []
        for m in of:
            (low, high), (few, many) = m["seeds_95"], m["models_95"]
            cells.append(f"{m['mean']:.1f} ({low:.1f}–{high:.1f} | {few:.1f}–{many:.1f})")
        area = statistics.geometric_mean(max(float(r.area.mean()), 1e-3) for r in found[name].values())
        print(f"{name:17}" + " ".join(f"{c:>30}" for c in cells) + f"{area:10.1f}{seconds[name]:9.1f}")


def _write(
    arguments: argparse.Namespace,
    found: dict[str, dict[str, Replay]],
    means: dict[str, list[dict]],
    seconds: dict[str, float],
) -> None:
    targets = [format(100 * t, "g") for t in TARGETS]
    report = {
        "tables": [path.name for path in arguments.tables],
        "seeds": arguments.seeds,
        "targets_points": targets,
        "methods": {
            name: {
                "seconds": round(seconds[name], 2),
                "geometric_mean": dict(zip(targets, means[name], strict=True)),
                "models": {model: summary(runs) for model, runs in of.items()},
            }
            for name, of in found.items()
        },
    }
    try:
        arguments.json.write_text(json.dumps(report) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {arguments.json}: {error.strerror or error}") from error


def _plus_minus(values: np.ndarray) -> str:
    mean, low, _ = interval_over_seeds(values)
    return f"{mean:.1f} ±{mean - low:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
