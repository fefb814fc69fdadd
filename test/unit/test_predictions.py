"""Predicted noise, by its formula and by hand; which configurations and programs a search is going to need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlir_passes.network import Network, Node
from quantune.numerics.affine import QuantParams
from quantune.numerics.histogram import Histogram
from quantune.quantization.bits import BitWidths
from quantune.quantization.calibration import Statistics
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan, make_plan
from quantune.quantization.predictions import ARCHITECTURE, FEATURES, Proxies, architecture, clipped_share
from quantune.quantization.space import LEVEL1, PARAMETERS, configs, to_params

SIZES, PRECISIONS = (1, 1000, 10000), ("int8", "mixed")


@pytest.fixture
def proxies() -> Proxies:
    rng = np.random.default_rng(0)
    nodes, source = [Node("x", "", "input", (), (1, 4, 8, 8))], "x"
    for name in ("a", "b", "c"):
        weight = rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
        nodes.append(Node(name, name, "conv", (source,), (1, 4, 8, 8), weight=weight, bias=np.zeros(4, np.float32)))
        source = name
    network = Network(tuple(nodes), (source,))
    histograms, power, mean = {}, {}, {}
    for node in nodes:
        histograms[node.name] = Histogram()
        histograms[node.name].add(rng.standard_t(3, 4000))
        power[node.name], mean[node.name] = np.ones(4), np.array([0.9, 0.5, 0.0, -0.8])
    statistics = Statistics(1, dict.fromkeys(SIZES, histograms), power, mean)

    def plan(config: QuantConfig) -> QuantizationPlan:
        return make_plan(network, statistics.at(config.calib), config, power=power)

    return Proxies(network, plan, statistics)


def _programs(configs: list[QuantConfig]) -> list[tuple[bool, str]]:
    return [(config.scheme == "symmetric_power2", config.precision) for config in configs]


def _by_prior(proxies: Proxies) -> list[QuantConfig]:
    return sorted(LEVEL1, key=lambda c: -proxies.prior({name: getattr(c, name) for name in PARAMETERS}))


def test_what_comes_first_and_then_a_configuration_of_each_program(proxies: Proxies) -> None:
    first = QuantConfig(scheme="symmetric_power2")
    found = proxies.upcoming([first], PRECISIONS, None, 5, str)
    assert found[0] == first
    assert found[1:5] == [config for config in _by_prior(proxies) if config != first][:4]
    assert len(set(_programs(found))) == 4
    later = _programs(found[5:])
    assert len(set(later)) == len(later)
    assert not set(later) & set(_programs(found[:5]))


def test_a_short_search_needs_what_it_measures(proxies: Proxies) -> None:
    assert proxies.upcoming([QuantConfig()], PRECISIONS, 1, 8, str) == [QuantConfig()]
    eight = proxies.upcoming([QuantConfig()], PRECISIONS, 8, 8, str)
    assert len(eight) == len(set(eight)) == 8
    assert proxies.upcoming([QuantConfig()], PRECISIONS, 3, 8, str) == eight[:3]
    assert proxies.upcoming([QuantConfig()], PRECISIONS, 9, 8, str)[:8] == eight


def test_one_of_the_configurations_that_compute_the_same(proxies: Proxies) -> None:
    found = proxies.upcoming([QuantConfig()], PRECISIONS, 8, 8, lambda c: f"{c.scheme} {c.clip}")
    assert len(found) == len({(config.scheme, config.clip) for config in found}) == 8


def test_bit_widths_and_precisions_are_kept(proxies: Proxies) -> None:
    narrow = replace(QuantConfig(), bits=BitWidths.parse("w4"))
    found = proxies.upcoming([narrow], ("int8",), None, 8, str)
    assert {config.bits for config in found} == {narrow.bits}
    assert {config.precision for config in found} == {"int8"}
    assert set(_programs(found)) == {(True, "int8"), (False, "int8")}


# The formula, on layers whose numbers are small enough to follow by hand


def _histogram(values: Sequence[float]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    return histogram


def _params(scale: float | list[float], low: int = -128, high: int = 127, zero_point: int = 0) -> QuantParams:
    scales = np.array(scale, np.float32)
    points = np.full(scales.shape, zero_point, np.int32)
    return QuantParams(scales, points, low, high, 0 if scales.ndim else None)


def _layer(name: str, source: str, weight: np.ndarray, shape: tuple[int, ...], **options: object) -> Node:
    kind, bias = "matmul" if weight.ndim == 2 else "conv", np.zeros(len(weight), np.float32)
    return Node(name, name, kind, (source,), shape, weight=weight.astype(np.float32), bias=bias, **options)  # type: ignore[arg-type]


def _features(
    nodes: Sequence[Node],
    power: Mapping[str, list[float]],
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    histogram: Histogram,
    *,
    mean: Mapping[str, list[float]] | None = None,
    config: QuantConfig | None = None,
    constants: Mapping[str, Constant] | None = None,
) -> dict[str, float]:
    """The predicted noises as ratios. The histogram of fewer images is another one, and must not be looked at."""
    network = Network(tuple(nodes), (nodes[-1].name,))
    by_size = {
        size: dict.fromkeys((node.name for node in nodes), seen)
        for size, seen in ((1, _histogram([1000.0])), (64, histogram), (8, _histogram([2000.0])))
    }
    channels = ({name: np.array(values) for name, values in each.items()} for each in (power, mean or {}))
    plan = QuantizationPlan(activations, weights, constants=constants or {})
    proxies = Proxies(network, lambda config: plan, Statistics(64, by_size, *channels))
    found = proxies.features(to_params(config or QuantConfig()))
    assert found[len(FEATURES) :] == tuple(architecture(network).values())
    return {name: 10 ** (-value / 10) for name, value in zip(FEATURES, found[: len(FEATURES)], strict=True)}


X = Node("x", "", "input", (), (1, 2, 4, 4))
INSIDE = _histogram([-1.0, 1.0, 1.0, 1.0])
PAIR = np.array([[1.0, 2.0], [0.25, -0.5]]).reshape(2, 2, 1, 1)
"""Quantized by 0.5 it loses 0.25 alone, which falls between 0 and 0.5."""


def test_rounding_and_weights_of_a_layer_over_the_power_of_its_channels() -> None:
    found = _features(
        [X, _layer("a", "x", PAIR, (1, 2, 4, 4))],
        {"x": [4.0, 16.0], "a": [50.0, 2.0]},
        {"x": _params(0.6)},
        {"a": _params(0.5)},
        INSIDE,
    )
    rounding = 0.36 / 12 * np.array([1 + 4, 0.0625 + 0.25]) / [50, 2]
    weights = np.array([0, 4 * 0.0625]) / [50, 2]
    assert found["rounding_db"] == pytest.approx(rounding.mean(), rel=1e-5)
    assert found["weight_db"] == pytest.approx(weights.mean(), rel=1e-5)
    assert found["clipping_db"] == pytest.approx(1e-12)
    assert found["predicted_db"] == pytest.approx((rounding + weights).mean(), rel=1e-5)
    assert found["worst_layer_db"] == found["predicted_db"]


ODD = np.array([[1.25, 2.0], [0.25, -0.75]]).reshape(2, 2, 1, 1)
"""Quantized by 0.5 its error is 0.25 and 0 in the first row, 0.25 and 0.25 in the second (ties go to even steps)."""


@pytest.mark.parametrize(
    ("clip", "bias", "left"),
    [
        ("max", "none", [0.25**2 * 4, 0.25**2 * (4 + 16)]),
        ("max", "fast", [0.25**2 * (4 - 1 / 2), 0.25**2 * (4 - 1 / 2 + 16 - 9 / 2)]),
        ("max", "sequential", [0.25**2 * (4 - 1), 0.25**2 * (4 - 1 + 16 - 9)]),
        # The means are 1 and 3: in the second row their errors add up, and the square is of the sum.
        ("mse", "none", [0.25**2 * 4, 0.25**2 * (4 - 1 + 16 - 9 + (1 + 3) ** 2)]),
        ("power", "fast", [0.25**2 * (4 - 1 / 2), 0.25**2 * (4 - 1 + 16 - 9 + (1 + 3) ** 2 / 2)]),
        ("mse", "sequential", [0.25**2 * (4 - 1), 0.25**2 * (4 - 1 + 16 - 9)]),
    ],
)
def test_what_the_inputs_means_add_and_bias_correction_takes_out(clip: str, bias: str, left: list[float]) -> None:
    found = _features(
        [X, _layer("a", "x", ODD, (1, 2, 4, 4))],
        {"x": [4.0, 16.0], "a": [50.0, 20.0]},
        {"x": _params(2.0**-9)},
        {"a": _params(0.5)},
        INSIDE,
        mean={"x": [1.0, 3.0]},
        config=QuantConfig(weight_clip=clip, bias=bias),
    )
    assert found["weight_db"] == pytest.approx((np.array(left) / [50, 20]).mean(), rel=1e-4)


def test_no_channel_varies_by_less_than_nothing() -> None:
    """A constant channel's mean square may be a little below its squared mean, as they are rounded."""
    found = _features(
        [X, _layer("a", "x", ODD, (1, 2, 4, 4))],
        {"x": [0.5, 16.0], "a": [50.0, 20.0]},
        {"x": _params(2.0**-12)},
        {"a": _params([0.25, 0.5])},
        INSIDE,
        mean={"x": [1.0, 3.0]},
        config=QuantConfig(bias="sequential"),
    )
    assert found["weight_db"] == pytest.approx(0.25**2 * (16 - 9) / 20 / 2, rel=1e-4)


