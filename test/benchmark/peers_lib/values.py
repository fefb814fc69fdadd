"""What takes part, what is measured of it, and the arithmetic on the measurements."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantune.errors import UsageError

# Engine -> its precisions, and the packages that it needs beyond quantune's own.
ENGINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "quantune": (("f32", "int8"), ()),
    "onnxruntime": (("f32", "int8"), ("onnxruntime", "onnx")),
    "openvino": (("f32", "int8"), ("openvino", "onnxruntime", "onnx")),
    "iree": (("f32", "int8"), ()),
    "torch": (("f32",), ()),
}
RESAMPLES = 2000


@dataclass(frozen=True)
class Contestant:
    """One engine with one precision on one number of threads. file: the model as the engine reads it."""

    engine: str
    precision: str
    threads: int
    file: Path

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant on one model.

    rounds_ms: one median for each round. ratio: quantune's time divided by this one's at the same precision and number
    of threads, with its 95 % interval. peak_mb, added_mb: peak resident memory of the process, and what of it came with
    the engine and the model. sqnr_db, top1: logits against those of torch in f32.
    """

    model: str
    engine: str
    precision: str
    threads: int
    ms: float
    spread_ms: float
    minimum_ms: float
    rounds_ms: tuple[float, ...]
    ratio: tuple[float, float, float] | None
    peak_mb: float
    added_mb: float
    sqnr_db: float
    top1: float


def round_order(count: int, number: int) -> list[int]:
    """Who runs after whom in round ``number``: forwards, backwards, forwards."""
    order = list(range(count))
    return order if number % 2 == 0 else order[::-1]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians and its 95 % interval, from resampling whole rounds: a slow moment stays on both sides."""
    pairs = np.array([ours, theirs])
    chosen = np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, chosen], axis=2)
    low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5))
    return float(np.median(pairs[0]) / np.median(pairs[1])), float(low), float(high)


def geomean(values: Iterable[float]) -> float:
    """Geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Power of the reference against the power of the difference, in decibels; infinite when they are equal."""
    noise = float(np.square(other.astype(np.float64) - reference).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(reference.astype(np.float64)).sum()) / noise)


def selection(text: str) -> list[tuple[str, str]]:
    """Read ``quantune,openvino:int8`` as pairs of engine and precision; UsageError names an unknown one."""
    chosen = []
    for word in text.split(","):
        engine, _, precision = word.strip().partition(":")
        offered = ENGINES.get(engine, ((), ()))[0]
        if not offered or (precision and precision not in offered):
            known = " ".join(f"{name}:{p}" for name, (precisions, _) in ENGINES.items() for p in precisions)
            raise UsageError(f"--contestants {word}: expected engines or engine:precision of {known}")
        chosen += [(engine, p) for p in offered if not precision or p == precision]
    return chosen


def thread_counts(text: str) -> list[int]:
    """Read ``1,2``, in increasing order; UsageError for anything that is no number of threads."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--threads {text}: expected numbers of threads such as 1 or 1,2")
    return sorted({int(word) for word in words})


def missing_packages(engine: str) -> list[str]:
    """The packages of an engine that are not installed."""
    return [package for package in ENGINES[engine][1] if importlib.util.find_spec(package) is None]


def summarize(rows: list[Row], seconds: dict[str, dict[str, float]]) -> dict[str, tuple[float, str, float]]:
    """What is compared -> geometric mean over the models, the model with the largest ratio, and that ratio."""
    ms = {(r.model, r.engine, r.precision, r.threads): r.ms for r in rows}
    peak = {(r.model, r.engine, r.precision, r.threads): r.peak_mb for r in rows}
    found: dict[str, dict[str, float]] = {}

    def add(what: str, model: str, mine: float | None, theirs: float | None) -> None:
        if mine is not None and theirs is not None:
            found.setdefault(what, {})[model] = mine / theirs

    for model, engine, precision, threads in ms:
        text = f"{threads} thread{'s' * (threads > 1)}"
        mine = ("quantune", precision, threads)
        if engine != "quantune":
            add(
                f"{precision} / {engine} {precision}, {text}",
                model,
                ms.get((model, *mine)),
                ms[model, engine, precision, threads],
            )
            continue
        if precision == "int8":
            add(f"int8 / own f32, {text}", model, ms[model, *mine], ms.get((model, "quantune", "f32", threads)))
        else:
            others = [ms.get((model, peer, "f32", threads)) for peer in ("onnxruntime", "openvino")]
            best = min((value for value in others if value), default=None)
            add(f"f32 / faster of onnxruntime and openvino f32, {text}", model, ms[model, *mine], best)
        theirs = peak.get((model, "onnxruntime", precision, threads))
        add(f"peak memory, {precision} / onnxruntime, {text}", model, peak[model, *mine], theirs)
        if threads == 1:
            twice = ms.get((model, "quantune", precision, 2))
            add(f"{precision} 2 threads / 1 thread", model, twice, ms[model, *mine])
    for model, spent in seconds.items():
        for precision in ("f32", "int8"):
            own = spent.get(f"quantune {precision}")
            add(f"compile time, {precision} / iree f32", model, own, spent.get("iree f32"))
    worst = {what: max(values, key=lambda model: values[model]) for what, values in found.items()}
    return {w: (geomean(found[w].values()), worst[w], found[w][worst[w]]) for w in sorted(found)}
