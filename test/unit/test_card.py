"""Model cards: what machines read in them, what people do, and that foreign names change neither."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from card_data import recipe, report

from quantune.report.card import render_card, write_card


def parts(card: str) -> tuple[dict, str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_machines_find_base_model_and_metric() -> None:
    head, _ = parts(render_card(recipe(), report()))
    assert (head["base_model"], head["base_model_relation"], head["library_name"]) == ("net", "quantized", "iree")
    [entry] = head["model-index"]
    [found] = entry["results"]
    assert found["metrics"] == [{"type": "accuracy", "name": "top-1", "value": 0.79}]
    assert found["dataset"]["name"] == "builtin:shapes"


@pytest.mark.parametrize(
    ("metric", "task", "expected"),
    [
        ("mIoU", "image-segmentation", "| | mIoU, % | 95 % interval |"),
        ("psnr", "image-to-image", "| | psnr, dB | 95 % interval |"),
        ("sqnr", None, "| | sqnr, dB | 95 % interval |"),
        ("card_data:own_metric", None, "| | card\\_data:own\\_metric | 95 % interval |"),
    ],
)
def test_the_metric_is_named_that_judged(metric: str, task: str | None, expected: str) -> None:
    head, body = parts(render_card(recipe(metric=metric), report(metric=metric)))
    [found] = head["model-index"][0]["results"]
    assert (head.get("pipeline_tag"), found["task"]["type"]) == (task, task or "other")
    assert found["metrics"] == [{"type": metric, "name": metric, "value": 0.79}]
    assert expected in body
    assert "| **this artifact** | 79.00 |" in body if metric == "mIoU" else "| **this artifact** | 0.79 |" in body
    assert "top-1" not in body


def test_people_find_what_was_measured_and_how_to_go_on() -> None:
    _, body = parts(render_card(recipe(), report()))
    for expected in (
        "| f32 | 80.00 | ", "| **this artifact** | 79.00 | ",
        "p50 2 ms, p90 2.25 ms, p99 30.0 ms (321 calls, threads: 1)",
        "| processor | A processor |", "| peak memory, search | 12 MB |", "pip install iree-base-runtime==3.13.0 numpy",
        "quantune-compile net -o best.vmfb", "quantune-compile --like best.vmfb", "f" * 64, "0123456789abcdef",
    ):  # fmt: skip
        assert expected in body
    assert "None" not in body
    assert "does **not** keep" not in body
    [code] = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    ast.parse(code)


def test_a_missed_bound_is_said() -> None:
    _, body = parts(render_card(recipe(), report(feasible=False)))
    assert "does **not** keep the accuracy bound" in body
    assert "| **this artifact** | 79.00 |" in body


def test_what_is_missing_is_said() -> None:
    given = recipe(latency_percentiles_of_the_file_ms=None, calibration_images={}, rebuild="")
    _, body = parts(render_card(given, report()))
    assert "The latency of the file was not measured." in body
    assert "Calibrated on nothing." in body
    assert "```sh\nquantune-compile --like best.vmfb\n```" in body


@pytest.mark.parametrize("name", ['a"b: [c]', "a\nb---\nc", "a|b`c`<script>", "{{ 7 * 7 }}"])
def test_foreign_names_are_text(name: str) -> None:
    head, body = parts(render_card(recipe(model=name), report()))
    assert head["base_model"] == name
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "49" not in body.replace("sha256", "").splitlines()[1]
    assert body.count("\n# ") == 1


def test_it_lies_beside_the_artifact(tmp_path: Path) -> None:
    path = write_card(recipe(), report(), tmp_path)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8").startswith('---\nbase_model: "net"\n')
