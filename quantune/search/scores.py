"""What a measured configuration is worth: scores, the objective with its bound, and how sure a difference is."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from quantune.errors import QuantuneError, UsageError
from quantune.metrics import DEFAULT, METRICS, Metric
from quantune.numerics.clipping import CLIPS
from quantune.numerics.schemes import SCHEMES
from quantune.quantization.config import CHOICES, QuantConfig
from quantune.quantization.precisions import PRECISIONS

GOALS = ("accuracy", "latency", "size")


class TrialFailed(QuantuneError):
    """One configuration could not be measured; the search records the reason and goes on."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason, transient=transient)
        self.reason = reason


@dataclass(frozen=True)
class Score:
    """The measurement of one artifact.

    accuracy: by the study's metric: top-1 as a fraction of `images`, say. latency_ms: per call, None when not measured.
    size_bytes: the artifact. correct: which images were answered right (see `pack_correct`), or values: a number of
    each (`pack_values`); they make differences between artifacts paired. program: the sha256 of what ran; trials of one
    program share its latency. seconds: what each step took. stopped_of: how many images there are where a trial stopped
    early, after `images`; its accuracy is an estimate for all then.
    """

    accuracy: float
    latency_ms: float | None
    size_bytes: int
    images: int
    correct: str | None = None
    program: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    stopped_of: int | None = None
    values: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.accuracy):
            raise ValueError(f"accuracy {self.accuracy}: expected a finite number")
        if self.latency_ms is not None and not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise ValueError(f"latency_ms {self.latency_ms}: expected a positive number of milliseconds or None")
        if self.size_bytes < 0:
            raise ValueError(f"size_bytes {self.size_bytes}: expected 0 or more")
        if self.images < 1:
            raise ValueError(f"images {self.images}: expected 1 or more")

    def to_json(self) -> dict[str, Any]:
        """The score as a JSON object; `from_json` reads it back equal."""
        return {
            "accuracy": float(self.accuracy),
            "latency_ms": None if self.latency_ms is None else float(self.latency_ms),
            "size_bytes": int(self.size_bytes),
            "images": int(self.images),
            "details": {
                "correct": self.correct,
                **({} if self.values is None else {"values": self.values}),
                "program": self.program,
                "seconds": dict(self.seconds),
                "stopped_early": None if self.stopped_of is None else {"of": self.stopped_of},
            },
        }

    @classmethod
    def from_json(cls, value: object) -> Score:
        """Read what `to_json` wrote. Raises ValueError that names what is wrong with anything else."""
        names = ("accuracy", "latency_ms", "size_bytes", "images", "details")
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise ValueError(f"not a score: expected an object with {', '.join(names)}")
        for name in ("accuracy", "size_bytes", "images"):
            if not isinstance(value[name], int | float) or isinstance(value[name], bool):
                raise ValueError(f"not a score: {name} is {value[name]!r}, expected a number")
        if value["latency_ms"] is not None and not isinstance(value["latency_ms"], int | float):
            raise ValueError(f"not a score: latency_ms is {value['latency_ms']!r}, expected a number or null")
        return cls(*(value[name] for name in names[:-1]), **_details(value["details"]))


def _details(value: object) -> dict[str, Any]:
    """The fields of a `Score` that its measurement may lack."""
    if not isinstance(value, Mapping):
        raise ValueError(f"not a score: details is {value!r}, expected an object")
    stopped, seconds = value.get("stopped_early"), value.get("seconds", {})
    found = {name: value.get(name) for name in ("correct", "values", "program")}
    fits = all(text is None or isinstance(text, str) for text in found.values())
    fits = fits and isinstance(seconds, Mapping) and all(isinstance(each, int | float) for each in seconds.values())
    if not fits or not (stopped is None or (isinstance(stopped, Mapping) and isinstance(stopped.get("of"), int))):
        raise ValueError("not a score: details are not those of a measurement")
    return {**found, "seconds": seconds, "stopped_of": None if stopped is None else stopped["of"]}