def test_refined_weights_are_what_a_layer_computes_with() -> None:
    given = {"x": [4.0, 16.0], "a": [50.0, 20.0]}, {"x": _params(2.0**-9)}, {"a": _params(0.5)}, INSIDE
    nodes, mean = [X, _layer("a", "x", ODD, (1, 2, 4, 4))], {"x": [1.0, 3.0]}
    refined = np.array([[1.5, 2.0], [0.5, -1.0]], np.float32).reshape(2, 2, 1, 1)
    found = _features(nodes, *given, mean=mean, constants={"a": Constant(weight=refined)})
    # Their errors are of opposite signs, so what the means make of them is less than of each.
    expected = 0.25**2 * np.array([4, 4 - 1 + 16 - 9 + (3 - 1) ** 2]) / [50, 20]
    assert found["weight_db"] == pytest.approx(expected.mean(), rel=1e-4)
    corrected = _features(nodes, *given, mean=mean, constants={"a": Constant(bias=np.ones(2, np.float32))})
    assert corrected["weight_db"] == _features(nodes, *given)["weight_db"]


def test_new_keys_are_ranked(proxies: Proxies) -> None:
    def merit(**options: Any) -> float:
        return proxies.prior(to_params(QuantConfig(**options)))

    assert merit() < merit(bias="fast") < merit(bias="sequential")
    narrow = {"bits": BitWidths.parse("w2")}
    by_rule = [merit(weight_clip=rule, bias="sequential", **narrow) for rule in ("max", "mse", "power")]
    assert by_rule[0] < by_rule[1]
    assert by_rule[0] < by_rule[2]


