"""The worth of a candidate: improvements by their definition, odds and lines through a prior by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from quantune.search import acquisition as module
from quantune.search.acquisition import (
    HOPELESS,
    NOVELTY,
    PAST_VARIANCE,
    POOR_ODDS,
    Candidates,
    Observations,
    Past,
    acquisition,
    foresight,
)
from quantune.search.cost_model import CostModelOptions
from quantune.search.kriging import Kriging

OPTIONS = CostModelOptions()
NOTHING = np.zeros((0, 2))


def seen(value: list[float], **constraints: list[float]) -> Observations:
    rows = np.arange(2.0 * len(value)).reshape(-1, 2)
    limits = {name: np.array(values) for name, values in constraints.items()}
    return Observations(rows, rows, np.array(value), NOTHING, NOTHING, limits)


def ahead(count: int) -> Candidates:
    rows = np.arange(2.0 * count).reshape(-1, 2) + 0.5
    return Candidates(rows, rows)


def improvement(mean: float, std: float, best: float) -> float:
    """By the definition: the mean of max(value - best, 0)."""
    return quad(lambda v: (v - best) * norm.pdf(v, mean, std), best, max(best, mean) + 12 * std, points=[mean])[0]


def test_expected_improvement_over_the_best_that_keeps_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    guides = [
        (np.array([0.5, 0.9, 0.1]), np.array([0.2, 0.1, 0.5])),
        (np.array([0.7, 0.2, 0.3]), np.array([0.3, 0.4, 0.1])),
    ]
    monkeypatch.setattr(module, "_alone", lambda *_: guides)
    monkeypatch.setattr(module, "_probability_kept", lambda *_: np.array([1.0, 0.5, 0.9]))
    # By rank the values are 1/4, 3/4, 2/4 and 1; the largest of them breaks its bound.
    found = acquisition(seen([1, 30, 2, 500], bound=[-1, 0, np.nan, 0.1]), ahead(3), seed=0, options=OPTIONS)
    expected = [np.mean([improvement(m[i], s[i], 0.75) + 1e-9 * m[i] for m, s in guides]) for i in range(3)]
    assert found == pytest.approx(np.array(expected) * [1.0, 0.5, 0.9], rel=1e-6)


def elsewhere() -> Past:
    """Four rows of two other models, each with one column behind its place."""
    place = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    x = np.hstack([place, [[0.5], [0.1], [np.nan], [0.7]]])
    return Past(x, place, np.array([0, 0, 1, 1]), np.array([-3.0, -1.0, -2.0, -0.5]), np.full(4, np.nan))


def test_with_past_studies_the_probability_of_an_improvement_by_its_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mean, std = np.array([-1.0, 0.5, -40.0]), np.array([0.5, 2.0, 0.1])
    monkeypatch.setattr(module, "_with_past", lambda *_: (mean, std))
    monkeypatch.setattr(module, "_probability_kept", lambda *_: np.array([1.0, 0.5, 0.9]))
    # The largest value breaks its bound, so that -1 is to be improved on; values are scores already, not ranked.
    found = acquisition(seen([-3, -1, 7], a=[-1, 0, 0.1]), ahead(3), seed=0, options=OPTIONS, past=elsewhere())
    over = [quad(lambda v, m=m, s=s: norm.pdf(v, m, s), -1, m + 12 * s)[0] for m, s in zip(mean, std, strict=True)]
    expected = np.array(over[:2]) * [1.0, 0.5]
    assert found[:2] == pytest.approx(expected, rel=1e-6)
    assert -1e-6 < found[2] < 0  # nothing left of the probability: the distance decides


def test_past_rows_and_own_ones_meet_in_one_process() -> None:
    past, points = elsewhere(), np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0]])
    own = Observations(np.array([[1.0, 0.0, 0.3]]), np.array([[1.0, 0.0]]), np.array([-1.5]), NOTHING, NOTHING)
    candidates = Candidates(np.hstack([points, [[0.2], [0.4], [0.6]]]), points)
    process = Kriging(
        np.vstack([past.place, own.place]),
        np.vstack([past.x[:, 2:], own.x[:, 2:]]),
        np.array([0, 0, 1, 1, -1]),
        np.append(past.score, -1.5),
        variance=PAST_VARIANCE,
    )
    mean, std = process.predict(points, candidates.x[:, 2:], -1)
    found = acquisition(own, candidates, seed=3, options=OPTIONS, past=past)
    assert found == pytest.approx(norm.cdf((mean + 1.5) / std), abs=1e-6)
    alone = Kriging(past.place, past.x[:, 2:], past.study, past.score, variance=PAST_VARIANCE)
    assert foresight(past, candidates) == pytest.approx(alone.predict(points, candidates.x[:, 2:], -1)[0])


def test_past_merits_tell_what_a_merit_is_worth() -> None:
    past, points = elsewhere(), np.array([[0.0, 0.0], [1.0, 1.0]])
    known = Past(past.x, past.place, past.study, 2.0 * np.arange(4.0), np.arange(4.0))
    x = np.hstack([points, [[0.3], [0.3]]])
    low, high = (foresight(known, Candidates(x, points, np.array([0.0, m]))) for m in (1.0, 2.0))
    assert low[0] == pytest.approx(high[0])
    assert high[1] - low[1] == pytest.approx(module._slope_within(known.merit, known.score, known.study))
    assert high[1] > low[1]


def test_without_anything_that_keeps_the_bounds_the_odds_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    odds = {1: np.array([1.0, 0.6, 0.2]), 2: np.array([0.9, 0.5, 1.0])}
    monkeypatch.setattr(module, "_probability_kept", lambda *given: odds[given[4]])
    found = acquisition(seen([1, 2], a=[1, -1], b=[-1, 1]), ahead(3), seed=0, options=OPTIONS)
    assert found == pytest.approx([0.9, 0.3, 0.2 - (HOPELESS if POOR_ODDS * 0.9 > 0.2 else 0)])


def test_a_failed_neighbour_lowers_the_odds_and_poor_odds_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_probability_measured", lambda *_: np.array([1.0, 0.26, 0.24]))
    monkeypatch.setattr(module, "_improvement", lambda *_: np.array([1.0, 2.0, 3.0]))
    one = np.ones((1, 2))
    rows = seen([1, 2])
    failed = Observations(rows.x, rows.place, rows.value, one, one)
    found = acquisition(failed, ahead(3), seed=0, options=OPTIONS)
    assert found == pytest.approx([1.0, 0.52, 0.72 - HOPELESS])
    assert acquisition(rows, ahead(3), seed=0, options=OPTIONS) == pytest.approx([1.0, 2.0, 3.0])


def test_the_odds_of_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def predict(target: np.ndarray, part: Observations, *rest: object, sign: float) -> tuple[np.ndarray, np.ndarray]:
        asked.update(target=target, values=part.value, sign=sign)
        return np.array([0.5, -2.0]), np.array([1.0, 2.0])

    monkeypatch.setattr(module, "_predict", predict)
    limits = np.array([3.0, np.nan, -1.0, 2.0])
    rows = seen([1, 2, 3, 4])
    found = module._probability_kept(limits, rows, ahead(2), np.ones(2), 0, OPTIONS)
    assert found == pytest.approx([norm.cdf(-0.5), norm.cdf(1.0)])
    assert asked["target"] == pytest.approx(np.arcsinh(np.array([3.0, -1.0, 2.0]) / 2))  # their median size is 2
    assert asked["values"].tolist() == [1, 3, 4]
    assert asked["sign"] == -1  # a larger merit breaks a bound less
    module._probability_kept(np.array([0.0, 0.0, 4.0, np.nan]), rows, ahead(2), np.ones(2), 0, OPTIONS)
    assert asked["target"] == pytest.approx(np.arcsinh([0, 0, 1.0]))
    unknown = module._probability_kept(np.full(4, np.nan), rows, ahead(2), np.ones(2), 0, OPTIONS)
    assert unknown.tolist() == [1, 1]


def test_novelty_is_the_distance_to_the_nearest_row_in_parts_of_the_largest() -> None:
    candidates = np.array([[0.0, 0.0], [2.0, 1.0], [0.0, 4.0]])
    assert module._novelty(candidates, np.array([[0.0, 0.0], [1.0, 1.0]])) == pytest.approx([0, 1 / 4, 1])
    assert module._novelty(candidates, np.zeros((0, 2))).tolist() == [1, 1, 1]
    assert module._novelty(candidates[:1], candidates[:1]).tolist() == [0]


def test_lines_are_drawn_to_what_the_prior_promises() -> None:
    merit, target = np.array([0.0, 2.0]), np.array([1.0, 5.0])
    slope, offset = module._line(merit, target, 1.0)
    assert (slope, offset) == (pytest.approx((4 + 10 * 1) / 12), pytest.approx(3 - 14 / 12))
    assert module._line(np.array([2.0, 2.0]), target, 0.5) == (0.5, 3 - 0.5 * 2)
    line, forward, spread = module._prior_line(target, 3, (merit, np.array([0.0, 1.0, 4.0])), sign=-1.0)
    slope, offset = module._line(merit, target, -2.0)
    assert spread == 2
    assert line == pytest.approx(slope * merit + offset)
    assert forward == pytest.approx(slope * np.array([0.0, 1.0, 4.0]) + offset)
    assert [part.tolist() for part in module._prior_line(target, 1, None, sign=1.0)[:2]] == [[0, 0], [0]]
    assert module._prior_line(np.ones(2), 1, None, sign=1.0)[2] == 1


def test_models_share_a_slope_whatever_their_levels() -> None:
    merit, study = np.array([0.0, 2.0, 1.0, 3.0]), np.array([0, 0, 7, 7])
    assert module._slope_within(merit, np.array([0.0, 4.0, 100.0, 104.0]), study) == pytest.approx(2)
    deviation = np.sqrt((4 + 4 + 1 + 1) / 4)
    expected = (6 + 10 * deviation) / 14
    assert module._slope_within(merit, np.array([0.0, 4.0, 100.0, 102.0]), study) == pytest.approx(expected)
    assert module._slope_within(np.array([1.0, 1.0, 5.0, 5.0]), np.arange(4.0), study) == 0


def test_doubt_grows_with_novelty() -> None:
    rows = Observations(np.zeros((3, 0)), np.zeros((3, 2)), np.array([1.0, 2.0, 6.0]), NOTHING, NOTHING)
    novelty = np.array([0.0, 0.5, 1.0])
    blind = Candidates(np.zeros((3, 0)), np.zeros((3, 2)))
    mean, std = module._predict(rows.value, rows, blind, novelty, 0, OPTIONS, None, sign=1.0)
    spread = rows.value.std()
    assert mean == pytest.approx([3, 3, 3])  # without features nothing but the mean is known
    assert std == pytest.approx(spread * np.sqrt((NOVELTY * novelty) ** 2 + 1e-6))
