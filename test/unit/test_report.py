from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.errors import UsageError
from quantune.metrics import METRICS
from quantune.quantization.config import QuantConfig
from quantune.report.report import (
    _bytes,
    _duration,
    _headline,
    _milliseconds,
    _ratio,
    build_report,
    option_effects,
    render_html,
    verdict,
    write_report,
)
from quantune.report.schema import Goal, Report, read_report
from quantune.search.result import TuningResult, TuningTrial, choose, pareto_front
from quantune.search.scores import Objective, Score, accuracy_interval, pack_correct

F32 = TuningTrial(0, QuantConfig(precision="f32"), "complete", Score(0.80, 10.0, 4_000_000, 1000))
DEFAULT = TuningTrial(0, QuantConfig(), "complete", Score(0.70, 5.0, 1_000_000, 1000))
BEST = TuningTrial(1, QuantConfig(clip="kl"), "complete", Score(0.796, 4.0, 1_000_000, 1000))
FAILED = TuningTrial(2, QuantConfig(calib=1), "failed", None, "iree-compile: <crashed> & burned")
LAYERS = [
    {"name": "features.0", "kind": "conv", "executed": "f32", "macs": 10_000_000, "why": "first layer"},
    {"name": "features.1", "kind": "conv", "executed": "i8", "sqnr_db": 24.5},
]


SHARE, ERROR = Goal(metric="accuracy"), Goal(metric="accuracy", judged="mse", higher=False, fraction=False)


def result(trials=(DEFAULT, BEST, FAILED), f32: TuningTrial | None = F32, objective=None, **changes) -> TuningResult:
    objective = objective or Objective("latency", 0.01)
    baselines = {} if f32 is None else {"f32": f32}
    best, best_quantized = choose(trials, baselines, objective)
    front = pareto_front([*baselines.values(), *trials], Objective())
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


def test_records_of_older_versions_are_read(tmp_path: Path) -> None:
    made, path = report(), tmp_path / "report.json"
    value = json.loads(made.model_dump_json())
    value["f32"]["measurement"]["latency_interval_ms"] = None
    path.write_text(json.dumps(value))
    assert read_report(path) == made


@given(st.binary(max_size=200))
def test_reader_raises_only_usage_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"fuzz\.json"):
        read_report(path)


def test_where_less_is_better_the_best_option_has_the_least() -> None:
    made = report(result(objective=Objective("accuracy", judged=METRICS["kl"])))
    for _, values in option_effects(made):
        means = [effect for _, effect, _ in values]
        assert means == sorted(means)
    assert "kl, nats" in render_html(made)
    assert 'class="up"' in render_html(made)


def test_option_effects_are_differences_of_means() -> None:
    effects = dict(option_effects(report()))
    assert list(effects) == ["clip"]
    assert [(v, pytest.approx(e), n) for v, e, n in effects["clip"]] == [("kl", 0.048, 1), ("max", -0.048, 1)]


def test_options_are_ordered_by_what_they_move_and_values_from_best_to_worst() -> None:
    def trial(number: int, accuracy: float, **options: str) -> TuningTrial:
        return TuningTrial(number, QuantConfig(**options), "complete", Score(accuracy, 1.0, 1, 100))  # type: ignore[arg-type]

    trials = [
        trial(0, 0.5, clip="max", scheme="symmetric"), trial(1, 0.6, clip="kl", scheme="symmetric"),
        trial(2, 0.9, clip="max", scheme="asymmetric"), trial(3, 1.0, clip="kl", scheme="asymmetric"),
        trial(4, 0.4, clip="kl", scheme="symmetric"),
    ]  # fmt: skip
    effects = option_effects(report(result(trials)))
    assert [name for name, _ in effects] == ["scheme", "clip"]
    assert [[value for value, _, _ in values] for _, values in effects] == [["asymmetric", "symmetric"], ["max", "kl"]]
    assert [e for _, values in effects for _, e, _ in values] == pytest.approx([0.27, -0.18, 0.02, 2 / 3 - 0.68])
    assert [count for _, values in effects for _, _, count in values] == [2, 3, 2, 3]
    assert option_effects(report(result([]))) == []


