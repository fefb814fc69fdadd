"""Formats of weights: their tables, their rules as their sources compute them, and that the nearest integer is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantune.errors import UsageError
from quantune.numerics import affine, formats
from quantune.numerics.formats import FORMATS, Format, register
from quantune.numerics.formats.base import Fitted, Uniform
from quantune.numerics.formats.grids import half_step
from quantune.numerics.schemes import Weights
from quantune.numerics.weight_ranges import weight_error
from quantune.quantization.bits import BitWidths, LayerBits

ANY, POWER2 = Weights(), Weights(power2=True)
RULES = ("max", "mse", "power")
NORMAL = np.random.default_rng(0).normal(size=(6, 40, 3, 3)).astype(np.float32)
NORMAL *= np.array([1, 0.01, 3, 0.5, 20, 1], np.float32)[:, None, None, None]

names = st.sampled_from(sorted(FORMATS))
sane = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=sane)


def _params(name: str, w: np.ndarray, granularity: str = "channel", rule: str = "max", how: Weights = ANY) -> tuple:
    power = np.linspace(0.1, 2, w.shape[1])[None] if rule == "power" else None
    return FORMATS[name].params(w, granularity, how, rule, power), power


@settings(max_examples=150, deadline=None)
@given(names, weights, st.sampled_from(["tensor", "channel"]), st.sampled_from(RULES), st.sampled_from([ANY, POWER2]))
def test_every_weight_gets_the_nearest_of_at_most_so_many_integers(
    name: str, w: np.ndarray, granularity: str, rule: str, how: Weights
) -> None:
    params, _ = _params(name, w, granularity, rule, how)
    levels = np.arange(params.qmin, params.qmax + 1) if params.levels is None else params.levels.astype(int)
    assert len(levels) <= 2 ** FORMATS[name].bits
    assert levels[0] >= -127
    assert levels[-1] <= 127
    q = affine.quantize(w, params)
    assert q.dtype == np.int8
    assert set(q.reshape(-1).tolist()) <= set(levels.tolist())
    steps = (w / affine.along(params.scale, w.ndim, params.axis)).astype(np.float64)[..., None]
    distance = np.abs(steps - levels)
    assert np.array_equal(np.abs(steps[..., 0] - q), distance.min(axis=-1))
    assert np.array_equal(affine.quantize(affine.dequantize(q, params), params), q)
    if how is POWER2:
        assert np.all(np.frexp(params.scale)[0] == 0.5)


@settings(max_examples=60, deadline=None)
@given(names, weights)
def test_neighbours_are_the_integers_on_either_side(name: str, w: np.ndarray) -> None:
    params, _ = _params(name, w)
    levels = np.arange(params.qmin, params.qmax + 1) if params.levels is None else params.levels.astype(int)
    below, above = affine.neighbours(w, params)
    steps = w / affine.along(params.scale, w.ndim, params.axis)
    for step, low, high in zip(steps.reshape(-1), below.reshape(-1), above.reshape(-1), strict=True):
        assert low == max((each for each in levels if each <= step), default=levels[0])
        assert high == min((each for each in levels if each > step), default=levels[-1])
    near = affine.quantize(w, params)
    assert np.all((near == below) | (near == above))


@settings(max_examples=100, deadline=None)
@given(names, weights, st.sampled_from(["tensor", "channel"]), st.sampled_from([ANY, POWER2]))
def test_given_integers_with_fitted_scales_are_never_worse_than_the_rule_of_their_own(
    name: str, w: np.ndarray, granularity: str, how: Weights
) -> None:
    if FORMATS[name].table() is None:
        return
    own, _ = _params(name, w, granularity, "max", how)
    for rule in ("mse", "power"):
        fitted, power = _params(name, w, granularity, rule, how)
        assert weight_error(w, fitted, power) <= weight_error(w, own, power) * (1 + 1e-6)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("rule", ["mse", "power"])
def test_no_scale_near_the_fitted_one_is_better(name: str, rule: str) -> None:
    for granularity in ("tensor", "channel"):
        params, power = _params(name, NORMAL, granularity, rule)
        own, _ = _params(name, NORMAL, granularity, "max")
        found = weight_error(NORMAL, params, power)
        assert found <= 1.02 * weight_error(NORMAL, own, power)
        factors = (0.5, 2.0) if name[-1] == "f" else (0.5, 0.9, 0.97, 1.03, 1.1, 2.0)
        for factor in factors:
            other = affine.QuantParams(
                params.scale * np.float32(factor), params.zero_point, params.qmin, params.qmax, params.axis,
                params.levels,
            )  # fmt: skip
            assert found <= (1.2 if name[-1] == "k" else 1.02) * weight_error(NORMAL, other, power)


@pytest.mark.parametrize(
    ("name", "rule", "noise"),
    [  # of a normal distribution
        ("w2", "mse", 0.190), ("w2t", "mse", 0.190), ("w2h", "mse", 0.1188), ("w3h", "mse", 0.0374),
        ("w4h", "mse", 0.01154), ("w2c", "max", 0.1188), ("w3c", "max", 0.0374), ("w4c", "max", 0.01154),
        ("w2q", "max", 0.1188), ("w2p", "max", 0.1318), ("w2p", "mse", 0.1205),
        ("w4p", "max", 0.0379), ("w2r", "max", 0.1305), ("w4r", "max", 0.0315), ("w1", "max", 0.3634),
        ("e2m1", "mse", 0.01268), ("w2k", "max", 0.1175), ("w3k", "max", 0.03454), ("w4k", "max", 0.009497),
    ],
)  # fmt: skip
def test_a_normal_distribution_has_its_known_error(name: str, rule: str, noise: float) -> None:
    normal, count = NormalDist(), 50_000
    w = np.array([[normal.inv_cdf((i + 0.5) / count) for i in range(count)]], np.float32)
    error = weight_error(w, _params(name, w, "tensor", rule)[0]) / np.square(w, dtype=np.float64).sum()
    assert error == pytest.approx(noise, rel=0.02)


def _port(name: str, x: np.ndarray) -> np.ndarray:
    """What AutoQNN's PyTorch port computes, with the nearest level where it takes another one."""
    bits, x = FORMATS[name].bits, x.astype(np.float64)
    if name[-1] == "r":
        y = np.zeros_like(x)
        for _ in range(bits):
            y += np.abs(x - y).mean() * np.sign(x - y)
        return y
    if name == "w1":
        return np.abs(x).mean() * np.sign(x)
    if name == "w2t":
        t = np.clip(np.rint(x / (1.4 * np.abs(x).mean())), -1, 1)
        levels = np.array([-1, 0, 1]) * (t * x).sum() / np.abs(t).sum()
    elif name[-1] == "f":
        step = 2.0 ** (np.floor(np.log2(np.abs(x).max())) - (bits - 2))
        levels = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) * step
    elif name[-1] == "z":
        step = (x.max() - x.min()) / 2**bits
        levels = x.min() + step / 2 + np.arange(2**bits) * step
    elif name[-1] == "c":
        step = [1, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569][bits - 1] * x.std(ddof=1)
        levels = (np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) + 0.5) * step
    else:
        one = (
            np.array([0.5, *(2.0**e for e in range(1, 2 ** (bits - 1)))])
            * [1, 0.9, 0.4, 0.03][bits - 1]
            * x.std(ddof=1)
        )
        levels = np.concatenate([-one, one])
    return levels[np.abs(x[..., None] - levels).argmin(axis=-1)]


