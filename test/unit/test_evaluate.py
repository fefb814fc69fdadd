from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.errors import UsageError
from quantune.quantization.config import QuantConfig
from quantune.search.scores import (
    Difference,
    Objective,
    Score,
    accuracy_difference,
    accuracy_interval,
    pack_correct,
    unpack_correct,
)

F32 = Score(0.80, 10.0, 4000, 1000)
CHANNEL = QuantConfig(granularity="channel")


@given(
    accuracy=st.floats(0, 1),
    latency=st.none() | st.floats(1e-6, 1e6),
    size=st.integers(0, 10**12),
    images=st.integers(1, 10**6),
    texts=st.tuples(*[st.none() | st.text()] * 2),
    seconds=st.dictionaries(st.text(), st.floats(0, 1e9)),
    stopped_of=st.none() | st.integers(1, 10**6),
)
def test_score_json_round_trip(accuracy, latency, size, images, texts, seconds, stopped_of) -> None:
    score = Score(accuracy, latency, size, images, *texts, seconds, stopped_of)
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


@pytest.mark.parametrize(
    ("field", "value"),
    [("accuracy", math.inf), ("accuracy", math.nan), ("latency_ms", 0.0), ("size_bytes", -1), ("images", 0)],
)
def test_score_refuses_impossible_values(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} {value}"):
        Score(**{**{"accuracy": 0.5, "latency_ms": 1.0, "size_bytes": 1, "images": 1}, field: value})


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_score_reader_raises_only_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="not a score"):
        Score.from_json(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": True}, "accuracy is True, expected a number"),
        ({"images": "many"}, "images is 'many'"),
        ({"latency_ms": "1"}, "latency_ms is '1', expected a number or null"),
        ({"details": []}, "details is \\[\\], expected an object"),
        ({"details": {"correct": 1}}, "details are not those of a measurement"),
        ({"details": {"program": []}}, "details are not those of a measurement"),
        ({"details": {"seconds": {"passes": "1"}}}, "details are not those of a measurement"),
        ({"details": {"stopped_early": {"of": "8"}}}, "details are not those of a measurement"),
        ({"details": {"stopped_early": 8}}, "details are not those of a measurement"),
        ({"more": 1}, "expected an object with accuracy"),
    ],
)
def test_score_reader_names_what_is_wrong(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"not a score: {message}"):
        Score.from_json({**F32.to_json(), **change})


def test_scores_of_older_studies_are_read() -> None:
    stopped = {"of": 80, "share_of_these": 0.5}
    value = {**F32.to_json(), "details": {"correct": "gA==", "stopped_early": stopped, "another": 1}}
    assert Score.from_json(value) == Score(0.80, 10.0, 4000, 1000, "gA==", stopped_of=80)
    assert Score.from_json({**F32.to_json(), "details": {}}) == F32


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_correct_bits_round_trip(bits: list[bool]) -> None:
    assert unpack_correct(pack_correct(bits), len(bits)).tolist() == bits


def test_paired_difference_is_the_standard_error_of_the_paired_mean() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.8, rng.random(500) < 0.7
    scores = [Score(float(c.mean()), None, 1, 500, pack_correct(c)) for c in (a, b)]
    difference = accuracy_difference(*scores)
    per_image = a.astype(float) - b.astype(float)
    assert difference.paired
    assert difference.value == pytest.approx(per_image.mean())
    assert difference.standard_error == pytest.approx(per_image.std() / math.sqrt(500))


def test_difference_without_bits_is_wider_and_says_so() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(500) < 0.8
    b = a ^ (rng.random(500) < 0.02)
    bits = [Score(float(c.mean()), None, 1, 500, pack_correct(c)) for c in (a, b)]
    bare = [Score(s.accuracy, None, 1, 500) for s in bits]
    assert accuracy_difference(*bare).standard_error > 2 * accuracy_difference(*bits).standard_error
    assert "unpaired" in str(accuracy_difference(*bare))


