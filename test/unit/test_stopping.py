"""Stopping a trial early: the exact bound, how often it errs, and the estimate that is left."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from quantune.search.scores import Objective, Score, pack_correct
from quantune.search.stopping import ERROR, FEWEST, Floor, fewest_marked, floor_of, looks


def _exact(population: int, marked: int, drawn: int, found: int) -> float:
    ways = math.comb(population, drawn)
    hits = range(found, min(drawn, marked) + 1)
    return sum(math.comb(marked, k) * math.comb(population - marked, drawn - k) for k in hits) / ways


@pytest.mark.parametrize(("population", "drawn", "found"), [(20, 8, 3), (20, 8, 0), (20, 8, 8), (20, 20, 5), (7, 0, 0)])
@pytest.mark.parametrize("error", [0.001, 0.05, 0.5])
def test_the_bound_is_exact(population: int, drawn: int, found: int, error: float) -> None:
    possible = range(found, population - (drawn - found) + 1)
    expected = next(k for k in possible if _exact(population, k, drawn, found) > error)
    assert fewest_marked(population, drawn, found, error) == expected


def test_large_populations_do_not_overflow() -> None:
    bound = fewest_marked(50_000, 6_250, 625, 0.001)
    assert 4_000 < bound < 5_000


def _trial(reference: NDArray[np.bool_], lost: int, won: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    right = reference.copy()
    right[rng.choice(np.flatnonzero(reference), lost, replace=False)] = False
    right[rng.choice(np.flatnonzero(~reference), won, replace=False)] = True
    return right


def _stopped(
    reference: NDArray[np.bool_], right: NDArray[np.bool_], rng: np.random.Generator, **options: float
) -> bool:
    order = rng.permutation(len(reference))
    floor = Floor(reference[order], **options)  # type: ignore[arg-type]
    return any(floor.stops(right[order][:count]) for count in looks(len(reference)))


@pytest.mark.parametrize(("lost", "won"), [(30, 30), (200, 200), (0, 0), (105, 100)])
def test_a_trial_that_keeps_up_is_stopped_no_oftener_than_promised(lost: int, won: int) -> None:
    rng = np.random.default_rng(0)
    reference = np.arange(1000) < 700
    right = _trial(reference, lost, won, rng)
    stopped = sum(_stopped(reference, right, rng, allowed=max(0, lost - won), error=0.2) for _ in range(300))
    assert stopped <= 300 * 0.2


def test_a_trial_that_breaks_down_is_stopped_at_the_first_look() -> None:
    rng = np.random.default_rng(1)
    reference = rng.random(1000) < 0.7
    right = rng.random(1000) < 0.1
    floor = Floor(reference)
    assert floor.stops(right[: looks(1000)[0]])


def test_a_trial_a_little_worse_is_measured_to_the_end() -> None:
    rng = np.random.default_rng(2)
    reference = np.arange(1000) < 700
    assert not _stopped(reference, _trial(reference, 22, 20, rng), rng)


def test_what_may_be_lost_is_allowed() -> None:
    rng = np.random.default_rng(3)
    reference = np.arange(2000) < 1600
    right = _trial(reference, 300, 0, rng)
    assert _stopped(reference, right, rng, allowed=0)
    assert not _stopped(reference, right, rng, allowed=400)


def test_all_images_leave_no_doubt() -> None:
    reference = np.arange(500) < 400
    floor = Floor(reference)
    assert not floor.stops(reference)
    worse = reference.copy()
    worse[0] = False
    assert floor.stops(worse)
    assert floor.estimate(worse) == worse.mean()


def test_the_estimate_is_unbiased_and_better_than_the_plain_share() -> None:
    rng = np.random.default_rng(4)
    reference = np.arange(1000) < 700
    right = _trial(reference, 100, 20, rng)
    errors = []
    for _ in range(400):
        order = rng.permutation(1000)
        part = right[order][:125]
        errors.append((Floor(reference[order]).estimate(part) - right.mean(), part.mean() - right.mean()))
    mine, plain = np.array(errors).T
    assert abs(mine.mean()) < 3 * mine.std() / 20
    assert mine.std() < 0.8 * plain.std()


def test_the_estimate_by_hand() -> None:
    floor = Floor(np.array([1, 0, 1, 1, 0, 0, 1, 1], bool))
    # Of the five that the reference has right two of three were right, of the other three the one that was seen.
    assert floor.estimate(np.array([1, 1, 0, 1], bool)) == pytest.approx((5 * 2 / 3 + 3 * 1) / 8)
    # Of a share that was not seen nothing else is known than what the reference answered.
    assert Floor(np.array([1, 1, 0], bool)).estimate(np.array([1], bool)) == pytest.approx(2 / 3)
    assert Floor(np.array([0, 0, 1], bool)).estimate(np.array([0], bool)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("images", "seen", "error"), [(512, 64, 0.01), (512, 128, 0.1), (60, 30, 0.2)])
def test_stops_where_the_exact_bounds_part(images: int, seen: int, error: float) -> None:
    reference = np.arange(images) % 4 != 0
    known = reference[:seen]
    rights, wrongs, each = int(reference.sum()), int((~reference).sum()), error / (2 * (3 if images == 512 else 1))

    @functools.cache
    def least(population: int, drawn: int, found: int) -> int:
        possible = range(found, population - (drawn - found) + 1)
        return next(k for k in possible if _exact(population, k, drawn, found) > each)

    verdicts = set()
    for lost, won, allowed in itertools.product(range(0, 16), (0, 1, 4), (0, images // 16)):
        right = known.copy()
        right[np.flatnonzero(known)[:lost]] = False
        right[np.flatnonzero(~known)[:won]] = True
        most_won = wrongs - least(wrongs, int((~known).sum()), int((~known).sum()) - won)
        expected = least(rights, int(known.sum()), lost) - most_won > allowed
        assert Floor(reference, allowed, error).stops(right) == expected, (lost, won, allowed)
        verdicts.add(expected)
    assert verdicts == {True, False}


def test_few_images_are_never_stopped() -> None:
    assert (FEWEST, ERROR) == (64, 0.01)
    assert looks(FEWEST) == ()
    assert looks(1000) == (125, 250, 500)
    assert looks(8 * FEWEST) == (64, 128, 256)
    assert looks(8 * FEWEST - 8) == (126, 252)
    assert looks(8 * FEWEST + 1) == (65, 129, 257)


@pytest.mark.parametrize(("allowed", "error"), [(-1, 0.01), (0, 0.0), (0, 1.0)])
def test_bad_numbers(allowed: int, error: float) -> None:
    with pytest.raises(ValueError, match=f"allowed {allowed} and error {error}"):
        Floor(np.ones(3, bool), allowed, error)


def test_the_floor_of_an_objective() -> None:
    def score(right: list[int]) -> Score:
        return Score(sum(right) / len(right), 1.0, 1, len(right), pack_correct(np.array(right)))

    f32, best = score([1] * 90 + [0] * 10), score([1] * 80 + [0] * 20)
    found = floor_of(Objective("accuracy", 0.05), best, f32)
    assert found is not None
    assert (int(found.reference.sum()), found.allowed) == (80, 0)
    for drop, allowed in ((0.05, 5), (0.29, 29), (0.0, 0), (0.019, 1)):  # 0.29 * 100 is a little less than 29
        found = floor_of(Objective("latency", drop), best, f32)
        assert found is not None
        assert (int(found.reference.sum()), found.allowed) == (90, allowed)
    assert floor_of(Objective("accuracy", 0.05), None, f32) is None
    assert floor_of(Objective("size", 0.05), best, None) is None
    assert floor_of(Objective("size", 0.05), best, Score(0.9, 1.0, 1, 100)) is None
