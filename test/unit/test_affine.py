from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantune.numerics import affine, schemes
from quantune.numerics.affine import QuantParams
from quantune.numerics.schemes import SCHEMES, Weights

BIG = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)

scheme = st.sampled_from(sorted(SCHEMES))
bits = st.integers(2, 8)
number = st.floats(width=32, allow_nan=False, allow_infinity=False)
sane = st.floats(2**-20, 2**20, width=32)
i32 = st.integers(-(2**31), 2**31 - 1)
power = st.integers(-12, 33)


def params(scale: float, zero_point: int = 0, qmin: int = 0, qmax: int = 255) -> QuantParams:
    return QuantParams(np.float32(scale), np.int32(zero_point), qmin, qmax)  # type: ignore[arg-type]


def half_even(x: Fraction) -> int:
    return round(x)


def clamp(q: int, qmin: int, qmax: int) -> int:
    return min(max(q, qmin), qmax)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, r"scale 0\.0"),
        ({"scale": -1.0}, r"scale -1\.0"),
        ({"scale": np.nan}, "scale nan"),
        ({"scale": np.inf}, "scale inf"),
        ({"scale": 1e-40}, "normal"),
        ({"zero_point": 256}, "zero point 256"),
        ({"zero_point": -1}, "zero point -1"),
        ({"qmin": -1}, r"\[-1, 255\]"),
        ({"qmin": 5, "qmax": 5}, r"\[5, 5\]"),
        ({"qmax": 256}, r"\[0, 256\]"),
        ({"qmin": -128, "qmax": 128}, r"\[-128, 128\]"),
    ],
)
def test_bad_params_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**{"scale": 1.0, **arguments})