def test_standard_errors_and_intervals_by_hand() -> None:
    difference = accuracy_difference(Score(0.8, None, 1, 100), Score(0.5, None, 1, 400))
    assert (difference.images, difference.paired) == (100, False)
    assert difference.value == pytest.approx(0.3)
    assert difference.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 100 + 0.5 * 0.5 / 400))
    # Of 8 images 3 won and 1 lost.
    bits = [pack_correct(c) for c in ([1, 1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0])]
    mine, theirs = (Score(n / 8, None, 1, 8, b) for n, b in zip((4, 2), bits, strict=True))
    paired = accuracy_difference(mine, theirs)
    assert (paired.value, paired.images, paired.paired) == (0.25, 8, True)
    assert paired.standard_error == pytest.approx(math.sqrt(3 + 1 - 2**2 / 8) / 8)
    low, high = Difference(0.1, 0.02, 8, paired=True).interval()
    assert (low, high) == (pytest.approx(0.1 - 1.959964 * 0.02), pytest.approx(0.1 + 1.959964 * 0.02))
    narrow = Difference(0.1, 0.02, 8, paired=True).interval(0.5)
    assert narrow == (pytest.approx(0.1 - 0.674490 * 0.02), pytest.approx(0.1 + 0.674490 * 0.02))
    assert str(Difference(-0.004, 0.001, 500, paired=True)) == "-0.40 ± 0.20 points (95 %, paired, 500 images)"


def test_answers_to_other_images_are_not_paired() -> None:
    bits = pack_correct([True] * 8)
    assert not accuracy_difference(Score(1.0, None, 1, 8, bits), Score(1.0, None, 1, 7, bits)).paired
    assert not accuracy_difference(Score(1.0, None, 1, 8, bits), Score(1.0, None, 1, 8)).paired
    assert accuracy_difference(Score(0.9, None, 1, 7), Score(0.9, None, 1, 9)).images == 7


@pytest.mark.parametrize(
    ("accuracy", "images", "confidence", "expected"),
    [
        (0.9, 100, 0.95, (0.825634, 0.944771)),  # Wilson's interval, from tables
        (0.0, 10, 0.95, (0.0, 0.277533)),
        (1.0, 10, 0.95, (0.722467, 1.0)),
        (0.5, 40, 0.8, (0.400702, 0.599298)),
    ],
)
def test_accuracy_interval_is_wilsons(
    accuracy: float, images: int, confidence: float, expected: tuple[float, float]
) -> None:
    found = accuracy_interval(Score(accuracy, None, 1, images), confidence)
    assert found == (pytest.approx(expected[0], abs=1e-6), pytest.approx(expected[1], abs=1e-6))


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_accuracy_interval_contains_the_accuracy(accuracy: float) -> None:
    low, high = accuracy_interval(Score(accuracy, None, 1, 100))
    assert 0 <= low <= accuracy <= high <= 1
    assert 0.01 < high - low < 0.25


def test_what_is_missing_to_the_bound_and_what_a_study_stores() -> None:
    objective = Objective("latency", 0.01)
    assert objective.shortfall(Score(0.77, 1.0, 1, 1000), F32) == pytest.approx(0.02)
    assert objective.shortfall(Score(0.77, 1.0, 1, 1000), None) == 0
    assert Objective().shortfall(Score(0.1, 1.0, 1, 1000), F32) == 0
    score = Score(0.8, 3.0, 500, 1000)
    found = {metric: Objective(metric, 0.01) for metric in ("accuracy", "latency", "size")}
    assert {m: (o.value(score), o.direction) for m, o in found.items()} == {
        "accuracy": (0.8, "maximize"), "latency": (3.0, "minimize"), "size": (500.0, "minimize"),
    }  # fmt: skip


def test_bound_is_absolute_and_inclusive() -> None:
    objective = Objective("latency", 0.01)
    assert objective.feasible(Score(0.79, 1.0, 1, 1000), F32)
    assert not objective.feasible(Score(0.789, 1.0, 1, 1000), F32)


