"""The choice among measured trials: ranks, finalists, the Pareto front by its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.quantization.config import QuantConfig
from quantune.search.result import TuningResult, TuningTrial, choose, pareto_front, ranked, with_latencies
from quantune.search.scores import Objective, Score

INT8, F32, F16 = QuantConfig(), QuantConfig(precision="f32"), QuantConfig(precision="f16")
LATENCY = Objective("latency", 0.01)


def trial(
    number: int, accuracy: float, latency: float | None = 1.0, size: int = 100, images: int = 1000, **options: object
) -> TuningTrial:
    config = options.pop("config", INT8)
    return TuningTrial(number, config, "complete", Score(accuracy, latency, size, images), **options)  # type: ignore[arg-type]


BASELINES = {"f32": trial(0, 0.80, 10.0, 400, config=F32)}


def numbers(trials: list[TuningTrial]) -> list[int]:
    return [each.number for each in trials]


def test_ranks_by_the_objective_then_by_number_and_without_partial_trials() -> None:
    failed = TuningTrial(9, INT8, "failed", reason="no")
    trials = [trial(4, 0.795, 3.0), trial(2, 0.795, 3.0), trial(1, 0.9, 1.0, images=999), trial(3, 0.78, 1.0), failed]
    baseline = BASELINES["f32"].score
    assert numbers(ranked(trials, LATENCY, baseline)) == [2, 4, 3]
    assert numbers(ranked(trials, Objective(), baseline)) == [2, 4, 3]
    # Without f32 the most images that any trial saw are what a full measurement has.
    assert numbers(ranked(trials, LATENCY, None)) == [3, 2, 4]
    assert ranked([failed], LATENCY, None) == []


def test_a_float_artifact_answers_where_it_is_faster_or_nothing_else_keeps_the_bound() -> None:
    fast, slow, broken = trial(1, 0.795, 3.0), trial(2, 0.8, 20.0), trial(3, 0.5, 1.0)
    assert choose([slow, fast, broken], BASELINES, LATENCY) == (fast, fast)
    assert choose([slow, broken], BASELINES, LATENCY) == (BASELINES["f32"], slow)
    assert choose([broken], BASELINES, LATENCY) == (BASELINES["f32"], broken)
    f16 = trial(1, 0.79, 5.0, 200, config=F16)
    assert choose([slow], {**BASELINES, "f16": f16}, LATENCY) == (f16, slow)
    # For accuracy f32 would win over whatever keeps the bound: it answers only when nothing does.
    worse = trial(5, 0.795)
    assert choose([worse, broken], BASELINES, Objective("accuracy", 0.01)) == (worse, worse)
    assert choose([broken], BASELINES, Objective("accuracy", 0.01)) == (BASELINES["f32"], broken)
    assert choose([broken], {}, LATENCY) == (broken, broken)
    assert choose([], {}, LATENCY) == (None, None)


def test_the_choice_is_among_those_timed_again() -> None:
    lucky, steady = trial(1, 0.8, 1.0), trial(2, 0.8, 2.0, retimed=True)
    assert choose([lucky, steady], BASELINES, LATENCY)[0] == steady
    assert choose([lucky], BASELINES, LATENCY)[0] == lucky


def test_a_search_is_feasible_when_its_best_quantized_keeps_the_bound() -> None:
    for accuracy, expected in ((0.79, True), (0.789, False)):
        found = trial(1, accuracy)
        result = TuningResult(LATENCY, (found,), BASELINES, found, found, (), "", False, 1.0, 96, None)  # type: ignore[arg-type]
        assert result.feasible is expected
        assert result.baseline is BASELINES["f32"]
    assert not TuningResult(LATENCY, (), BASELINES, None, None, (), "", False, 1.0, 96, None).feasible  # type: ignore[arg-type]


def test_latencies_of_the_final_timing_replace_those_of_their_configurations() -> None:
    failed = TuningTrial(9, F32, "failed", reason="no")
    found = with_latencies([trial(1, 0.8, 1.0), trial(2, 0.8, 2.0, config=F16), failed], {INT8: 5.0, F32: 6.0})
    assert [(t.score and t.score.latency_ms, t.retimed) for t in found] == [(5.0, True), (2.0, False), (None, False)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3)), max_size=8))
def test_the_front_holds_what_nothing_beats_in_everything(values: list[tuple[int, int, int]]) -> None:
    trials = [trial(n, a / 4, float(ms), size) for n, (a, ms, size) in enumerate(values)]

    def beaten(n: int) -> bool:
        a, ms, size = values[n]
        at_least = [m for m, (b, t, s) in enumerate(values) if b >= a and t <= ms and s <= size and m != n]
        return any(values[m] != values[n] or m < n for m in at_least)

    front = pareto_front(trials, Objective())
    assert {t.number for t in front} == {n for n in range(len(values)) if not beaten(n)}
    assert [-t.score.accuracy for t in front if t.score] == sorted(-t.score.accuracy for t in front if t.score)


def test_an_unmeasured_latency_neither_wins_nor_loses() -> None:
    measured, unknown, smaller = trial(1, 0.8, 5.0), trial(2, 0.8, None), trial(3, 0.8, None, 99)
    assert len(pareto_front([measured, unknown], Objective())) == 1
    assert numbers(list(pareto_front([measured, smaller], Objective()))) == [3]
    assert numbers(list(pareto_front([measured, trial(4, 0.79, None, 100)], Objective()))) == [1]


@pytest.mark.parametrize("state", ["complete", "waiting"])
def test_states_and_scores_belong_together(state: str) -> None:
    with pytest.raises(ValueError, match=f"{state}"):
        TuningTrial(1, INT8, state)
    with pytest.raises(ValueError, match="its score is"):
        TuningTrial(1, INT8, "failed", Score(0.5, 1.0, 1, 1))