def test_in_the_wide_space_its_configurations_are_prepared(proxies: Proxies) -> None:
    wide = configs("wide")
    best = proxies.best(wide)
    assert best.bias == "sequential"
    assert best.precision == "int8"
    found = proxies.upcoming([QuantConfig()], PRECISIONS, None, 5, str, wide)
    expected = sorted(wide, key=lambda c: -proxies.prior(to_params(c)))
    assert found[:5] == [QuantConfig(), *(c for c in expected if c != QuantConfig())][:5]
    assert set(_programs(list(found))) == set(_programs(list(wide)))
    assert len(found) <= 5 + 4  # weight ranges and biases are numbers, not programs


def test_the_share_that_is_clipped() -> None:
    seen = _histogram([1.0, 1.0, -1.0, 3.0, -4.0])
    power = 3 * 1 + 9 + 16
    assert clipped_share(seen, _params(0.5, -10, 10)) == pytest.approx(0, abs=1e-9)
    assert clipped_share(seen, _params(0.5, -4, 4)) == pytest.approx((1 + 4) / power, rel=2e-3)
    # Zero point 3: from (-4 - 3) / 2 to (4 - 3) / 2.
    shifted = 3 * 0.5**2 - 1 * 0.5**2 + 2.5**2 + 0.5**2
    assert clipped_share(seen, _params(0.5, -4, 4, 3)) == pytest.approx(shifted / power, rel=2e-3)
    assert clipped_share(_histogram([0.0, 0.0]), _params(1.0)) == 0


def test_clipping_takes_a_share_of_the_power_that_a_channel_reads() -> None:
    seen = _histogram([1.0, 1.0, 1.0, 3.0])  # a range that ends at 2 cuts 1 of 12
    found = _features(
        [X, _layer("a", "x", PAIR, (1, 2, 4, 4))],
        {"x": [4.0, 16.0], "a": [50.0, 2.0]},
        {"x": _params(2.0**-5, -64, 64)},
        {"a": _params(2.0**-4)},
        seen,
    )
    clipping = np.array([1 * 4 + 4 * 16, 0.0625 * 4 + 0.25 * 16]) / 12 / [50, 2]
    rounding = 2.0**-10 / 12 * np.array([5, 0.3125]) / [50, 2]
    assert found["clipping_db"] == pytest.approx(clipping.mean(), rel=2e-3)
    assert found["weight_db"] == pytest.approx(1e-12)
    assert found["predicted_db"] == pytest.approx((clipping + rounding).mean(), rel=2e-3)


