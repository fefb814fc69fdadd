"""The rules that cut a weight's range, against a search that tries everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.schemes import Weights
from quantune.numerics.weight_ranges import fit_weight, importance, weight_error

ANY, POWER2 = Weights(), Weights(power2=True)
WORST = 1.2
"""Cost of one row over the least cost of all scales up to the widest."""
MEAN = 1.02
FEW_BITS = 1.001
"""The same on average, and of two and three bits, where the refinement ends at the optimum."""


def _dense(w: np.ndarray, costs: np.ndarray, bits: int, scales: int = 4000) -> float:
    """The least cost of one row among scales over four octaves."""
    largest = (1 << (bits - 1)) - 1
    tried = np.abs(w).max() / largest * 2.0 ** np.linspace(0, -4, scales)
    q = np.clip(np.rint(w / tried[:, None]), -largest, largest)
    return float(((w - tried[:, None] * q) ** 2 * costs).sum(axis=1).min())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("inputs", [9, 100])
def test_the_fast_search_finds_what_trying_everything_finds(inputs: int, bits: int) -> None:
    rng = np.random.default_rng(bits)
    found = []
    for draw in (rng.normal, rng.laplace, lambda size: rng.standard_t(2, size)):
        w, power = draw(size=(8, inputs)).astype(np.float32), rng.random((1, inputs)) ** 2
        power /= power.max()
        params = fit_weight(w, "channel", ANY, bits, "power", power)
        for i in range(len(w)):
            row = affine.QuantParams(params.scale[i], np.array(0, np.int32), params.qmin, params.qmax)
            found.append(weight_error(w[i : i + 1], row, power) / _dense(w[i].astype(np.float64), power[0], bits))
    assert max(found) <= WORST
    assert np.mean(found) <= (FEW_BITS if bits <= 3 else MEAN)


def test_one_scale_for_the_tensor_is_found_alike() -> None:
    rng = np.random.default_rng(5)
    w = (rng.laplace(size=(6, 20, 3, 3)) * rng.lognormal(size=(6, 1, 1, 1))).astype(np.float32)
    for bits, tolerance in ((2, MEAN), (4, MEAN), (8, WORST)):
        params = fit_weight(w, "tensor", ANY, bits, "mse", None)
        assert params.scale.ndim == 0
        least = _dense(w.reshape(-1).astype(np.float64), np.ones(w.size), bits, 2000)
        assert weight_error(w, params) <= tolerance * least


@pytest.mark.parametrize(("bits", "decibels"), [(2, 7.2), (3, 13.3), (4, 18.9)])
def test_a_normal_distribution_gets_its_known_optimum(bits: int, decibels: float) -> None:
    w = np.random.default_rng(0).normal(size=(1, 20_000)).astype(np.float32)
    error = weight_error(w, fit_weight(w, "channel", ANY, bits, "mse", None))
    assert 10 * np.log10(np.square(w, dtype=np.float64).sum() / error) == pytest.approx(decibels, abs=0.1)


sane = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=sane)


@settings(max_examples=40)
@given(weights, st.integers(2, 8), st.sampled_from([ANY, POWER2]), st.data())
def test_never_worse_than_max_by_its_own_measure(w: np.ndarray, bits: int, how: Weights, data: st.DataObject) -> None:
    granularity = data.draw(st.sampled_from(["tensor", "channel"]))
    power = data.draw(hnp.arrays(np.float64, (1, w.shape[1]), elements=st.sampled_from([0.0, 0.01, 1.0, 7.0])))
    widest = fit_weight(w, granularity, how, bits, "max", None)
    for rule, costs in (("mse", None), ("power", power)):
        params = fit_weight(w, granularity, how, bits, rule, power)
        assert weight_error(w, params, costs) <= weight_error(w, widest, costs) * (1 + 1e-12)
        assert (params.qmin, params.qmax, params.axis) == (widest.qmin, widest.qmax, widest.axis)
        if how is POWER2:
            assert np.all(np.frexp(params.scale)[0] == 0.5)


def test_scales_that_f32_cannot_hold_are_not_taken() -> None:
    w = np.full((1, 100), 5e-39, np.float32)
    w[0, 0] = 2e-38  # which the least scale would cut, and gain nothing for the others
    params = fit_weight(w, "channel", ANY, 2, "mse", None)
    assert params.scale == ANY.params(w, "channel", 2).scale


@settings(max_examples=40)
@given(weights, st.integers(2, 8), st.sampled_from([-20, -1, 3, 15]))
def test_scales_follow_the_weights_under_powers_of_two(w: np.ndarray, bits: int, octaves: int) -> None:
    w = np.where(np.abs(w) < 1e-6, np.float32(0), w)
    w[..., 0] = 1  # a row of zeros has the scale 1, whatever it is times
    one = fit_weight(w, "channel", ANY, bits, "mse", None)
    other = fit_weight(np.ldexp(w, octaves), "channel", ANY, bits, "mse", None)
    assert np.array_equal(other.scale, np.ldexp(one.scale, octaves))


@settings(max_examples=40)
@given(weights, st.integers(2, 8))
def test_channels_do_not_look_at_each_other(w: np.ndarray, bits: int) -> None:
    together = fit_weight(w, "channel", ANY, bits, "mse", None)
    for i in range(len(w)):
        assert fit_weight(w[i : i + 1], "tensor", ANY, bits, "mse", None).scale == together.scale[i]


def test_powers_of_two_are_tried_one_by_one() -> None:
    w = np.random.default_rng(3).laplace(size=(5, 64)).astype(np.float32)
    params = fit_weight(w, "channel", POWER2, 3, "mse", None)
    widest = POWER2.params(w, "channel", 3)
    for i in range(len(w)):
        costs = [
            weight_error(w[i : i + 1], affine.QuantParams(np.ldexp(widest.scale[i], -k), np.array(0, np.int32), -3, 3))
            for k in range(5)
        ]
        assert params.scale[i] == np.ldexp(widest.scale[i], -int(np.argmin(costs)))


def test_weights_that_meet_nothing_do_not_count() -> None:
    w = np.array([[100.0, 0.3, -0.7, 0.2]], np.float32)
    assert fit_weight(w, "channel", ANY, 4, "mse", None).scale > 10
    scale = fit_weight(w, "channel", ANY, 4, "power", np.array([[0.0, 1, 1, 1]])).scale
    assert scale[0] == pytest.approx(0.1, rel=0.01)  # it lies on the grid of steps of 0.1 exactly
    dead = fit_weight(w, "channel", ANY, 4, "power", np.zeros((1, 4)))
    assert dead.scale == ANY.params(w, "channel", 4).scale


def test_a_layer_s_inputs_are_those_of_its_groups() -> None:
    def node(**fields: object) -> Node:
        return Node("n", "n", "conv", ("x",), (1, 4, 1, 1), **fields)  # type: ignore[arg-type]

    power = np.array([1.0, 2, 3, 4])
    assert importance(node(weight=np.ones((4, 4, 1, 1))), power).tolist() == [[1, 2, 3, 4]]
    grouped = importance(node(weight=np.ones((4, 2, 1, 1)), groups=2), power)
    assert grouped.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert importance(node(weight=np.ones((4, 1, 3, 3)), groups=4), power).tolist() == [[1], [2], [3], [4]]
    assert importance(node(weight=np.ones((3, 8))), power).tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]]  # flattened images


def test_what_is_refused() -> None:
    w = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="unknown weight clipping 'mean', expected one of max, mse, power"):
        fit_weight(w, "channel", ANY, 8, "mean", None)
    with pytest.raises(ValueError, match="needs the mean squares"):
        fit_weight(w, "channel", ANY, 8, "power", None)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="not all finite"):
            fit_weight(w, "channel", ANY, 8, "power", np.array([[1.0, bad, 1.0]]))
