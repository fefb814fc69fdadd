"""The smallest good entry of a list is found, and few are measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.allocation import walk
from quantune.allocation.walk import SPLITS, Walk, smallest
from quantune.errors import UsageError


@pytest.mark.parametrize("how", SPLITS)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=40), st.integers(-1, 101))
def test_on_a_falling_list_it_is_the_last_good_one(how: str, values: list[int], target: int) -> None:
    values = sorted(values, reverse=True)
    asked: list[int] = []

    def measure(entry: int) -> float:
        asked.append(entry)
        return float(values[entry])

    found = smallest(len(values), measure, target, how)
    good = [entry for entry, value in enumerate(values) if value >= target]
    assert found.best == (good[-1] if good else None)
    assert len(asked) == len(set(asked)) <= len(values)
    assert found.values == {entry: float(values[entry]) for entry in asked}
    assert found.out_of_order == 0
    if how == "bisection":
        assert len(asked) <= 2 + max(len(values) - 1, 1).bit_length()


@pytest.mark.parametrize("how", SPLITS)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=40), st.integers(-1, 101))
def test_on_any_list_the_answer_was_measured_and_is_good(how: str, values: list[int], target: int) -> None:
    found = smallest(len(values), lambda entry: float(values[entry]), target, how)
    assert found.best is None or found.values[found.best] >= target
    assert (found.best is None) == (values[0] < target and values[-1] < target)


def test_interpolation_asks_where_the_line_crosses() -> None:
    asked: list[int] = []

    def measure(entry: int) -> float:
        asked.append(entry)
        return 100.0 - entry

    assert smallest(101, measure, 70.0, "interpolation").best == 30
    assert asked == [100, 0, 30, 31]


def test_brute_force_goes_one_by_one_to_the_first_bad_one() -> None:
    values = [9.0, 9.0, 1.0, 9.0, 0.0]
    found = smallest(5, values.__getitem__, 5.0, "brute-force")
    assert found.best == 1
    assert set(found.values) == {0, 1, 2, 4}


def test_what_contradicts_the_order_is_counted() -> None:
    assert Walk(3, {0: 5.0, 3: 6.0, 7: 4.0, 9: 4.5}).out_of_order == 2


def test_an_unknown_walk_is_told() -> None:
    with pytest.raises(UsageError, match=r"walk 'bisect': expected one of .* \(did you mean bisection\?\)"):
        walk.check("bisect")