def test_a_channel_is_lost_once_and_layers_add_up() -> None:
    power = {"x": [4.0, 16.0], "a": [50.0, 0.0], "b": [30.0, 40.0]}
    layers = [X, _layer("a", "x", PAIR, (1, 2, 4, 4)), _layer("b", "a", 2 * PAIR, (1, 2, 4, 4))]
    activations, weights = {"x": _params(0.6), "a": _params(1.2)}, {"a": _params(0.25), "b": _params(0.5)}
    found = _features(layers, power, activations, weights, INSIDE)
    first = (0.36 / 12 * 5 / 50 + 1) / 2  # the second channel has no power: all of it is noise, and no more than that
    second = 1.44 / 12 * np.array([20 / 30, 1.25 / 40])
    assert found["predicted_db"] == pytest.approx(first + second.mean(), rel=1e-5)
    assert found["worst_layer_db"] == pytest.approx(first, rel=1e-5)
    # A layer that stays in f32 adds nothing.
    alone = _features(layers, power, activations, {"b": weights["b"]}, INSIDE)
    assert alone["predicted_db"] == pytest.approx(second.mean(), rel=1e-5)


def test_the_power_behind_a_clamp_counts_and_unobserved_power_is_that_of_the_weights() -> None:
    conv = _layer("a", "x", PAIR, (1, 2, 4, 4))
    clamp = Node("r", "r", "clamp", ("a",), (1, 2, 4, 4), lo=0.0)
    rounding = 0.36 / 12 * np.array([5, 0.3125])
    given, weights = {"x": _params(0.6)}, {"a": _params(0.25)}
    both = _features([X, conv, clamp], {"x": [4.0, 16.0], "a": [9.0, 9.0], "r": [5.0, 1.0]}, given, weights, INSIDE)
    assert both["predicted_db"] == pytest.approx((rounding / [5, 1]).mean(), rel=1e-5)
    unseen = _features([X, conv], {"x": [4.0, 16.0]}, given, weights, INSIDE)
    assert unseen["predicted_db"] == pytest.approx((rounding / [4 + 64, 0.25 + 4]).mean(), rel=1e-5)


def test_groups_read_their_own_channels_and_a_flattened_image_the_power_of_its_pixels() -> None:
    image = replace(X, shape=(1, 4, 2, 2))
    # Two groups of two outputs that read two channels each, with 1x2 kernels; every weight loses 0.25.
    weight = 0.25 * np.ones((4, 2, 1, 2))
    grouped = _layer("g", "x", weight, (1, 4, 2, 1), kernel=(1, 2), groups=2)
    power = {"x": [1.0, 2.0, 4.0, 8.0], "g": [1.0, 10.0, 100.0, 1000.0]}
    found = _features([image, grouped], power, {"x": _params(2.0**-9)}, {"g": _params([1.0] * 4)}, INSIDE)
    lost = 2 * 0.0625 * np.array([1 + 2, 1 + 2, 4 + 8, 4 + 8])
    assert found["weight_db"] == pytest.approx((lost / [1, 10, 100, 1000]).mean(), rel=1e-4)
    # A matrix that reads two pixels of each of two channels.
    flat = replace(X, shape=(1, 4))
    matrix = _layer("m", "x", 0.25 * np.array([[1, 0, 0, 0], [0, 0, 1, 1]]), (1, 2))
    power = {"x": [1.0, 2.0], "m": [10.0, 100.0]}
    found = _features([flat, matrix], power, {"x": _params(2.0**-9)}, {"m": _params(1.0)}, INSIDE)
    lost = 0.0625 * np.array([1, 2 + 2])
    assert found["weight_db"] == pytest.approx((lost / [10, 100]).mean(), rel=1e-4)


def test_architecture_in_numbers() -> None:
    nodes = [
        replace(X, shape=(1, 4, 4, 4)),
        _layer("a", "x", np.ones((4, 4, 1, 1)), (1, 4, 4, 4)),
        _layer("d", "a", np.ones((4, 1, 3, 3)), (1, 4, 4, 4), kernel=(3, 3), pads=(1, 1, 1, 1), groups=4),
        _layer("c", "a", np.ones((4, 4, 3, 3)), (1, 4, 4, 4), kernel=(3, 3), pads=(1, 1, 1, 1)),
        Node("s", "s", "add", ("d", "c"), (1, 4, 4, 4)),
        Node("k", "k", "concat", ("s", "a"), (1, 8, 4, 4), axis=1),
    ]
    macs, parameters = 16 * 16 + 16 * 36 + 16 * 144, 16 + 36 + 144
    found = architecture(Network(tuple(nodes), ("k",)))
    assert tuple(found) == ARCHITECTURE
    assert found["log_macs"] == pytest.approx(math.log10(macs))
    assert found["log_parameters"] == pytest.approx(math.log10(parameters))
    assert [found[name] for name in ARCHITECTURE[2:]] == [3, 1, 1, 1, 1]


def test_the_best_is_the_best_predicted_that_computes_in_integers(proxies: Proxies) -> None:
    expected = next(config for config in _by_prior(proxies) if config.precision == "int8")
    assert proxies.best() == expected