@dataclass(frozen=True)
class Objective:
    """What the search is after.

    metric: accuracy, latency or size (lower). judged: what accuracy means. max_drop: the largest loss against the f32
    artifact that is acceptable, in the unit of ``judged`` (of a share, 0.01 is one percentage point), or with
    ``relative`` as a share of what f32 has; None means no bound, which only `accuracy` allows.
    """

    metric: str = "accuracy"
    max_drop: float | None = None
    judged: Metric = METRICS[DEFAULT]
    relative: bool = False

    def __post_init__(self) -> None:
        if self.metric not in GOALS:
            raise UsageError(f"objective '{self.metric}': expected one of {', '.join(GOALS)}")
        if self.max_drop is None:
            if self.metric != "accuracy":
                raise UsageError(f"objective '{self.metric}' needs a largest accuracy drop, such as 0.01 for one point")
            return
        if (self.judged.fraction or self.relative) and not 0.0 <= self.max_drop <= 1.0:
            one = "one hundredth of what f32 has" if self.relative else "one point"
            raise UsageError(
                f"largest accuracy drop {self.max_drop}: expected a fraction between 0 and 1 (0.01 is {one})"
            )
        if not 0.0 <= self.max_drop < math.inf:  # also false for NaN
            raise UsageError(f"largest loss {self.max_drop} of {self.judged.name}: expected 0 or more")

    def shortfall(self, score: Score, baseline: Score | None) -> float:
        """By how much (fraction) the score breaks the bound; 0 or less when it keeps it, 0 when there is no bound."""
        if self.max_drop is None or baseline is None:
            return 0.0
        # Accuracies are multiples of 1/images: the margin only absorbs float rounding in the subtraction.
        return self.worth(baseline) - self.allowed(baseline) - self.worth(score) - 1e-9

    def allowed(self, baseline: Score) -> float:
        """The largest loss in the unit of the metric; infinite without a bound."""
        if self.max_drop is None:
            return math.inf
        return self.max_drop * (abs(baseline.accuracy) if self.relative else 1.0)

    def worth(self, score: Score) -> float:
        """The metric, its sign changed where less is better."""
        return score.accuracy if self.judged.higher else -score.accuracy

    def feasible(self, score: Score, baseline: Score | None) -> bool:
        """Whether the score keeps the accuracy bound against the f32 baseline."""
        return self.shortfall(score, baseline) <= 0.0

    def rank(self, score: Score, config: QuantConfig, baseline: Score | None = None) -> tuple[Any, ...]:
        """A sort key, best first: bound kept, then the metric, then the other metrics, then simplicity."""
        accuracy, latency = -self.worth(score), math.inf if score.latency_ms is None else score.latency_ms
        order = {
            "accuracy": (accuracy, latency, score.size_bytes),
            "latency": (latency, accuracy, score.size_bytes),
            "size": (score.size_bytes, accuracy, latency),
        }[self.metric]
        if not self.feasible(score, baseline):  # outside the bound, closest to it comes first
            order = (accuracy, *order)
            return (1, *order, complexity(config))
        return (0, *order, complexity(config))

    def better(self, a: tuple[QuantConfig, Score], b: tuple[QuantConfig, Score], baseline: Score | None = None) -> bool:
        """Whether `a` is to be preferred to `b`."""
        return self.rank(a[1], a[0], baseline) < self.rank(b[1], b[0], baseline)

    def value(self, score: Score) -> float:
        """The number a study stores: accuracy, milliseconds or bytes. UsageError when latency was not measured."""
        if self.metric == "accuracy":
            return score.accuracy
        if self.metric == "size":
            return float(score.size_bytes)
        if score.latency_ms is None:
            raise UsageError("objective 'latency': the evaluator measured no latency; choose accuracy or size")
        return score.latency_ms

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """The direction of `value` in Optuna's words."""
        return "maximize" if self.metric == "accuracy" and self.judged.higher else "minimize"


