"""A recipe and a report such as a search writes, for tests of model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantune.metrics import parse
from quantune.quantization.config import QuantConfig
from quantune.report.report import build_report
from quantune.search.result import TuningResult, TuningTrial
from quantune.search.scores import Objective, Score

F32 = TuningTrial(-1, QuantConfig(precision="f32"), "complete", Score(0.8, 5.0, 4_000_000, 1000))
BEST = TuningTrial(0, QuantConfig(), "complete", Score(0.79, 2.0, 1_000_000, 1000))


def report(*, feasible: bool = True, metric: str = "top-1") -> dict[str, Any]:
    """What report.json holds."""
    best = BEST if feasible else F32
    baselines = {"f32": F32}
    goal = Objective("latency", 0.02 if feasible else 0.001, parse(metric))
    made = TuningResult(goal, (BEST,), baselines, best, BEST, (BEST,), "1 trials", False, 1.0, 96, Path())
    environment = {"processor": "A processor", "threads": "1", "peak memory, search": "12 MB", "flags": "-O"}
    return build_report(made, model="net", target="cpu", environment=environment).model_dump(mode="json")


def recipe(**changes: Any) -> dict[str, Any]:
    """What best.json holds."""
    images = {"source": "builtin:shapes", "count": 1000, "fingerprint": "0123456789abcdef" * 4}
    return {
        "configuration": str(QuantConfig()), "model": "net", "target": "cpu", "input_shape": [2, 3, 8, 8],
        "size_bytes": 1_000_000, "evaluation_images": images, "calibration_images": images, "threads": 1,
        "metric": "top-1", "accuracy_of_the_file": 0.79, "file_sha256": "f" * 64,
        "versions": {"iree-base-compiler": "3.13.0"},
        "rebuild": "quantune-compile net -o best.vmfb", "rebuild_exactly": "quantune-compile --like best.vmfb",
        "latency_percentiles_of_the_file_ms": {"50": 2.0, "90": 2.25, "99": 30.04, "calls": 321}, **changes,
    }  # fmt: skip


def own_metric(outputs: object, labels: object) -> object:
    """A metric of a user's."""
    raise NotImplementedError