@pytest.mark.parametrize(
    "name", ["w1", "w2t", *(f"w{b}{letter}" for letter in "fzcpr" for b in range(1, 8) if f"w{b}{letter}" in FORMATS)]
)
def test_autoqnn_s_formats_are_those_of_its_port(name: str) -> None:
    x = np.random.default_rng(2).normal(0.02, 0.3, (4, 100)).astype(np.float32)
    params, _ = _params(name, x, "tensor")
    found = affine.dequantize(affine.quantize(x, params), params)
    inexact = name == "w4p" or name[-1] in "zr"
    # Where s8 cannot hold the levels they are 127ths of the largest; a weight between two may then get the other one.
    slack = 0.0041 * np.abs(_port(name, x)).max() if inexact else 1e-6
    if name[-1] != "r":
        assert np.mean(np.abs(found - _port(name, x)) <= slack) >= (0.85 if inexact else 1)
    ours, theirs = (np.square(x - y, dtype=np.float64).sum() for y in (found, _port(name, x)))
    assert ours <= theirs * (1.2 if inexact else 1 + 1e-6)


def test_the_tables_are_exact_where_s8_holds_them() -> None:
    tables = {name: table for name, form in FORMATS.items() if (table := form.table()) is not None}
    assert tables["w2t"].tolist() == [-1, 0, 1]
    assert tables["w2q"].tolist() == tables["w2h"].tolist() == tables["w2c"].tolist() == [-3, -1, 1, 3]
    assert tables["w7h"].tolist() == list(range(-127, 128, 2)) == list(half_step(7))
    assert tables["w3f"].tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]
    assert tables["w3p"].tolist() == [-16, -8, -4, -1, 1, 4, 8, 16]
    assert tables["e2m1"].tolist() == [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]
    eighths = [*range(16), *range(16, 32, 2), *range(32, 64, 4)]
    assert tables["e2m3"].tolist() == sorted({*eighths, *(-e for e in eighths)})
    sixteenths = [s << e for e, s in itertools.product(range(7), (4, 5, 6, 7))] + [1, 2, 3]
    assert len(set(sixteenths)) == 31
    assert np.abs(tables["e3m2"]).max() == 127
    for real in sixteenths:
        assert np.abs(real * 127 / 448 - tables["e3m2"]).min() <= 0.5
    assert all(len(table) == 2 ** FORMATS[name].bits for name, table in tables.items() if name[-1] in "hcqfp")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_weights_of_nothing_but_zeros_stay_next_to_nothing(name: str) -> None:
    w = np.zeros((3, 8), np.float32)
    w[1] = np.linspace(-1, 1, 8)
    for granularity, rule in itertools.product(("tensor", "channel"), RULES):
        params, _ = _params(name, w, granularity, rule)
        found = affine.dequantize(affine.quantize(w, params), params)
        if granularity == "channel":
            assert np.abs(found[[0, 2]]).max() < 1e-30
        nothing, _ = _params(name, w * 0, granularity, rule)
        assert np.abs(affine.dequantize(affine.quantize(w * 0, nothing), nothing)).max() < 1e-30