def complexity(config: QuantConfig) -> tuple[int, ...]:
    """Orders configurations from simple to involved; decides between equal measurements."""
    return (
        PRECISIONS[config.precision].simplicity,
        ("tensor", "channel").index(config.granularity),
        CLIPS[config.clip].simplicity,
        SCHEMES[config.scheme].simplicity,
        config.calib,
        *(tuple(CHOICES[name]).index(getattr(config, name)) for name in ("weight_clip", "bias", "rounding")),
    )


def pack_correct(correct: Sequence[bool] | np.ndarray) -> str:
    """One bit per image (answered right or not) as base64 text, for ``Score.correct``."""
    return base64.b64encode(np.packbits(np.asarray(correct, dtype=bool)).tobytes()).decode("ascii")


def unpack_correct(text: str, images: int) -> np.ndarray:
    """The bool array of length `images` that `pack_correct` packed. Raises ValueError when the length does not fit."""
    data = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(data) != (images + 7) // 8:
        raise ValueError(f"{len(data)} bytes do not hold one bit for each of {images} images")
    bits = np.unpackbits(data)
    if bits[images:].any():
        raise ValueError(f"bits are set beyond the last of {images} images")
    return bits[:images].astype(bool)


def pack_values(values: np.ndarray) -> str:
    """A number per image as base64 text of f32, for ``Score.values``; see quantune.metrics.base."""
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode("ascii")


def unpack_values(text: str, images: int) -> np.ndarray:
    """The f32[images] that `pack_values` packed. Raises ValueError when the length does not fit."""
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    if len(values) != images:
        raise ValueError(f"{len(values)} values of {images} images")
    return values


@dataclass(frozen=True)
class Difference:
    """A difference of accuracy with its standard error. paired: measured image by image on the same images."""

    value: float
    standard_error: float
    images: int
    paired: bool

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The normal confidence interval of the difference."""
        half = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * self.standard_error
        return self.value - half, self.value + half

    def text(self, metric: Metric = METRICS[DEFAULT]) -> str:
        """The difference and half its interval, in points for shares."""
        half = self.interval()[1] - self.value
        if metric.fraction:
            return f"{100 * self.value:+.2f} ± {100 * half:.2f} points"
        return f"{self.value:+.3g} ± {half:.2g}{metric.unit and ' '}{metric.unit}"

    def __str__(self) -> str:
        how = "paired" if self.paired else "unpaired"
        return f"{self.text()} (95 %, {how}, {self.images} images)"


def accuracy_difference(score: Score, baseline: Score) -> Difference:
    """Accuracy of `score` minus `baseline`.

    Both artifacts see the same images, so when both scores carry their ``correct`` bits only the images on which
    they disagree count: with b won and c lost of n, se = sqrt(b + c - (b - c)^2 / n) / n. With ``values`` it is the
    standard error of the mean of their differences. Without either the errors of both are added, which overstates it.
    """
    n = min(score.images, baseline.images)
    value = score.accuracy - baseline.accuracy
    if score.images == baseline.images and score.correct is not None and baseline.correct is not None:
        mine, theirs = (unpack_correct(bits, n) for bits in (score.correct, baseline.correct))
        won, lost = int(np.sum(mine & ~theirs)), int(np.sum(~mine & theirs))
        return Difference(value, math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / n)) / n, n, paired=True)
    known = _values(score), _values(baseline)
    if score.images == baseline.images and known[0] is not None and known[1] is not None:
        return Difference(value, _error(known[0] - known[1]), n, paired=True)
    return Difference(value, math.hypot(_standard_error(score), _standard_error(baseline)), n, paired=False)


def _standard_error(score: Score) -> float:
    values = _values(score)
    if values is not None:
        return _error(values)
    return math.sqrt(max(0.0, score.accuracy * (1 - score.accuracy)) / score.images)


def _values(score: Score) -> np.ndarray | None:
    return None if score.values is None else unpack_values(score.values, score.images).astype(np.float64)


def _error(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def accuracy_interval(score: Score, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of images right: sane at 0 and 1 and for few images; else the normal interval."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    if _values(score) is not None:
        half = z * _standard_error(score)
        return score.accuracy - half, score.accuracy + half
    n, p = score.images, score.accuracy
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - half), min(1.0, center + half)
