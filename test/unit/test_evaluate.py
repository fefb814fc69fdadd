from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.config import QuantConfig
from quantune.errors import UsageError
from quantune.search.evaluate import (
    Objective,
    Score,
    accuracy_difference,
    accuracy_interval,
    pack_correct,
    unpack_correct,
)

F32 = Score(0.80, 10.0, 4000, 1000)
TENSOR = QuantConfig(granularity="tensor")
CHANNEL = QuantConfig(granularity="channel")


@given(
    accuracy=st.floats(0, 1),
    latency=st.none() | st.floats(1e-6, 1e6),
    size=st.integers(0, 10**12),
    images=st.integers(1, 10**6),
    details=st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers())),
)
def test_score_json_round_trip(accuracy, latency, size, images, details) -> None:
    score = Score(accuracy, latency, size, images, details)
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


@pytest.mark.parametrize(
    ("field", "value"),
    [("accuracy", 1.5), ("accuracy", math.nan), ("latency_ms", 0.0), ("size_bytes", -1), ("images", 0)],
)
def test_score_refuses_impossible_values(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} {value}"):
        Score(**{**{"accuracy": 0.5, "latency_ms": 1.0, "size_bytes": 1, "images": 1}, field: value})


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_score_reader_raises_only_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="not a score"):
        Score.from_json(value)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_correct_bits_round_trip(bits: list[bool]) -> None:
    assert unpack_correct(pack_correct(bits), len(bits)).tolist() == bits


def test_paired_difference_is_the_standard_error_of_the_paired_mean() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.8, rng.random(500) < 0.7
    scores = [Score(float(c.mean()), None, 1, 500, {"correct": pack_correct(c)}) for c in (a, b)]
    difference = accuracy_difference(*scores)
    per_image = a.astype(float) - b.astype(float)
    assert difference.paired
    assert difference.value == pytest.approx(per_image.mean())
    assert difference.standard_error == pytest.approx(per_image.std() / math.sqrt(500))


def test_difference_without_bits_is_wider_and_says_so() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(500) < 0.8
    b = a ^ (rng.random(500) < 0.02)
    bits = [Score(float(c.mean()), None, 1, 500, {"correct": pack_correct(c)}) for c in (a, b)]
    bare = [Score(s.accuracy, None, 1, 500) for s in bits]
    assert accuracy_difference(*bare).standard_error > 2 * accuracy_difference(*bits).standard_error
    assert "unpaired" in str(accuracy_difference(*bare))


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_accuracy_interval_contains_the_accuracy(accuracy: float) -> None:
    low, high = accuracy_interval(Score(accuracy, None, 1, 100))
    assert 0 <= low <= accuracy <= high <= 1
    assert 0.01 < high - low < 0.25


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
    ],
    ids=["accuracy", "then-latency", "latency", "bound-first", "closest-to-bound", "size", "then-accuracy"],
)
def test_better(metric: str, winner: Score, loser: Score) -> None:
    objective = Objective(metric, 0.01)
    assert objective.better((CHANNEL, winner), (CHANNEL, loser), F32)
    assert not objective.better((CHANNEL, loser), (CHANNEL, winner), F32)


def test_equal_scores_prefer_the_simpler_configuration() -> None:
    score = Score(0.8, 1.0, 1, 1000)
    assert Objective().better((TENSOR, score), (CHANNEL, score))


@pytest.mark.parametrize("arguments", [("speed", 0.01), ("latency", None), ("latency", 1.5), ("accuracy", -0.1)])
def test_objective_refuses(arguments: tuple[str, float | None]) -> None:
    with pytest.raises(UsageError):
        Objective(*arguments)


def test_latency_objective_needs_a_measured_latency() -> None:
    with pytest.raises(UsageError, match="measured no latency"):
        Objective("latency", 0.01).value(Score(0.5, None, 1, 10))