def test_bad_shapes_are_refused() -> None:
    one, two = np.ones(2, np.float32), np.zeros(3, np.int32)
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        QuantParams(one, two, 0, 255, 0)
    with pytest.raises(ValueError, match="axis None"):
        QuantParams(one, np.zeros(2, np.int32), 0, 255)
    with pytest.raises(ValueError, match="axis 1"):
        QuantParams(np.float32(1), np.int32(0), 0, 255, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected integers in \[0, 255\]"):
        QuantParams(one, np.array([0, 256], np.int32), 0, 255, 0)
    with pytest.raises(ValueError, match="expected integers"):
        QuantParams(one, np.zeros(2), 0, 255, 0)  # type: ignore[arg-type]


def test_params_are_values() -> None:
    assert params(0.5, 3) == params(0.5, 3)
    assert len({params(0.5, 3), params(0.5, 3), params(0.5, 4), params(0.5, 3, -128, 127)}) == 3
    with pytest.raises(ValueError, match="read-only"):
        params(0.5).scale[()] = 1


@pytest.mark.parametrize(
    ("scheme", "lo", "hi", "scale", "zero_point", "qmin", "qmax"),
    [
        ("asymmetric", -1.0, 1.55, np.float32(0.01), 100, 0, 255),
        ("asymmetric", 0.5, 2.55, np.float32(0.01), 0, 0, 255),
        ("asymmetric", -2.55, -0.5, np.float32(0.01), 255, 0, 255),
        ("symmetric", -1.27, 0.3, np.float32(0.01), 0, -128, 127),
        ("symmetric_uint8", 0.0, 2.55, np.float32(0.01), 0, 0, 255),
        ("symmetric_uint8", -0.1, 1.27, np.float32(0.01), 0, -128, 127),
        ("symmetric_power2", -1.27, 1.0, 2.0**-6, 0, -128, 127),
        ("symmetric_power2", -127.0, 1.0, 1.0, 0, -128, 127),
    ],
)
def test_known_params(scheme: str, lo: float, hi: float, scale: float, zero_point: int, qmin: int, qmax: int) -> None:
    assert SCHEMES[scheme].params(lo, hi) == params(scale, zero_point, qmin, qmax)


@given(scheme, bits, number, number)
def test_every_finite_range_gives_usable_params(scheme: str, bits: int, a: float, b: float) -> None:
    lo, hi = min(a, b), max(a, b)
    p = SCHEMES[scheme].params(lo, hi, bits)
    assert TINY <= p.scale <= affine.LARGEST_SCALE
    assert affine.dequantize(affine.quantize(np.zeros(1, np.float32), p), p)[0] == 0
    # The ends are represented to within a step (asymmetric: rounding the zero point moves both by up to half of one).
    for end in (lo, hi) if max(-lo, hi) < 2.0**118 else ():
        step, back = float(p.scale), float(affine.dequantize(affine.quantize(np.array([end]), p), p)[0])
        assert abs(back - end) <= step * 1.001 + abs(end) * 1e-6
    assert schemes.is_degenerate(lo, hi) == (lo == hi == 0)
    if lo == hi == 0:
        assert p.scale == 1
    if scheme != "asymmetric":
        assert p.zero_point == 0
    if scheme == "symmetric_power2":
        assert np.frexp(p.scale)[0] == 0.5


@given(st.floats(2**-80, 2**80), bits)
def test_power_of_two_scale_is_the_smallest_that_covers(top: float, bits: int) -> None:
    scale = float(SCHEMES["symmetric_power2"].params(0, top, bits).scale)
    largest = 2 ** (bits - 1) - 1
    assert scale / 2 * largest < top <= scale * largest


def test_the_smallest_scales_are_normal_numbers() -> None:
    for scheme in ("asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2"):
        assert SCHEMES[scheme].params(0, 1e-44).scale == TINY == 2.0**-126
        assert SCHEMES[scheme].params(0, 1e40).scale == affine.LARGEST_SCALE
    assert SCHEMES["asymmetric"].scale(0, 255) == 1


@pytest.mark.parametrize(("lo", "hi"), [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0)])
def test_non_finite_range_is_refused_with_its_value(lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match=r"nan|inf"):
        SCHEMES["asymmetric"].params(lo, hi)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        SCHEMES["asymmetric"].params(2, 1)
    with pytest.raises(ValueError, match="scheme 'symmetric' is there already"):
        schemes.register(SCHEMES["symmetric"])
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            SCHEMES["asymmetric"].params(0, 1, bits)
    with pytest.raises(ValueError, match="granularity 'row'"):
        Weights().params(np.ones((2, 2)), "row")
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        Weights().params(np.ones((0, 2)), "tensor")
    with pytest.raises(ValueError, match="1 elements are not finite"):
        SCHEMES["symmetric"].weights.params(np.array([1, np.nan]), "tensor")


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)), scheme, bits)
def test_round_trip_error_inside_and_saturation_outside(x: np.ndarray, scheme: str, bits: int) -> None:
    p = SCHEMES[scheme].params(float(x.min()) / 2, float(x.max()) / 2, bits) if x.min() <= x.max() else None
    assert p is not None
    q = affine.quantize(x, p)
    assert q.dtype == p.dtype
    assert q.min() >= p.qmin
    assert q.max() <= p.qmax
    back = affine.dequantize(q, p)
    low, high = (float(affine.dequantize(np.array([end]), p)[0]) for end in (p.qmin, p.qmax))
    for value, got in zip(x.astype(float), back.astype(float), strict=True):
        expected = min(max(value, low), high)
        assert abs(got - expected) <= float(p.scale) * 0.5001 + abs(expected) * 1e-6
    order = np.argsort(x, kind="stable")
    assert np.all(np.diff(q[order].astype(int)) >= 0)