def test_options_that_a_line_leaves_out_have_their_defaults() -> None:
    def trial(number: int, accuracy: float, **options: str) -> TuningTrial:
        return TuningTrial(number, QuantConfig(**options), "complete", Score(accuracy, 1.0, 1, 100))  # type: ignore[arg-type]

    trials = [trial(0, 0.5), trial(1, 0.6, bias="fast"), trial(2, 0.8, bias="fast", weight_clip="mse")]
    effects = dict(option_effects(report(result(trials))))
    assert {name: [(value, n) for value, _, n in values] for name, values in effects.items()} == {
        "bias": [("fast", 2), ("none", 1)], "weight_clip": [("mse", 1), ("max", 2)],
    }  # fmt: skip


def test_a_row_has_the_difference_to_f32_and_its_error() -> None:
    bits = [pack_correct(c) for c in ([1] * 80 + [0] * 20, [0] * 3 + [1] * 78 + [0] * 19)]
    f32 = dataclasses.replace(F32, score=Score(0.80, 10.0, 4000, 100, bits[0]))
    kept = dataclasses.replace(BEST, score=Score(0.78, 4.0, 1000, 100, bits[1]))
    made = report(result([kept], f32))
    assert made.best is not None
    assert made.f32 is not None
    found, base = made.best_quantized and made.best_quantized.measurement, made.f32.measurement
    assert found is not None
    assert base is not None
    assert (found.difference, found.difference_paired) == (pytest.approx(-0.02), True)
    assert found.difference_error == pytest.approx((3 + 1 - 2**2 / 100) ** 0.5 / 100)
    assert found.accuracy_interval == accuracy_interval(Score(0.78, 4.0, 1000, 100))
    assert (found.latency_ms, found.size_bytes, found.images) == (4.0, 1000, 100)
    assert (base.difference, base.difference_error) == (0, None)
    assert made.best_quantized is not None
    assert (made.best_quantized.feasible, made.f32.feasible) == (False, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SHARE.shown(0.98765), "98.77"), (SHARE.shown(0.0125, sign=True), "+1.25"),
        (SHARE.shown(-0.004, sign=True), "-0.40"),
        (ERROR.shown(12345.6), "1.235e+04"), (ERROR.shown(0.5, sign=True), "+0.5"),
        (_milliseconds(0.12345), "0.123"), (_milliseconds(9.994), "9.99"), (_milliseconds(10.0), "10.0"),
        (_bytes(999), "999 B"), (_bytes(1000), "1.00 kB"), (_bytes(1_234_567), "1.23 MB"), (_bytes(10**9), "1.00 GB"),
        (_duration(59.4), "59.4 s"), (_duration(60), "1 min 00 s"), (_duration(61.6), "1 min 02 s"),
        (_duration(3600), "1 h 00 min"), (_duration(2 * 3600 + 300), "2 h 05 min"),
        (_ratio(10.0, 5.0, "faster", "slower"), "2.00x faster"),
        (_ratio(5.0, 10.0, "faster", "slower"), "2.00x slower"),
        (_ratio(10.0, 9.96, "faster", "slower"), "not faster"), (_ratio(10.0, 9.9, "faster", "slower"), "1.01x faster"),
        (_ratio(None, 1.0, "faster", "slower"), ""), (_ratio(1.0, None, "faster", "slower"), ""),
    ],
)  # fmt: skip
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected


def test_the_first_table_repeats_no_row() -> None:
    def labels(*trials: TuningTrial, objective: Objective | None = None) -> list[tuple[str, int]]:
        return [(label, row.number) for label, row in _headline(report(result(trials, objective=objective)))]

    assert labels(DEFAULT, BEST) == [("f32", 0), ("default int8", 0), ("answer", 1)]
    assert labels(DEFAULT) == [("f32 = answer (float)", 0), ("default int8 = best quantized", 0)]
    good = dataclasses.replace(DEFAULT, score=Score(0.8, 1.0, 1, 1000))
    assert labels(good) == [("f32", 0), ("default int8 = answer", 0)]
