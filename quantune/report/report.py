"""From a finished (or interrupted) search to report.json and report.html."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantune.errors import refused
from quantune.quantization.config import LATER
from quantune.report.schema import Goal, LayerRow, Measurement, Report, TrialRow
from quantune.search.scores import Objective, Score, accuracy_difference, accuracy_interval

if TYPE_CHECKING:
    from quantune.quantization.config import QuantConfig
    from quantune.search.result import TuningResult, TuningTrial


def build_report(
    result: TuningResult,
    *,
    model: str,
    target: str,
    default: QuantConfig | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, str] | None = None,
    rebuild: Sequence[str] = (),
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    rejected: str | None = None,
) -> Report:
    """The record of a search.

    default: the configuration a user would get without searching. layers: rows with name, kind, executed and optionally
    macs, sqnr_db, why. rebuild: commands that make the artifact again. warnings: what is odd. rejected: why the best
    trial's file is not handed out.
    """
    baseline = result.baseline.score if result.baseline else None
    rows = {id(t): _row(t, "baseline", baseline, result.objective) for t in result.baselines.values()}
    rows |= {id(t): _row(t, "search", baseline, result.objective) for t in result.trials}

    def row(trial: TuningTrial | None) -> TrialRow | None:
        if trial is None:
            return None
        return rows.get(id(trial)) or _row(trial, "search", baseline, result.objective)

    return Report(
        model=model,
        target=target,
        objective=_goal(result.objective),
        trials=list(rows.values()),
        f32=row(result.baseline),
        default=row(next((t for t in result.trials if t.config == default), None)),
        best=None if rejected else row(result.best),
        best_quantized=None if rejected else row(result.best_quantized),
        feasible=result.feasible and not rejected,
        pareto=[str(t.config) for t in result.pareto],
        layers=[LayerRow.model_validate(dict(layer)) for layer in layers],
        environment=dict(environment or {}),
        rebuild=list(rebuild),
        notes=list(notes),
        warnings=list(warnings),
        rejected=rejected,
        stopped=result.stopped,
        interrupted=result.interrupted,
        elapsed_s=result.elapsed_s,
        space_size=result.space_size,
    )


def _goal(objective: Objective) -> Goal:
    judged = objective.judged
    return Goal.model_validate(
        {
            "metric": objective.metric, "max_drop": objective.max_drop, "relative": objective.relative,
            "judged": judged.name, "unit": judged.unit, "higher": judged.higher, "fraction": judged.fraction,
        }
    )  # fmt: skip


def _row(trial: TuningTrial, kind: str, baseline: Score | None, objective: Objective) -> TrialRow:
    config = trial.config
    params = {} if config.is_float else config.options()
    return TrialRow.model_validate(
        {
            "number": trial.number,
            "kind": kind,
            "config": str(config),
            "params": params,
            "state": trial.state,
            "measurement": None if trial.score is None else _measurement(trial.score, baseline),
            "feasible": None if trial.score is None else objective.feasible(trial.score, baseline),
            "reason": trial.reason,
            "seconds": trial.seconds,
        }
    )


def _measurement(score: Score, baseline: Score | None) -> Measurement:
    difference = None if baseline is None else accuracy_difference(score, baseline)
    return Measurement(
        accuracy=score.accuracy,
        accuracy_interval=accuracy_interval(score),
        difference=None if difference is None else difference.value,
        difference_error=None if difference is None or score is baseline else difference.standard_error,
        difference_paired=difference is not None and difference.paired,
        latency_ms=score.latency_ms,
        size_bytes=score.size_bytes,
        images=score.images,
    )


def verdict(report: Report) -> str:
    """The one sentence that matters, without markup."""
    best, f32 = report.best, report.f32
    if report.rejected is not None:
        return f"There is no answer: {report.rejected}."
    if best is None or best.measurement is None:
        return "Nothing was measured, so there is no answer yet."
    if f32 is None or f32.measurement is None:
        goal = report.objective
        value = f"{100 * best.measurement.accuracy:.2f} % {goal.judged}" if goal.fraction else (
            f"{goal.heading} {goal.shown(best.measurement.accuracy)}")  # fmt: skip
        return f"{best.config}: {value}; f32 was not measured to compare."
    if best.kind == "baseline":
        return _float_verdict(report, best)
    parts = [
        _ratio(f32.measurement.latency_ms, best.measurement.latency_ms, "faster", "slower"),
        _ratio(f32.measurement.size_bytes, best.measurement.size_bytes, "smaller", "larger"),
        _told(report.objective, best.measurement.accuracy - f32.measurement.accuracy),
    ]
    sentence = ", ".join(p for p in parts if p) + bound_text(report)
    if not report.feasible:
        return f"No quantized artifact keeps the bound; the closest: {sentence}."
    return f"{sentence}."


def _float_verdict(report: Report, best: TrialRow) -> str:
    closest = report.best_quantized
    if report.feasible or closest is None or closest.measurement is None or closest.measurement.difference is None:
        why = "nothing quantized was measured" if closest is None else f"it wins on {report.objective.metric}"
        return f"Do not quantize: {best.config.removeprefix('precision=')} is the answer, {why}."
    drop = f"{report.objective.shown(closest.measurement.difference, sign=True)} {report.objective.differences}".strip()
    return f"Do not quantize: no quantized artifact keeps the bound, the closest is at {drop}{bound_text(report)}."


def _told(goal: Goal, difference: float) -> str:
    unit = f"{goal.differences} " if goal.differences else ""
    return f"{goal.shown(difference, sign=True)} {unit}{goal.judged}"


def bound_text(report: Report) -> str:
    """`` (bound -1.00)`` or nothing."""
    goal = report.objective
    if goal.max_drop is None:
        return ""
    sign = "-" if goal.higher else "+"
    bound = f"{goal.max_drop:.2%} of f32's" if goal.relative else goal.shown(goal.max_drop)
    return f" (bound {sign}{bound})"


def _ratio(before: float | None, after: float | None, better: str, worse: str) -> str:
    if not before or not after:
        return ""
    ratio = before / after
    if 0.995 < ratio < 1.005:
        return f"not {better}"
    return f"{ratio:.2f}x {better}" if ratio > 1 else f"{1 / ratio:.2f}x {worse}"


def option_effects(report: Report) -> list[tuple[str, list[tuple[str, float, int]]]]:
    """For each option, (value, mean accuracy less the mean of all trials, trials) from best to worst.

    The trials are those the search chose, not a balanced design: an indication, not an effect size.
    """
    rows = [(r, r.measurement) for r in report.trials if r.kind == "search" and r.measurement is not None]
    if not rows:
        return []
    mean, sign = statistics.fmean(m.accuracy for _, m in rows), 1 if report.objective.higher else -1
    effects = []
    for name in dict.fromkeys(n for r, _ in rows for n in r.params):
        groups: dict[str, list[float]] = {}
        for row, measured in rows:
            groups.setdefault(str(row.params.get(name, LATER.get(name))), []).append(measured.accuracy)
        means = [(value, statistics.fmean(group) - mean, len(group)) for value, group in groups.items()]
        if len(means) > 1:
            effects.append((name, sorted(means, key=lambda e: -sign * e[1])))
    return sorted(effects, key=lambda e: sign * (e[1][-1][1] - e[1][0][1]))


def render_html(report: Report) -> str:
    """The report as one HTML page that needs nothing else: no network, no fonts, plots inline."""
    import jinja2

    from quantune.report import plots

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    goal = report.objective
    environment.filters |= {"percent": goal.shown, "points": lambda value: goal.shown(value, sign=True)}
    environment.filters |= {"milliseconds": _milliseconds}
    environment.filters |= {"bytes": _bytes, "duration": _duration}
    source = resources.files("quantune.report").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    effects = option_effects(report)
    return environment.from_string(source).render(
        report=report,
        verdict=verdict(report),
        pareto_svg=plots.pareto(report),
        history_svg=plots.history(report),
        effects=effects,
        effect_scale=max((abs(e[1]) for _, values in effects for e in values), default=0.0),
        headline=_headline(report),
        failed=sum(r.state != "complete" for r in report.trials),
    )


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html into `folder`, each whole or not at all; returns their paths."""
    page, record = folder / "report.html", folder / "report.json"
    _write(record, report.model_dump_json(indent=1) + "\n")
    _write(page, render_html(report))
    return record, page


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise refused(f"report {path}", error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _headline(report: Report) -> list[tuple[str, TrialRow]]:
    """The rows of the first table: f32, default, best, without repeating one."""
    answer = "answer" if report.best_quantized == report.best else "answer (float)"
    rows = [("f32", report.f32), ("default int8", report.default), (answer, report.best)]
    if report.best_quantized is not None and report.best_quantized != report.best:
        rows.append(("best quantized", report.best_quantized))
    shown: list[tuple[str, TrialRow]] = []
    for label, row in rows:
        if row is None:
            continue
        twin = next((i for i, (_, r) in enumerate(shown) if r == row), None)
        if twin is None:
            shown.append((label, row))
        else:
            shown[twin] = (f"{shown[twin][0]} = {label}", row)
    return shown


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def _bytes(value: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value} B"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