def test_ties_go_to_even_and_specials_saturate() -> None:
    p = params(2.0, 10)
    x = np.array([1, 3, 5, -1, -3, np.inf, -np.inf, np.nan, BIG], np.float32)
    assert affine.quantize(x, p).tolist() == [10, 12, 12, 10, 8, 255, 0, 0, 255]
    assert affine.quantize(np.array([BIG, -BIG]), params(TINY)).tolist() == [255, 0]


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=sane), bits, st.data())
def test_per_channel_equals_stacked_per_tensor(w: np.ndarray, bits: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-w.ndim, w.ndim - 1))
    scheme = data.draw(st.sampled_from(sorted(SCHEMES)))
    p = SCHEMES[scheme].weights.params(w, "channel", bits, axis)
    q = affine.quantize(w, p)
    assert p.axis == axis % w.ndim
    for i in range(w.shape[axis]):
        single = SCHEMES[scheme].weights.params(w.take(i, axis), "tensor", bits)
        assert single.scale == p.scale[i]
        assert np.array_equal(affine.quantize(w.take(i, axis), single), q.take(i, axis))
    assert q.max() <= 2 ** (bits - 1) - 1
    assert q.min() >= -(2 ** (bits - 1)) + 1


def test_zero_channel_has_scale_one() -> None:
    p = SCHEMES["symmetric"].weights.params(np.array([[0.0, 0.0], [1.27, -0.5]]), "channel")
    assert p.scale.tolist() == [1.0, np.float32(0.01)]
    assert SCHEMES["symmetric_power2"].weights.params(np.zeros(3), "tensor").scale == 1


