from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.config import QuantConfig
from quantune.errors import UsageError
from quantune.report.report import build_report, option_effects, render_html, verdict, write_report
from quantune.report.schema import Report, read_report
from quantune.search.evaluate import Objective, Score
from quantune.search.result import TuningResult, TuningTrial, choose, pareto_front

F32 = TuningTrial(0, QuantConfig(precision="f32"), "complete", Score(0.80, 10.0, 4_000_000, 1000))
DEFAULT = TuningTrial(0, QuantConfig(), "complete", Score(0.70, 5.0, 1_000_000, 1000))
BEST = TuningTrial(1, QuantConfig(clip="kl"), "complete", Score(0.796, 4.0, 1_000_000, 1000))
FAILED = TuningTrial(2, QuantConfig(calib=1), "failed", None, "iree-compile: <crashed> & burned")
LAYERS = [
    {"name": "features.0", "kind": "conv", "executed": "f32", "macs": 10_000_000, "why": "first layer"},
    {"name": "features.1", "kind": "conv", "executed": "i8", "sqnr_db": 24.5},
]


def result(trials=(DEFAULT, BEST, FAILED), f32: TuningTrial | None = F32, objective=None, **changes) -> TuningResult:
    objective = objective or Objective("latency", 0.01)
    baselines = {} if f32 is None else {"f32": f32}
    best, best_quantized = choose(trials, baselines, objective)
    front = pareto_front([*baselines.values(), *trials])
    made = TuningResult(
        objective, tuple(trials), baselines, best, best_quantized, front, "3 trials", False, 65.0, 96, Path()
    )
    return dataclasses.replace(made, **changes)


def report(made: TuningResult | None = None, **options) -> Report:
    return build_report(made or result(), **{"model": "resnet18", "target": "cpu", "default": QuantConfig(), **options})


def without_latency(trial: TuningTrial) -> TuningTrial:
    return (
        trial
        if trial.score is None
        else dataclasses.replace(trial, score=dataclasses.replace(trial.score, latency_ms=None))
    )


class Page(HTMLParser):
    """Checks that tags nest and collects text and references."""

    VOID = frozenset(("meta", "br", "link", "img", "path", "use", "rect", "stop"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_verdict_says_all_three_and_the_bound() -> None:
    assert verdict(report()) == "2.50x faster, 4.00x smaller, -0.40 points top-1 (bound -1.00)."


def test_verdict_when_float_wins_or_nothing_keeps_the_bound() -> None:
    slow = dataclasses.replace(BEST, score=Score(0.796, 20.0, 1_000_000, 1000))
    assert verdict(report(result([slow]))) == "Do not quantize: f32 is the answer, it wins on latency."
    assert "no quantized artifact keeps the bound, the closest is at -10.00 points" in verdict(
        report(result([DEFAULT]))
    )


def test_verdict_admits_a_slowdown() -> None:
    slow = dataclasses.replace(BEST, score=Score(0.796, 20.0, 1_000_000, 1000))
    assert verdict(report(result([slow], objective=Objective()))).startswith("2.00x slower, 4.00x smaller")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (result([], None), "Nothing was measured"),
        (result([FAILED]), "Do not quantize: f32 is the answer, nothing quantized was measured"),
        (result([BEST], None), "f32 was not measured"),
        (result([without_latency(BEST)], without_latency(F32), Objective()), "4.00x smaller, -0.40 points"),
        (result(interrupted=True, stopped="interrupted"), "The same command continues it"),
    ],
    ids=["nothing", "all-failed", "no-baseline", "no-latency", "interrupted"],
)
def test_missing_parts_are_said(made: TuningResult, expected: str) -> None:
    text = Page(render_html(report(made))).text
    assert expected in " ".join(text.split())
    assert "No per-layer record was made" in text
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_page_is_complete_and_needs_no_network() -> None:
    html = render_html(report(layers=LAYERS, environment={"iree": "3.13.0"}, rebuild=["quantune-compile x"]))
    page = Page(html)
    for expected in ("features.1", "24.5", "first layer", "3.13.0", "quantune-compile x", "<crashed> & burned"):
        assert expected in page.text
    assert "<crashed>" not in html
    assert html.count("<svg") == 2
    assert all(link.startswith("#") for link in page.links)
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    assert "#010101" not in html  # every plot colour follows the theme


def test_rendering_is_reproducible() -> None:
    assert render_html(report()) == render_html(report())


def test_json_round_trip(tmp_path: Path) -> None:
    made = report(layers=LAYERS)
    record, page = write_report(made, tmp_path)
    assert read_report(record) == made
    assert page.read_text(encoding="utf-8") == render_html(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"surprise": 1}, "surprise"),
        ({"feasible": "perhaps"}, "feasible"),
        ({"trials": [{"number": 1}]}, r"trials\.0"),
    ],
)
def test_reader_names_what_is_wrong(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(report().model_dump_json()), **change}))
    with pytest.raises(UsageError, match=rf"report\.json.*{message}"):
        read_report(path)


@given(st.binary(max_size=200))
def test_reader_raises_only_usage_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"fuzz\.json"):
        read_report(path)


def test_option_effects_are_differences_of_means() -> None:
    effects = dict(option_effects(report()))
    assert list(effects) == ["clip"]
    assert [(v, pytest.approx(e), n) for v, e, n in effects["clip"]] == [("kl", 0.048, 1), ("max", -0.048, 1)]