def test_what_no_format_takes_is_refused() -> None:
    for name in ("w2h", "w3k", "w4", "e2m1"):
        for wrong in (np.array([[1, np.nan]], np.float32), np.zeros((0, 3), np.float32)):
            with pytest.raises(ValueError, match="weight of shape"):
                _params(name, wrong)
        with pytest.raises(ValueError, match="unknown weight clipping 'least'"):
            _params(name, NORMAL, rule="least")
        with pytest.raises(ValueError, match="mean squares"):
            FORMATS[name].params(NORMAL, "channel", ANY, "power", -np.ones((1, 40)))


@dataclass(frozen=True)
class Thirds(Fitted):
    """Two integers, and the scale of a third of the largest weight."""

    def own(self, w: np.ndarray, costs: np.ndarray, *, best: bool) -> tuple[np.ndarray, np.ndarray]:
        return np.array([-1, 2]), np.abs(w).max(axis=1) / 3


@pytest.fixture
def thirds() -> Iterator[Format]:
    yield register(Thirds("thirds", 1))
    del FORMATS["thirds"]


def test_a_format_can_be_entered_from_outside(thirds: Format) -> None:
    bits = BitWidths.parse("w8/thirds:a")
    assert bits.of("a") == LayerBits(1, 8, "thirds")
    assert str(bits) == "w8a8/thirdsa8:a"
    w = np.array([[3, -3, 0.6, 0.2]], np.float32)
    params = bits.of("a").form.params(w, "tensor", ANY)
    assert affine.quantize(w, params).tolist() == [[2, -1, 2, -1]]
    with pytest.raises(ValueError, match="there already"):
        register(thirds)
    for wrong in (
        Uniform("w2a8", 2),
        Uniform("w-2", 2),
        Uniform("", 2),
        Uniform("f32", 2),
        Uniform("w9", 9),
        Uniform("w0", 0),
    ):
        with pytest.raises(ValueError, match="format"):
            register(wrong)
    assert formats.FORMATS is FORMATS
    with pytest.raises(UsageError):
        LayerBits.parse("sixths")
