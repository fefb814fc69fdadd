from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantune.numerics.histogram import BINS, Histogram

number = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1000, 1000, width=32)
values = hnp.arrays(np.float32, st.integers(1, 60), elements=number | ordinary)


def of(*parts: np.ndarray) -> Histogram:
    h = Histogram()
    for part in parts:
        h.add(part)
    return h


@given(values)
def test_counts_are_those_of_exact_arithmetic(x: np.ndarray) -> None:
    h = of(x)
    expected: dict[int, int] = {}
    for value in x.tolist():
        if value:
            k = math.floor(Fraction(value) / Fraction(h.width))
            expected[k] = expected.get(k, 0) + 1
    first = round(h.edges[0] / h.width)
    assert {k + first: int(n) for k, n in enumerate(h.counts) if n} == expected
    assert (h.count, h.zeros) == (x.size, int((x == 0).sum()))
    assert (h.minimum, h.maximum) == (float(x.min()), float(x.max()))
    assert len(h.counts) <= BINS
    assert h.edges[0] <= min(h.minimum, 0)
    assert h.edges[-1] > max(h.maximum, 0)


@given(values, st.data())
def test_independent_of_chunks_order_and_merging(x: np.ndarray, data: st.DataObject) -> None:
    whole = of(x)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=5)))
    assert of(*np.split(x, cuts)) == whole
    assert of(x[::-1]) == whole
    left, right = of(x[: len(x) // 2]), of(x[len(x) // 2 :])
    before = right.copy()
    left.merge(right)
    assert left == whole
    assert right == before


@given(values)
def test_round_trip_through_arrays_and_copy(x: np.ndarray) -> None:
    h = of(x)
    assert Histogram.from_arrays(h.to_arrays()) == h
    other = h.copy()
    other.add(np.array([1.0]))
    assert other.count == h.count + 1


@given(hnp.arrays(np.float32, 30, elements=st.floats(-1000, 1000, width=32, allow_subnormal=False)), st.integers(-8, 8))
def test_powers_of_two_scale_the_bins_and_leave_the_counts(x: np.ndarray, k: int) -> None:
    x = np.where(np.abs(x) < 1e-3, np.float32(1), x)
    a, b = of(x), of(np.ldexp(x, k))
    assert np.array_equal(a.counts, b.counts)
    assert np.array_equal(np.ldexp(a.edges, k), b.edges)


def test_resolution_is_at_least_half_of_the_bins() -> None:
    rng = np.random.default_rng(0)
    assert len(of(rng.uniform(0, 3, 10_000)).counts) > BINS // 2
    assert len(of(rng.normal(0, 3, 10_000)).counts) > BINS // 2


def test_growth_from_the_smallest_to_the_largest_number() -> None:
    h = of(np.array([1e-45, -1e-45]), np.array([3e38]), np.array([-3e38]))
    assert h.count == int(h.counts.sum()) == 4


def test_many_blocks_and_other_layouts() -> None:
    x = np.random.default_rng(1).normal(size=(3, 1000, 300)).astype(np.float32)
    assert of(x) == of(x.transpose(2, 0, 1)) == of(x.astype(np.float64))
    assert of(x).count == x.size


def test_empty() -> None:
    h = of(np.zeros((0, 3)))
    assert h.count == 0
    assert h == Histogram() == Histogram.from_arrays(h.to_arrays())
    h.merge(Histogram())
    assert h == Histogram()
    h.merge(of(np.array([1.0, 2.0])))
    assert h == of(np.array([1.0, 2.0]))


def test_only_zeros() -> None:
    h = of(np.zeros(5))
    assert (h.count, h.zeros, h.minimum, h.maximum) == (5, 5, 0.0, 0.0)
    h.add(np.array([4.0, -0.0]))
    assert h == of(np.array([0, 0, 4.0, 0, 0, 0, 0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_and_nothing_is_counted(bad: float) -> None:
    h = of(np.ones(3))
    with pytest.raises(ValueError, match="2 of 5 values"):
        h.add(np.array([1, bad, 7, bad, 2]))
    assert h == of(np.ones(3))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("counts", None, "without counts"),
        ("counts", np.zeros(3), "types float64"),
        ("counts", np.zeros((1, 3), np.int64), "shapes"),
        ("counts", np.zeros(3, np.int64), "do not fit"),
        ("range", np.array([0.0, 9.0]), "do not fit"),
        ("range", np.array([np.nan, 9.0]), "do not fit"),
        ("layout", np.array([0, 0, 0]), "do not fit"),
    ],
)
def test_contradictory_arrays_are_refused(name: str, value: np.ndarray | None, message: str) -> None:
    arrays = of(np.array([1.0, 2.0])).to_arrays()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(ValueError, match=message):
        Histogram.from_arrays(arrays)


def test_negative_counts_are_refused() -> None:
    arrays = of(np.array([1.0, 2.0])).to_arrays()
    arrays["counts"][0] = -1
    with pytest.raises(ValueError, match="do not fit"):
        Histogram.from_arrays(arrays)
