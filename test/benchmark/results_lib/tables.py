"""What the tables that test/benchmark/table.py writes say of each model."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from quantune.errors import UsageError

OPTIONS = ("scheme", "clip", "granularity", "calib", "precision")
DEFAULT = {"calib": 1000, "scheme": "asymmetric", "clip": "max", "granularity": "channel", "precision": "int8"}
"""What a tool without a search would take."""


@dataclass(frozen=True)
class Summary:
    """One model's table: accuracies as fractions, times in ms, sizes in bytes."""

    model: str
    f32: Mapping[str, float]
    best: Mapping[str, Any]
    default: Mapping[str, Any]
    median: float
    worst: float
    losing_a_point: int
    configurations: int
    programs: int
    distinct: int

    @property
    def drop(self) -> float:
        """Points of top-1 that the best configuration loses."""
        return 100 * (self.f32["accuracy"] - self.best["accuracy"])


@dataclass(frozen=True)
class Measured:
    """The rows of one model: those of its float artifacts, and those of the configurations."""

    model: str
    floats: tuple[Mapping[str, Any], ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def f32(self) -> Mapping[str, Any]:
        """The row of the f32 artifact."""
        return next(row for row in self.floats if row["precision"] == "f32")


def read(paths: Iterable[Path]) -> list[Measured]:
    """The tables of one or several files, a model once. Raises UsageError for a file that is no table."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path in paths:
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                found.setdefault(row["model"], []).append(row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a table of test/benchmark/table.py ({error})") from error
    return [
        Measured(model, *(tuple(r for r in rows if ("features" in r) == quantized) for quantized in (False, True)))
        for model, rows in found.items()
    ]


def summary(measured: Measured) -> Summary:
    """Describe a table; the best is the fastest of the most accurate ones."""
    rows, f32 = measured.rows, measured.f32
    accuracies = [row["accuracy"] for row in rows]
    return Summary(
        model=measured.model,
        f32=f32,
        best=min(rows, key=lambda row: (-row["accuracy"], row["latency_ms"])),
        default=next(row for row in rows if all(row[k] == v for k, v in DEFAULT.items())),
        median=statistics.median(accuracies),
        worst=min(accuracies),
        losing_a_point=sum(f32["accuracy"] - a > 0.01 + 1e-9 for a in accuracies),
        configurations=len(rows),
        programs=len({row["program"] for row in rows}),
        distinct=len({row["identity"] for row in rows}),
    )


def importance(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the variance of the rows' accuracy ranks that each option explains alone; the rest is interaction.

    Ranks, because a few configurations that collapse would decide everything.
    """
    ranks = rankdata([row["accuracy"] for row in rows])
    total = ranks.var()
    shares = {}
    for option in OPTIONS:
        values = np.array([str(row[option]) for row in rows])
        means = np.array([ranks[values == value].mean() for value in values])
        shares[option] = float(means.var() / total) if total else 0.0
    return shares
