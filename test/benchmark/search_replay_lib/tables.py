"""Tables of measured configurations, read from the CSV of the Quantune authors' columns or from our own JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from quantune.errors import UsageError
from quantune.quantization.predictions import ARCHITECTURE, FEATURES
from quantune.quantization.space import PARAMETERS
from quantune.search.features import key_of
from quantune.search.transfer import PastStudy
from quantune.tuning.screening import SCREENED
from search_replay_lib.paper import ARCHITECTURES, F32

KNOWN = (*FEATURES, *ARCHITECTURE, SCREENED)
"""What a search knows of a configuration before its trial."""
COLUMNS = ("model", "precision", "calib_images", "granularity", "clipping", "scheme", "accuracy")
FLOATS = ("f32", "f16")


@dataclass(frozen=True)
class ModelTable:
    """All points of one model's space with their accuracies.

    points: parameters. accuracy: (n,), fractions. reference: of f32, None where unknown. features: (n, len(KNOWN)),
    None where the table tells none. architecture: numbers of the model. identity: equal for points that compute the
    same.
    """

    name: str
    points: tuple[dict[str, Any], ...]
    accuracy: np.ndarray
    reference: float | None
    features: np.ndarray | None = None
    architecture: tuple[float, ...] = ()
    identity: tuple[str, ...] = ()

    @property
    def space(self) -> dict[str, CategoricalDistribution]:
        """The choices that occur, in the order of the level 1 space."""
        return {
            k: CategoricalDistribution([c for c in choices if any(p[k] == c for p in self.points)])
            for k, choices in PARAMETERS.items()
        }

    def index(self) -> dict[tuple[float, ...], int]:
        """Points by their key in `space`."""
        return {key_of(p, self.space): i for i, p in enumerate(self.points)}

    def study(self) -> PastStudy:
        """The table as a study that others may learn from; the reference must be known."""
        if self.reference is None:
            raise UsageError(f"the table of {self.name} has no row of precision f32")
        rows = tuple((p, float(v)) for p, v in zip(self.points, self.accuracy, strict=True))
        if self.features is None:
            return PastStudy(self.name, rows, self.reference)
        return PastStudy(self.name, rows, self.reference, KNOWN, tuple(tuple(map(float, f)) for f in self.features))


def read_tables(path: Path) -> tuple[dict[str, ModelTable], list[str]]:
    """The complete tables of a file by model, and a line for each model that is left out.

    Raises UsageError that names the file and the row of what is wrong.
    """
    try:
        rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: neither a CSV nor a JSON table ({error})") from error
    tables: dict[str, ModelTable] = {}
    notes: list[str] = []
    for model in dict.fromkeys(r["model"] for r in rows):
        table = _table(model, [r for r in rows if r["model"] == model], path)
        points = math.prod(len(d.choices) for d in table.space.values())
        if len(table.points) == points > 1:
            tables[model] = table
        else:
            notes.append(f"{model}: {len(table.points)} rows for {points} points, left out")
    if not tables:
        raise UsageError(f"{path}: no model has all points of its space; {'; '.join(notes) or 'the table is empty'}")
    return tables, notes


def _table(model: str, rows: list[dict[str, Any]], path: Path) -> ModelTable:
    quantized = [r for r in rows if r["precision"] not in FLOATS]
    known: dict[tuple[Any, ...], str] = {}
    for row in quantized:
        key = tuple(row[k] for k in PARAMETERS)
        if key in known:
            raise UsageError(f"{path}, {row['where']}: the same configuration of {model} as in {known[key]}")
        known[key] = row["where"]
    reference = next((r["accuracy"] for r in rows if r["precision"] == "f32"), F32.get(model))
    features = [r.get("features") for r in quantized]
    whole = all(f is not None and len(f) == len(KNOWN) for f in features) and bool(features)
    matrix = np.asarray(features, dtype=np.float64) if whole else None
    own = () if matrix is None else tuple(map(float, matrix[0, len(FEATURES) : -1]))
    points = tuple({k: r[k] for k in PARAMETERS} for r in quantized)
    values = np.asarray([r["accuracy"] for r in quantized], dtype=np.float64)
    identity = tuple(str(r.get("identity", i)) for i, r in enumerate(quantized))
    return ModelTable(model, points, values, reference, matrix, ARCHITECTURES.get(model, own), identity)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(f"{path}: column {missing[0]} is missing; expected {', '.join(COLUMNS)}")
        return [_from_csv(row, f"line {reader.line_num}", path) for row in reader]


def _from_csv(row: Mapping[str, str | None], where: str, path: Path) -> dict[str, Any]:
    texts = {k: (row[k] or "").strip() for k in COLUMNS}
    parsed: dict[str, Any] = {"model": texts["model"], "precision": texts["precision"], "where": where}
    parsed["accuracy"] = _number(texts["accuracy"], f"{path}, {where}: accuracy", 100.0) / 100
    if texts["precision"] not in FLOATS:
        calib = _number(texts["calib_images"], f"{path}, {where}: calib_images", 1e9)
        parsed |= {"calib": int(calib), "clip": texts["clipping"].lower()}
        parsed |= {"scheme": texts["scheme"], "granularity": texts["granularity"]}
    return _checked(parsed, path)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise UsageError(f"{path}: expected a list of rows, as test/benchmark/table.py writes it")
    parsed = []
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        missing = [k for k in ("model", "precision", "accuracy") if k not in row]
        if missing:
            raise UsageError(f"{path}, {where}: {missing[0]} is missing")
        accuracy = _number(row["accuracy"], f"{path}, {where}: accuracy", 1.0)
        parsed.append(_checked({**row, "accuracy": accuracy, "where": where}, path))
    return parsed


def _checked(row: dict[str, Any], path: Path) -> dict[str, Any]:
    if row["precision"] in FLOATS:
        return row
    for name, choices in PARAMETERS.items():
        if row.get(name) not in choices:
            expected = ", ".join(map(str, choices))
            raise UsageError(f"{path}, {row['where']}: {name} is {row.get(name)!r}, expected one of {expected}")
    return row


def _number(value: Any, what: str, limit: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= limit:  # also false for NaN
        raise UsageError(f"{what} is {value!r}, expected a number from 0 to {limit:g}")
    return number
