"""The report's plots as inline SVG whose colours follow the page's, light or dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quantune.report.schema import Measurement, Report, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Drawn in these colours, then replaced by CSS variables: matplotlib knows no themes.
_THEME = {
    "#010101": "var(--text)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--good)",
    "#060606": "var(--bad)",
    "#070707": "var(--other)",
}
_TEXT, _MUTED, _LINE, _ACCENT, _GOOD, _BAD, _OTHER = _THEME


def pareto(report: Report) -> str:
    """Accuracy against latency (or size when no latency was measured), the bound drawn; empty with nothing to show."""
    measured = [(r, r.measurement) for r in report.trials if r.measurement is not None]
    timed = [(r, m) for r, m in measured if m.latency_ms is not None]
    points = timed or measured
    if not points:
        return ""

    def cost(m: Measurement) -> float:
        return float(m.latency_ms) if timed and m.latency_ms is not None else m.size_bytes / 1e6

    scale = _scale(report)

    def draw(axes: Axes) -> None:
        for row, m in points:
            axes.plot(cost(m), scale * m.accuracy, **_mark(row, report))
        front = sorted((cost(m), scale * m.accuracy) for r, m in points if r.config in report.pareto)
        axes.step([c for c, _ in front], [a for _, a in front], where="post", color=_ACCENT, linewidth=1, alpha=0.6)
        _bound(axes, report)
        best = next(((r, m) for r, m in points if r == report.best), None)
        if best:
            axes.plot(cost(best[1]), scale * best[1].accuracy, "o", ms=13, mfc="none", mec=_TEXT, mew=1.4)
        axes.set_xlabel("latency, ms" if timed else "size, MB")
        axes.set_ylabel(report.objective.heading)
        _focus(axes, [scale * m.accuracy for _, m in points], report)

    return _svg(draw, "Accuracy against cost of every measured artifact")


def history(report: Report) -> str:
    """The objective's metric of each search trial in order and the best so far; empty with fewer than two trials."""
    metric = report.objective.metric
    rows = [(i, r) for i, r in enumerate((r for r in report.trials if r.kind == "search"), start=1)]
    values = [(i, r, v) for i, r in rows if (v := _metric(r.measurement, report)) is not None]
    if len(values) < 2:
        return ""

    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        for i, row in rows:
            if row.measurement is None:
                axes.axvline(i, color=_BAD, linewidth=1, alpha=0.5)
        for i, row, value in values:
            axes.plot(i, value, **_mark(row, report))
        kept = [(i, v) for i, row, v in values if row.feasible is not False]
        pick = max if metric == "accuracy" and report.objective.higher else min
        best = list(itertools.accumulate((v for _, v in kept), pick))
        if best:  # drawn on to the last trial
            axes.step(
                [*(i for i, _ in kept), rows[-1][0]], [*best, best[-1]], where="post", color=_ACCENT, linewidth=1.6
            )
        axes.set_xlabel("trial")
        axes.set_ylabel({"accuracy": report.objective.heading, "latency": "latency, ms", "size": "size, MB"}[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric == "accuracy":
            _bound(axes, report)
            _focus(axes, [v for _, _, v in values], report)

    return _svg(draw, f"The {metric} of each trial in the order of the search")


def _scale(report: Report) -> int:
    return 100 if report.objective.fraction else 1


def _metric(m: Measurement | None, report: Report) -> float | None:
    if m is None:
        return None
    accuracy = _scale(report) * m.accuracy
    return {"accuracy": accuracy, "latency": m.latency_ms, "size": m.size_bytes / 1e6}[report.objective.metric]


def _mark(row: TrialRow, report: Report) -> dict[str, Any]:
    if row.kind == "baseline":
        return {"marker": "s", "color": _OTHER, "markersize": 7, "linestyle": "none"}
    if row.feasible is False:
        return {"marker": "x", "color": _BAD, "markersize": 6, "linestyle": "none"}
    return {"marker": "o", "color": _GOOD, "markersize": 6, "linestyle": "none", "alpha": 0.85}


def _bound(axes: Axes, report: Report) -> None:
    if report.objective.max_drop is None or report.f32 is None or report.f32.measurement is None:
        return
    goal, f32 = report.objective, report.f32.measurement.accuracy
    bound = _scale(report) * (f32 - goal.allowed(f32) if goal.higher else f32 + goal.allowed(f32))
    axes.axhline(bound, color=_BAD, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"bound {bound:.2f} %" if goal.fraction else f"bound {bound:.4g}",
        (1, bound),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -11),
        textcoords="offset points",
        ha="right",
        color=_BAD,
        fontsize=9,
    )


def _focus(axes: Axes, values: list[float], report: Report) -> None:
    """Keep collapsed artifacts from squeezing the others into one line: cut the axis and say how many lie beyond."""
    goal = report.objective
    sign = 1 if goal.higher else -1
    ordered = sorted(sign * v for v in values)
    best, middle = ordered[-1], ordered[len(ordered) // 2]
    # Five points, where shares are close together; others have no such distance of their own.
    worst = best - max(3.0 * (best - middle), 5.0 if goal.fraction else 0.2 * abs(best))
    beyond = sum(v < worst for v in ordered)
    if not beyond or worst == best:
        return
    ends = sorted((sign * worst, sign * (best + 0.06 * (best - worst))))
    axes.set_ylim(*ends)
    limit = f"{worst:.0f} %" if goal.fraction else f"{sign * worst:.3g}"
    axes.set_xlabel(f"{axes.get_xlabel()} ({beyond} {'below' if goal.higher else 'above'} {limit} not shown)")


def _svg(draw: Callable[[Axes], None], title: str) -> str:
    """Run `draw` on one styled axes; the SVG element without size, so that the page scales it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "quantune",  # the same report gives the same bytes
        "font.family": "sans-serif",
        "text.color": _TEXT,
        "axes.labelcolor": _MUTED,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "axes.edgecolor": _LINE,
        "grid.color": _LINE,
    }
    with rc_context(style):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(visible=True, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for attribute in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    return text
