"""The page's plots, as SVG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .tables import Measured

_INK, _GRID = "#333333", "#dddddd"
_COLORS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#cb912f", "#6b6b6b", "#2f9e9e", "#b0413e", "#5b6bd6")
_LEAST_GAP = 0.01
# Ids and dates that depend on nothing: the same numbers give the same file.
_STYLE: dict[Any, Any] = {"svg.hashsalt": "quantune", "font.size": 9, "axes.edgecolor": _INK, "axes.labelcolor": _INK}


def accuracy_against_latency(tables: Sequence[Measured], path: Path) -> None:
    """One panel a model: every configuration, and the f32 artifact as a line across."""

    def draw(axes: Axes, table: Measured) -> None:
        for precision, marker in (("int8", "o"), ("mixed", "s")):
            rows = [row for row in table.rows if row["precision"] == precision]
            x, y = [row["latency_ms"] for row in rows], [100 * row["accuracy"] for row in rows]
            axes.plot(x, y, marker, ms=4, alpha=0.7, label=precision, color=_COLORS[precision == "mixed"])
        f32 = table.f32
        axes.axhline(100 * f32["accuracy"], color=_INK, lw=1, ls="--", label=f"f32, {f32['latency_ms']:.2f} ms")
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(table.model, fontsize=9)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("top-1, %")
        axes.legend(fontsize=7, loc="lower right")

    _panels(tables, draw, path)


def option_importance(shares: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Grouped bars: the share of each option, model by model."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    options = list(next(iter(shares.values())))
    width = 0.8 / len(shares)
    for i, (model, share) in enumerate(shares.items()):
        at = np.arange(len(options)) + (i - (len(shares) - 1) / 2) * width
        axes.bar(at, [100 * share[o] for o in options], width, label=model, color=_COLORS[i % len(_COLORS)])
    axes.set_xticks(range(len(options)), options)
    axes.set_ylabel("% of the variance of ranks")
    axes.legend(fontsize=7)
    _save(figure, path)


def regret(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """One panel a table: the mean gap to the best, in points, after each trial of each search; our own are thick."""
    names = list(next(iter(curves.values())))

    def draw(axes: Axes, title: str) -> None:
        for i, name in enumerate(names):
            points = [max(gap, _LEAST_GAP) for gap in curves[title][name]]
            ours = name.startswith("xgboost")
            style = {"lw": 2.2 if ours else 1.0, "ls": "-" if ours or i < len(_COLORS) else "--", "zorder": 3 + ours}
            axes.plot(range(1, len(points) + 1), points, label=name, color=_COLORS[i % len(_COLORS)], **style)
        axes.set_yscale("log")
        axes.set_xlim(1, 40)
        axes.set_ylim(bottom=_LEAST_GAP)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("trials")
        axes.set_ylabel("points below the best")

    _panels(list(curves), draw, path, legend=True)


def _panels(items: Sequence[Any], draw: Any, path: Path, *, legend: bool = False) -> None:
    columns = min(3, len(items))
    rows = math.ceil(len(items) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, item in zip(grid.flat, items, strict=False):
        draw(axes, item)
    for axes in grid.flat[len(items) :]:
        axes.set_visible(False)
    if legend:
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(color=_GRID, lw=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})
