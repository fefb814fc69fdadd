"""Tables on the terminal."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .machine import Peak, cpu_flags
from .values import ENGINES, Row, geomean

SHOW_INTERVAL = 5  # rounds


def environment() -> dict[str, Any]:
    """Where the numbers come from: machine with load, the processor's features, versions of all engines."""
    from quantune.cli.benchmark import machine
    from quantune.versions import versions

    known = versions()
    for package in ("torchvision", "onnxruntime", "openvino", "onnx"):
        if importlib.util.find_spec(package):
            known[package] = importlib.metadata.version(package)
    return {"machine": machine(), "flags": cpu_flags(), "versions": known}


def show(report: dict[str, Any], rows: list[Row]) -> None:
    """A table for each precision and number of threads, memory and numerics, and the geometric means."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for precision in ("f32", "int8"):
        for threads in sorted({row.threads for row in rows}):
            part = [row for row in rows if (row.precision, row.threads) == (precision, threads)]
            title = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            _print_matrix(console, title, part, _speed_cell)
        part = [row for row in rows if row.precision == precision and row.threads == max(r.threads for r in rows)]
        _print_matrix(console, f"{precision}, memory and numerics", part, _memory_cell)
    console.print(
        "Cells of times: ms ± half the distance of the quartiles of the rounds; quantune's time / this one's (95 %)."
    )
    console.print(
        "Cells of memory: peak MB of the process (of it engine and model); logits against torch f32, same top-1."
    )
    lines = [(what, f"{mean:.3f}", f"{worst:.3f} {model}") for what, (mean, model, worst) in report["summary"].items()]
    _print_table(console, "quantune, geometric means over the models", ("ratio of", "geomean", "largest"), lines)
    for model, spent in report["seconds"].items():
        console.print(f"{model}: compiled in " + ", ".join(f"{what} {value:.1f} s" for what, value in spent.items()))
    for model, reasons in report["absent"].items():
        for what, reason in reasons.items():
            console.print(f"{model}: without {what}: {reason}", markup=False)


def _speed_cell(row: Row) -> str:
    time_ = f"{row.ms:.2f} ±{row.spread_ms / 2:.2f}"
    if row.ratio is None:
        return time_
    # Few rounds give an interval that is too narrow to be shown.
    interval = " ({:.2f}-{:.2f})".format(*row.ratio[1:]) if len(row.rounds_ms) >= SHOW_INTERVAL else ""
    return f"{time_}\n{row.ratio[0]:.2f}{interval}"


def _memory_cell(row: Row) -> str:
    return f"{row.peak_mb:.0f} ({row.added_mb:.0f})\n{row.sqnr_db:.1f} dB, {row.top1:.0%}"


def _print_matrix(console: Any, title: str, rows: list[Row], cell: Callable[[Row], str]) -> None:
    if not rows:
        return
    engines = [engine for engine in ENGINES if any(row.engine == engine for row in rows)]
    cells = {(row.model, row.engine): cell(row) for row in rows}
    lines = [[m, *(cells.get((m, e), "-") for e in engines)] for m in dict.fromkeys(row.model for row in rows)]
    means = {e: geomean(row.ratio[0] for row in rows if row.engine == e and row.ratio) for e in engines}
    if cell is _speed_cell and len(lines) > 1:
        lines.append(["geometric mean", *("" if math.isnan(m) else f"{m:.3f}" for m in means.values())])
    _print_table(console, title, ["model", *engines], lines)


def _print_table(console: Any, title: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def show_layers(rows: list[dict[str, Any]], peak: Peak | None) -> None:
    """One line for each dispatch, the sums, and what the peak is."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    total = {key: sum(row[key] for row in rows) for key in ("ms", "share", "mmac")}
    speed = total["mmac"] / max(total["ms"], 1e-9)
    of_peak = speed / peak.gmac_per_s if peak else None
    every = [*rows, {"layers": "all", **total, "gmac_per_s": speed, "of_peak": of_peak}]
    lines = [
        (
            r["layers"],
            f"{r['ms']:.4f}",
            f"{r['share']:.1%}",
            f"{r['mmac']:.2f}",
            f"{r['gmac_per_s']:.0f}",
            "-" if r["of_peak"] is None else f"{r['of_peak']:.0%}",
        )
        for r in every
    ]
    _print_table(console, "quantune, 1 thread", ("layers", "ms", "share", "MMAC", "GMAC/s", "of peak"), lines)
    console.print(f"peak: {peak.formula}" if peak else "peak: unknown for this instruction set or clock")
