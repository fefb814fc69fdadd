"""The report's record (report.json): versioned, validated, readable by other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantune.errors import UsageError

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measurement(_Part):
    """One artifact, measured. accuracy and its 95 % interval are by the goal's metric, difference is against f32."""

    model_config = ConfigDict(extra="ignore")  # older records have an interval of the latency that nobody wrote

    accuracy: float
    accuracy_interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_error: float | None = None
    difference_paired: bool = False
    latency_ms: float | None = Field(default=None, gt=0)
    size_bytes: int = Field(ge=0)
    images: int = Field(ge=1)


class TrialRow(_Part):
    """One trial. kind: float artifacts are baselines. measurement is None exactly when the state is not complete."""

    number: int
    kind: Literal["search", "baseline"] = "search"
    config: str
    params: dict[str, str | int] = {}
    state: Literal["complete", "failed", "lost"]
    measurement: Measurement | None = None
    feasible: bool | None = None
    reason: str | None = None
    seconds: float = 0.0


class LayerRow(_Part):
    """One layer of the chosen artifact.

    executed: the number type its arithmetic really uses. weight_bits, activation_bits: how wide the integers are that
    its weight and what it reads are quantized to; None for a layer in f32.
    """

    name: str
    kind: str
    executed: str
    macs: int | None = None
    weight_bits: int | None = Field(default=None, ge=1, le=8)
    activation_bits: int | None = Field(default=None, ge=2, le=8)
    sqnr_db: float | None = None
    why: str | None = None


class Goal(_Part):
    """What was asked for.

    judged: the name of the metric that accuracy means, with its unit. higher: whether more of it is better. fraction: a
    share, which is told in per cent and points. max_drop: the largest loss against f32, a part of what f32 has where
    relative.
    """

    metric: Literal["accuracy", "latency", "size"]
    max_drop: float | None = None
    judged: str = "top-1"
    unit: str = ""
    higher: bool = True
    fraction: bool = True
    relative: bool = False

    @property
    def heading(self) -> str:
        """The metric and the unit that numbers of it are told in."""
        unit = "%" if self.fraction else self.unit
        return f"{self.judged}, {unit}" if unit else self.judged

    @property
    def differences(self) -> str:
        """The unit of differences."""
        return "points" if self.fraction else self.unit

    def shown(self, value: float, *, sign: bool = False) -> str:
        """A value or a difference in the unit of the heading."""
        plus = "+" if sign else ""
        return f"{100 * value:{plus}.2f}" if self.fraction else f"{value:{plus}.4g}"

    def allowed(self, f32: float) -> float:
        """The largest loss, in the unit of accuracy; 0 without a bound."""
        return (self.max_drop or 0.0) * (abs(f32) if self.relative else 1.0)


class Report(_Part):
    """Everything the page shows. trials hold search trials and baselines; the other rows repeat entries of it.

    rejected: why the file of the best trial is not handed out; then no row is called the best.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    target: str
    objective: Goal
    trials: list[TrialRow]
    f32: TrialRow | None = None
    default: TrialRow | None = None
    best: TrialRow | None = None
    best_quantized: TrialRow | None = None
    feasible: bool
    pareto: list[str] = []
    layers: list[LayerRow] = []
    environment: dict[str, str] = {}
    rebuild: list[str] = []
    notes: list[str] = []
    warnings: list[str] = []
    rejected: str | None = None
    stopped: str = ""
    interrupted: bool = False
    elapsed_s: float = 0.0
    space_size: int | None = None


def read_report(path: Path) -> Report:
    """Read report.json. Raises UsageError that names the file and the first field that does not fit."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from error
    found = value.get("schema_version") if isinstance(value, dict) else None
    if found != SCHEMA_VERSION:
        raise UsageError(f"{path}: schema_version is {found}, this program reads {SCHEMA_VERSION}")
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}") from error
