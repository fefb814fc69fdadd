"""The page of results: what it says of a table of measured configurations."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from quantune.errors import UsageError
from quantune.quantization.space import PARAMETERS

tables = importlib.import_module("results_lib.tables")
document = importlib.import_module("results_lib.document")


def rows() -> list[dict[str, Any]]:
    """A model that loses two points per tensor and one more with KL, and is faster in int8 than in mixed."""
    found = [{"model": "net", "precision": "f32", "accuracy": 0.9, "latency_ms": 4.0, "size_bytes": 4000}]
    for values in itertools.product(*PARAMETERS.values()):
        row = dict(zip(PARAMETERS, values, strict=True))
        lost = 0.02 * (row["granularity"] == "tensor") + 0.01 * (row["clip"] == "kl")
        found.append(
            {"model": "net", **row, "accuracy": 0.892 - lost, "latency_ms": 1.0 + (row["precision"] == "mixed"),
             "size_bytes": 1000, "program": row["precision"], "identity": f"{values[1:]}", "features": []}
        )  # fmt: skip
    return found


def measured(tmp_path: Path) -> Any:
    (tmp_path / "t.json").write_text(json.dumps(rows()), encoding="utf-8")
    return tables.read([tmp_path / "t.json"])[0]


def test_a_table_is_summarized(tmp_path: Path) -> None:
    summary = tables.summary(measured(tmp_path))
    assert (summary.best["granularity"], summary.best["clip"], summary.best["precision"]) == ("channel", "max", "int8")
    assert summary.drop == pytest.approx(0.8)
    assert (summary.configurations, summary.programs, summary.losing_a_point, summary.distinct) == (96, 2, 72, 32)
    assert summary.worst == pytest.approx(0.862)
    assert "| net | 90.00 | 89.20 | -0.80 |" in document.models([summary])


def test_options_that_change_nothing_explain_nothing(tmp_path: Path) -> None:
    shares = tables.importance(measured(tmp_path).rows)
    assert shares["granularity"] > shares["clip"] > 0.1
    assert shares["scheme"] == shares["calib"] == shares["precision"] == pytest.approx(0)


def test_speed_is_told_beside_the_others() -> None:
    def row(engine: str, ms: float, ratio: float | None, **other: Any) -> dict[str, Any]:
        interval = None if ratio is None else [ratio, ratio, ratio]
        return {
            "model": "net",
            "engine": engine,
            "precision": "int8",
            "threads": 2,
            "ms": ms,
            "ratio": interval,
            **other,
        }

    rows = [row("quantune", 1.0, None), row("peer", 2.0, 0.5), row("peer", 9.0, 0.1, threads=1)]
    rows += [row("quantune", 4.0, None, model="other"), row("peer", 2.0, 2.0, model="other")]
    table = document.speed({"rows": rows}, "int8", 2).splitlines()
    assert table[0] == "| model | quantune | peer |"
    assert table[2:] == [
        "| net | 1.00 | 2.00 (0.50) |",
        "| other | 4.00 | 2.00 (2.00) |",
        "| geometric mean |  | 1.000 |",
    ]


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"t\.json: not a table of test/benchmark/table\.py"):
        tables.read([tmp_path / "t.json"])
