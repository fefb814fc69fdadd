"""The page of results: one section a kind of measurement, each with the command that makes its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .published import MODELS, SEARCHES
from .tables import Summary


def models(summaries: Sequence[Summary]) -> str:
    """What quantization does to each of the measured models."""
    rows = [
        (
            s.model, _percent(s.f32["accuracy"]), _percent(s.best["accuracy"]), f"{-s.drop:+.2f}",
            _percent(s.default["accuracy"]), _percent(s.median), _percent(s.worst),
            f"{s.losing_a_point} of {s.configurations}", str(s.programs), str(s.distinct),
            f"{s.f32['latency_ms'] / s.best['latency_ms']:.1f}x", f"{s.f32['size_bytes'] / s.best['size_bytes']:.2f}x",
        )
        for s in summaries
    ]  # fmt: skip
    heads = (
        "model", "f32", "best of all", "points", "default int8", "median", "worst", "lose over a point", "programs",
        "distinct", "faster", "smaller",
    )  # fmt: skip
    return _table(heads, rows)


def choices(summaries: Sequence[Summary]) -> str:
    """The best configuration of each model."""
    rows = [
        (s.model, *(str(s.best[o]) for o in ("scheme", "clip", "granularity", "calib", "precision")),
         f"{s.best['latency_ms']:.3f}", f"{s.best['size_bytes'] / 1e6:.2f}")
        for s in summaries
    ]  # fmt: skip
    return _table(("model", "scheme", "clip", "granularity", "calib", "precision", "ms", "MB"), rows)


def paper(summaries: Sequence[Summary]) -> str:
    """The paper's accuracies and trials beside this project's accuracies."""
    ours = {s.model.split("_")[0]: s for s in summaries}
    known = {
        "MobileNetV2": "mobilenet", "ShuffleNet": "shufflenet", "SqueezeNet": "squeezenet1",
        "GoogLeNet-v4": "googlenet", "ResNet18": "resnet18", "ResNet50": "resnet50",
    }  # fmt: skip
    rows = []
    for model in MODELS:
        mine = ours.get(known[model.model])
        rows.append(
            (
                model.model, f"{model.f32:.2f}", f"{model.best:.2f}", f"{-model.drop:+.2f}",
                *map(str, model.trials), f"{-mine.drop:+.2f}" if mine else "–",
            )
        )  # fmt: skip
    heads = ("model", "f32", "best int8", "points", *(f"trials, {s}" for s in SEARCHES), "points here")
    return _table(heads, rows)


def trials(replay: Mapping[str, Any]) -> str:
    """Trials to each target: geometric mean over the models, and its interval over models."""
    targets = replay["targets_points"]
    rows = [
        (name, *(_interval(result["geometric_mean"][target]) for target in targets))
        for name, result in replay["methods"].items()
    ]
    return _table(("search", *(f"within {t} points" if float(t) else "exact best" for t in targets)), rows)


def per_model(replay: Mapping[str, Any], target: str) -> str:
    """Mean trials to one target, model by model."""
    methods = replay["methods"]
    names = list(next(iter(methods.values()))["models"])
    rows = [
        (name, *(f"{result['models'][model]['trials'][target][0]:.1f}" for model in names))
        for name, result in methods.items()
    ]
    return _table(("search", *names), rows)


def speed(report: Mapping[str, Any], precision: str, threads: int) -> str:
    """Milliseconds a call of each engine, and in brackets quantune's time over the engine's."""
    part = [row for row in report["rows"] if (row["precision"], row["threads"]) == (precision, threads)]
    engines = list(dict.fromkeys(row["engine"] for row in part))
    cells = {(row["model"], row["engine"]): row for row in part}
    lines = []
    for model in dict.fromkeys(row["model"] for row in part):
        line = [model]
        for engine in engines:
            row = cells.get((model, engine))
            ratio = "" if row is None or row["ratio"] is None else f" ({row['ratio'][0]:.2f})"
            line.append("–" if row is None else f"{row['ms']:.2f}{ratio}")
        lines.append(line)
    ratios = {e: [row["ratio"][0] for row in part if row["engine"] == e and row["ratio"]] for e in engines}
    means = (f"{statistics.geometric_mean(found):.3f}" if found else "" for found in ratios.values())
    return _table(("model", *engines), [*lines, ("geometric mean", *means)])


def shares(values: Mapping[str, Mapping[str, float]]) -> str:
    """Importance of the options in percent."""
    options = list(next(iter(values.values())))
    rows = [(model, *(f"{100 * share[o]:.0f}" for o in options), f"{100 * (1 - sum(share.values())):.0f}")
            for model, share in values.items()]  # fmt: skip
    return _table(("model", *options, "interactions"), rows)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _interval(value: Mapping[str, Any]) -> str:
    low, high = value["models_95"]
    return f"{value['mean']:.1f} ({low:.1f}–{high:.1f})"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
