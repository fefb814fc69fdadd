"""The model card of an artifact: README.md beside it, with what Hugging Face's and people's eyes look for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from quantune.process import places
from quantune.report.schema import Goal

CARD = "README.md"
_TASKS = {
    "top-1": "image-classification", "top-5": "image-classification", "mIoU": "image-segmentation",
    "mse": "image-to-image", "psnr": "image-to-image",
}  # fmt: skip
"""What a network is for, by the metric that judged it, in Hugging Face's words; distances to f32 do not tell."""


def write_card(recipe: Mapping[str, Any], report: Mapping[str, Any], folder: Path) -> Path:
    """Write the card of the artifact that ``recipe`` (best.json) and ``report`` (report.json) describe."""
    return places.write(folder / CARD, render_card(recipe, report).encode("utf-8", "backslashreplace"), "model card")


def render_card(recipe: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The card's text: YAML for machines, then Markdown."""
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"yaml": _yaml, "text": _text, "ms": _milliseconds, "quoted": shlex.quote}
    source = resources.files("quantune.report").joinpath("templates/README.md.j2").read_text(encoding="utf-8")
    rows = [(name, row["measurement"]) for name, row in _rows(report) if row and row["measurement"]]
    hardware = {k: v for k, v in report["environment"].items() if k in ("processor", "timed on", "system", "threads")}
    memory = {k: v for k, v in report["environment"].items() if k.startswith("peak memory")}
    return environment.from_string(source).render(
        recipe=recipe, report=report, rows=rows, hardware=hardware, memory=memory,
        goal=Goal.model_validate(report["objective"]), task=_TASKS.get(recipe["metric"]),
        percentiles=recipe["latency_percentiles_of_the_file_ms"], runtime=_runtime(recipe["versions"]),
    )  # fmt: skip


def _rows(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    best = report["best"] if report["feasible"] or not report["best_quantized"] else report["best_quantized"]
    return [("f32", report["f32"]), ("default int8", report["default"]), ("**this artifact**", best)]


def _runtime(versions: Mapping[str, str]) -> str:
    """The runtime to install: that of the compiler which made the artifact."""
    found = versions.get("iree-base-runtime") or versions.get("iree-base-compiler", "")
    return f"iree-base-runtime=={found}" if found else "iree-base-runtime"


def _yaml(value: object) -> str:
    """A value in YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=True)


def _text(value: object) -> str:
    """Foreign text in a line or a cell of Markdown."""
    plain = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in plain)


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"