@pytest.mark.parametrize("scheme", ["symmetric", "symmetric_power2"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_bias_fits_after_raising_scales(scheme: str, granularity: str) -> None:
    w = np.array([[1e-12, -2e-12], [0.5, 0.25]]) if granularity == "channel" else np.array([[1e-12, -2e-12]])
    bias, s_x = np.array([0.5, -0.1])[: len(w)], float(np.float32(0.02))
    p = SCHEMES[scheme].weights.params(w, granularity)
    assert abs(affine.quantize_bias(bias, s_x, p.scale)).max() == 2**31 - 1  # lost without help
    fitted = SCHEMES[scheme].weights.fit_to_bias(p, bias, s_x)
    q = affine.quantize_bias(bias, s_x, fitted.scale)
    assert abs(q.astype(np.int64)).max() <= affine.BIAS_LIMIT
    np.testing.assert_allclose(q * (s_x * fitted.scale.astype(float)), bias, rtol=1e-7)
    if granularity == "channel":
        assert fitted.scale[1] == p.scale[1]
    if scheme == "symmetric_power2":
        assert np.all(np.frexp(fitted.scale)[0] == 0.5)
    assert SCHEMES[scheme].weights.fit_to_bias(fitted, bias, s_x) is fitted


def test_scales_are_raised_only_where_the_bias_asks_for_it() -> None:
    limit = affine.BIAS_LIMIT
    exact = QuantParams(np.float32(0.5), np.int32(0), -127, 127)
    assert Weights().fit_to_bias(exact, np.array([limit * 0.25, -1.0]), 0.5) is exact  # just fits
    channels = QuantParams(np.array([0.5, 0.3, 0.25], np.float32), np.zeros(3, np.int32), -127, 127, 0)
    raised = Weights().fit_to_bias(channels, np.array([1.0, limit * 0.5, -2.0]), 1.0)
    assert raised.scale.tolist() == [0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.25]
    # Powers of two stay so where they have to be, and not because they happen to be.
    powers = QuantParams(np.array([0.5, 0.25], np.float32), np.zeros(2, np.int32), -127, 127, 0)
    bias = np.array([0.0, limit * 0.375])
    assert Weights(power2=True).fit_to_bias(powers, bias, 1.0).scale.tolist() == [0.5, 0.5]
    above = np.nextafter(np.float32(0.375), np.float32(1))
    assert Weights().fit_to_bias(powers, bias, 1.0).scale.tolist() == [0.5, above]


@given(st.floats(-1e9, 1e9), sane, sane)
def test_bias_is_exactly_rounded_or_saturated(b: float, s_x: float, s_w: float) -> None:
    got = int(affine.quantize_bias(np.array([b]), np.float32(s_x), np.float32(s_w))[0])
    exact = Fraction(b) / (Fraction(s_x) * Fraction(s_w))
    assert abs(got - clamp(half_even(exact), -(2**31), 2**31 - 1)) <= 1


def test_bias_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2"):
        affine.quantize_bias(np.array([1.0, np.nan]), 1, 1)


@pytest.mark.parametrize(
    ("s_in", "s_w", "s_out", "expected"),
    [(1, 1, 1, 1), (BIG, BIG, TINY, BIG), (TINY, TINY, BIG, 0), (TINY, 0.5, 1, 0), (TINY, 1, 1, TINY)],
)
def test_multiplier_saturates_and_never_is_subnormal(s_in: float, s_w: float, s_out: float, expected: float) -> None:
    assert float(affine.multiplier(s_in, s_w, s_out)) == expected


@given(i32, sane, st.integers(0, 255))
def test_requantize_follows_f32_step_by_step(acc: int, m: float, zero_point: int) -> None:
    product = np.float32(np.float32(np.int32(acc)) * np.float32(m))
    expected = clamp(round(float(product)) + zero_point, 0, 255)
    assert affine.requantize(np.array([acc], np.int32), np.float32(m), zero_point, 0, 255)[0] == expected


def test_requantize_rounds_the_accumulator_half_to_even() -> None:
    acc = np.array([2**24 + 1, 2**24 + 3], np.int32)  # f32 has no odd numbers here
    assert affine.requantize(acc, np.float32(2**-24 * 100), 0, 0, 255).tolist() == [100, 100]
    assert affine.requantize(np.array([1, 3, 5, -1, -3], np.int32), 0.5, 0, -128, 127).tolist() == [0, 2, 2, 0, -2]


@given(hnp.arrays(np.int32, 8, elements=i32), hnp.arrays(np.int32, 8, elements=st.integers(-9, 30)), st.booleans())
def test_shift_is_exact(acc: np.ndarray, shift: np.ndarray, signed: bool) -> None:
    qmin, qmax = (-128, 127) if signed else (0, 255)
    got = affine.requantize_shift(acc, shift, 0, qmin, qmax)
    assert got.dtype == (np.int8 if signed else np.uint8)
    for value, by, q in zip(acc.tolist(), shift.tolist(), got.tolist(), strict=True):
        assert q == clamp(half_even(Fraction(value) / Fraction(2) ** by), qmin, qmax)


@given(i32, st.integers(-9, 30), st.integers(-128, 127))
def test_shift_with_a_zero_point(acc: int, shift: int, zero_point: int) -> None:
    got = affine.requantize_shift(np.array([acc], np.int32), shift, zero_point, -128, 127)[0]
    assert got == clamp(half_even(Fraction(acc) / Fraction(2) ** shift) + zero_point, -128, 127)


@given(st.integers(-30, 30), st.integers(-30, 30), st.integers(-30, 30), i32)
def test_shift_and_multiplier_agree_for_powers_of_two(a: int, b: int, c: int, acc: int) -> None:
    shift = affine.shift_of(2.0**a, 2.0**b, 2.0**c)
    by_shift = int(affine.requantize_shift(np.array([acc], np.int32), shift, 0, -128, 127)[0])
    exact = clamp(half_even(Fraction(acc) * Fraction(2) ** (a + b - c)), -128, 127)
    assert abs(by_shift - exact) <= (2 if a + b - c < -30 and abs(acc) > 2**29 else 0)


def test_shift_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        affine.shift_of(0.3, 1, 1)
    for shift in (-10, 31):
        with pytest.raises(ValueError, match=f"shift {shift}"):
            affine.requantize_shift(np.zeros(1, np.int32), shift, 0, -128, 127)


@given(sane, sane, sane, *[st.integers(0, 255)] * 5)
def test_add_is_within_one_of_the_rounded_real_sum(
    s_a: float, s_b: float, s_out: float, qa: int, za: int, qb: int, zb: int, z: int
) -> None:
    p = affine.add_params(s_a, s_b, s_out)
    m_a, m_b, shift = p
    assert min(m_a, m_b) >= 0
    assert max(m_a, m_b) < 2**21
    assert 1 <= shift <= 30
    if shift < 30:  # the largest shift: one more, and a multiplier would not fit
        assert max(round(max(s_a, s_b) / s_out * 2 ** (shift + 1)), max(m_a, m_b)) >= 2**21 - 1
    total = (qa - za) * m_a + (qb - zb) * m_b
    assert abs(total) + (1 << (shift - 1)) < 2**31
    got = int(affine.add(np.array([qa], np.uint8), za, np.array([qb], np.uint8), zb, p, z, 0, 255)[0])
    assert got == clamp(((total + (1 << (shift - 1))) >> shift) + z, 0, 255)
    ratio = max(Fraction(s_a), Fraction(s_b)) / Fraction(s_out)
    exact = ((qa - za) * Fraction(s_a) + (qb - zb) * Fraction(s_b)) / Fraction(s_out)
    if ratio < 2**19:
        assert abs(Fraction(total, 1 << shift) - exact) <= max(255 * ratio / 2**20, Fraction(510, 2**31))
    if ratio <= 2048:
        assert abs(got - clamp(half_even(exact) + z, 0, 255)) <= 1


@given(st.floats(TINY, 2**100, width=32), *[st.integers(-128, 127)] * 4)
def test_add_of_equal_scales_is_exact(scale: float, qa: int, qb: int, za: int, zb: int) -> None:
    p = affine.add_params(scale, scale, scale)
    got = affine.add(np.array([qa], np.int8), za, np.array([qb], np.int8), zb, p, 0, -128, 127)[0]
    assert got == clamp(qa - za + qb - zb, -128, 127)


def test_add_of_extreme_ratios() -> None:
    assert affine.add_params(1e-12, 1.0, 1.0)[0] == 0
    m_a, m_b, shift = affine.add_params(1e30, 1e30, 1.0)
    assert (m_a, m_b, shift) == (2**21 - 1, 2**21 - 1, 1)
    assert affine.add_params(1.0, 2.0**19 + 2.0**18, 1.0) == (2, 3 * 2**19, 1)
    assert affine.add_params(1.0, 1.5 * 2.0**20, 1.0) == (2, 2**21 - 1, 1)
    assert affine.add_params(1.5 * 2.0**20, 3.0, 1.0) == (2**21 - 1, 6, 1)
    a, b = np.array([3, 3, 5], np.uint8), np.array([3, 4, 4], np.uint8)
    assert affine.add(a, 4, b, 3, (m_a, m_b, shift), 7, 0, 255).tolist() == [0, 7, 255]
    assert affine.add_params(2.0**-30, 2.0**-30, 1.0) == (1, 1, 30)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=49), st.integers(0, 255), sane, sane, st.integers(0, 255))
def test_average_is_the_mean(values: list[int], z_in: int, s_in: float, s_out: float, z_out: int) -> None:
    total = np.array([sum(values) - len(values) * z_in], np.int32)
    got = int(affine.requantize(total, affine.average_multiplier(len(values), s_in, s_out), z_out, 0, 255)[0])
    exact = Fraction(sum(values) - len(values) * z_in, len(values)) * Fraction(s_in) / Fraction(s_out)
    assert abs(got - clamp(half_even(exact) + z_out, 0, 255)) <= 1
    same = affine.requantize(total, affine.average_multiplier(len(values), 1.0, 1.0), z_in, 0, 255)[0]
    assert abs(int(same) - Fraction(sum(values), len(values))) <= Fraction(1, 2) + Fraction(1, 1000)


def test_average_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="average of 0"):
        affine.average_multiplier(0, 1, 1)