@pytest.mark.parametrize(
    ("metric", "winner", "loser"),
    [
        ("accuracy", Score(0.795, 9.0, 9, 1000), Score(0.794, 1.0, 1, 1000)),
        ("accuracy", Score(0.795, 8.0, 9, 1000), Score(0.795, 9.0, 1, 1000)),
        ("latency", Score(0.791, 8.0, 9, 1000), Score(0.799, 9.0, 1, 1000)),
        ("latency", Score(0.791, 9.0, 9, 1000), Score(0.78, 1.0, 1, 1000)),
        ("latency", Score(0.78, 9.0, 9, 1000), Score(0.70, 1.0, 1, 1000)),
        ("size", Score(0.791, 9.0, 8, 1000), Score(0.799, 1.0, 9, 1000)),
        ("size", Score(0.799, 9.0, 9, 1000), Score(0.791, 1.0, 9, 1000)),
        ("accuracy", Score(0.795, 9.0, 8, 1000), Score(0.795, 9.0, 9, 1000)),
        ("accuracy", Score(0.795, 9.0, 9, 1000), Score(0.795, None, 1, 1000)),
        ("latency", Score(0.799, 8.0, 9, 1000), Score(0.791, 8.0, 1, 1000)),
        ("latency", Score(0.799, 8.0, 8, 1000), Score(0.799, 8.0, 9, 1000)),
        ("size", Score(0.799, 8.0, 9, 1000), Score(0.799, 9.0, 9, 1000)),
        ("size", Score(0.78, 9.0, 8, 1000), Score(0.78, 9.0, 9, 1000)),
    ],
    ids=[
        "accuracy",
        "then-latency",
        "latency",
        "bound-first",
        "closest-to-bound",
        "size",
        "then-accuracy",
        "accuracy-at-last-size",
        "unmeasured-is-slowest",
        "latency-then-accuracy",
        "latency-at-last-size",
        "size-at-last-latency",
        "outside-the-bound-by-metric",
    ],
)
def test_better(metric: str, winner: Score, loser: Score) -> None:
    objective = Objective(metric, 0.01)
    assert objective.better((CHANNEL, winner), (CHANNEL, loser), F32)
    assert not objective.better((CHANNEL, loser), (CHANNEL, winner), F32)


SIMPLE = QuantConfig(calib=1, scheme="symmetric_power2", clip="max", granularity="tensor", precision="int8")


@pytest.mark.parametrize(
    ("option", "simple_first"),
    [
        ("granularity", ("tensor", "channel")),
        ("clip", ("max", "percentile", "mse", "aciq", "kl")),
        ("scheme", ("symmetric_power2", "symmetric", "symmetric_uint8", "asymmetric")),
        ("precision", ("int8", "mixed")),
        ("calib", (1, 1000)),
    ],
)
def test_equal_scores_prefer_the_simpler_configuration(option: str, simple_first: tuple) -> None:
    score = Score(0.8, 1.0, 1, 1000)
    configs = [replace(SIMPLE, **{option: value}) for value in simple_first]
    assert all(Objective().better((a, score), (b, score)) for a, b in itertools.pairwise(configs))
    f32, f16 = (QuantConfig(precision=precision) for precision in ("f32", "f16"))
    assert Objective().better((f32, score), (f16, score))
    assert Objective().better((f16, score), (SIMPLE, score))


@pytest.mark.parametrize("arguments", [("speed", 0.01), ("latency", None), ("latency", 1.5), ("accuracy", -0.1)])
def test_objective_refuses(arguments: tuple[str, float | None]) -> None:
    with pytest.raises(UsageError):
        Objective(*arguments)


def test_latency_objective_needs_a_measured_latency() -> None:
    with pytest.raises(UsageError, match="measured no latency"):
        Objective("latency", 0.01).value(Score(0.5, None, 1, 10))
