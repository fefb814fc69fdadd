"""Writes docs/results.md and its plots from what the other benchmarks measured.

  python test/benchmark/results.py [--tables FILE …] [--compiled REPLAY.json] [--authors REPLAY.json]
                                   [--all REPLAY.json] [--peers PEERS.json] [--docs FOLDER]

FILEs are of test/benchmark/table.py, REPLAYs of test/benchmark/search_replay.py --json, PEERS of
test/benchmark/peers.py --json; without options those in docs/results are used. New ones are put there, without the
numbers that the page does not need.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from results_lib import document, plots
from results_lib.tables import Measured, importance, read, summary

from quantune.errors import QuantuneError, UsageError
from quantune.zoo.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
REPLAYS = {
    "compiled": ("Our six models, compiled artifacts", "search_replay.py docs/results/tables.json --seeds {seeds}"),
    "authors": (
        "ImageNet accuracies measured by the authors of Quantune, four models",
        "search_replay.py quantune_imagenet.csv --seeds {seeds}",
    ),
    "all": (
        "The same four models, with ours among those to learn from",
        "search_replay.py quantune_imagenet.csv docs/results/tables.json --seeds {seeds} "
        "--models ShuffleNet,MobileNet,googlenet_slim_v4,resnet18",
    ),
}
PEERS = ("onnxruntime", "openvino")


def store_tables(tables: Sequence[Measured], path: Path) -> None:
    """Write tables as one JSON list, a row a line."""
    rows = [json.dumps(row) for table in tables for row in (*table.floats, *table.rows)]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def store_replay(source: Path, path: Path) -> None:
    """Copy a replay without the trials of each seed."""
    replay = read_replay(source)
    for method in replay["methods"].values():
        for model in method["models"].values():
            model.pop("trials_by_seed", None)
            model.pop("regret_5_95", None)
    path.write_text(json.dumps(replay, indent=1) + "\n", encoding="utf-8")


def store_peers(source: Path, path: Path) -> None:
    """Copy a contest without the times of each round."""
    report = read_peers(source)
    for row in report["rows"]:
        row.pop("rounds_ms", None)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_report(path: Path, needed: str, script: str) -> dict[str, Any]:
    """What ``script --json`` wrote. Raises UsageError where ``needed`` is missing or empty."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report[needed], f"no {needed}"
        return report
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UsageError(f"{path}: not what {script} --json writes ({error})") from error


def read_replay(path: Path) -> dict[str, Any]:
    """A replay's figures."""
    return read_report(path, "methods", "search_replay.py")


def read_peers(path: Path) -> dict[str, Any]:
    """A contest's figures."""
    return read_report(path, "rows", "peers.py")


def write_page(folder: Path) -> Path:
    """Write the page and its plots from the numbers in ``folder``/results."""
    data = folder / "results"
    tables = read([data / "tables.json"])
    summaries = [summary(table) for table in tables]
    shares = {table.model: importance(table.rows) for table in tables}
    plots.accuracy_against_latency(tables, data / "accuracy_latency.svg")
    plots.option_importance(shares, data / "importance.svg")
    replays = [_section(name, read_replay(data / f"replay_{name}.json"), data) for name in REPLAYS]
    contest = read_peers(data / "peers.json")
    contests = [(p, n, document.speed(contest, p, n)) for p in ("int8", "f32") for n in (1, 2)]
    template = (Path(__file__).parent / "results_lib" / "page.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    page = environment.from_string(template).render(
        machine=tables[0].f32.get("machine", "2 processors, x86-64 with AVX512-VNNI"),
        images=tables[0].f32["images"],
        error=f"{196 * math.sqrt(0.8 * 0.2 / tables[0].f32['images']):.1f}",
        models=document.models(summaries),
        choices=document.choices(summaries),
        training=_training(tables),
        shares=document.shares(shares),
        replays=replays,
        paper=document.paper(summaries),
        contests=contests,
        contest_versions=", ".join(f"{name} {contest['versions'][name]}" for name in PEERS),
        contest_rounds=contest["rounds"],
        contest_machine=contest["machine"].split(", load")[0],
    )
    path = folder / "results.md"
    path.write_text(page, encoding="utf-8")
    return path


def _section(name: str, replay: Mapping[str, Any], data: Path) -> dict[str, Any]:
    title, command = REPLAYS[name]
    curves: dict[str, dict[str, list[float]]] = {}
    for method, result in replay["methods"].items():
        for model, runs in result["models"].items():
            curves.setdefault(model, {})[method] = runs["regret_mean"]
    plot = data / f"regret_{name}.svg"
    plots.regret(curves, plot)
    return {
        "title": title,
        "seeds": replay["seeds"],
        "trials": document.trials(replay),
        "per_model": document.per_model(replay, "0.1"),
        "plot": os.path.relpath(plot, data.parent),
        "command": f"python test/benchmark/{command.format(seeds=replay['seeds'])} --json REPLAY.json",
    }


def _training(tables: Sequence[Measured]) -> str:
    known = [RECIPES[table.model] for table in tables if table.model in RECIPES]
    imbalanced = [f"{r.name} ({r.octaves:g} octaves)" for r in known if r.octaves]
    plain = [r.name for r in known if not r.octaves]
    parts = []
    if imbalanced:
        parts.append(f"With a channel imbalance that leaves the f32 outputs as they are: {', '.join(imbalanced)}.")
    if plain:
        parts.append(f"As trained: {', '.join(plain)}.")
    return textwrap.fill(" ".join(parts), 120)


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, nargs="+", metavar="FILE")
    for name in REPLAYS:
        parser.add_argument(f"--{name}", type=Path, metavar="REPLAY.json")
    parser.add_argument("--peers", type=Path, metavar="PEERS.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="FOLDER")
    arguments = parser.parse_args(argv)
    data = arguments.docs / "results"
    try:
        data.mkdir(parents=True, exist_ok=True)
        if arguments.tables:
            store_tables(read(arguments.tables), data / "tables.json")
        for name in REPLAYS:
            if source := getattr(arguments, name):
                store_replay(source, data / f"replay_{name}.json")
        if arguments.peers:
            store_peers(arguments.peers, data / "peers.json")
        print(write_page(arguments.docs))
    except QuantuneError as error:
        print(f"results.py: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
