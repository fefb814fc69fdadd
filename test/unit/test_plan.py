"""Where a network runs in integers, which tensors must agree, and with which numbers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from mlir_passes.network import Network, Node
from quantune.errors import UsageError
from quantune.numerics.affine import BIAS_LIMIT, QuantParams
from quantune.numerics.clipping import CLIPS
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import SCHEMES
from quantune.numerics.weight_ranges import fit_weight
from quantune.quantization.bits import BitWidths
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import Layout, QuantizationPlan, bits_of, integer_layers, lay_out, make_plan, observed

IMAGE = (1, 4, 4, 4)


def _node(name: str, kind: str, *inputs: str, shape: tuple[int, ...] = IMAGE, **fields: object) -> Node:
    return Node(name, name, kind, inputs, shape, **fields)  # type: ignore[arg-type]


def _conv(name: str, source: str, bias: float = 0.0) -> Node:
    weight = np.full((4, 4, 1, 1), 0.5, np.float32)
    return _node(name, "conv", source, weight=weight, bias=np.full(4, bias, np.float32))


def _relu(name: str, source: str) -> Node:
    return _node(name, "clamp", source, lo=0.0)


def _matmul(name: str, source: str) -> Node:
    return _node(name, "matmul", source, shape=(1, 3), weight=np.ones((3, 4), np.float32), bias=np.zeros(3, np.float32))


def _mean(name: str, source: str) -> Node:
    return _node(name, "avgpool", source, shape=(1, 4), kernel=(4, 4), divisor=16.0)


def _network(*nodes: Node, outputs: tuple[str, ...] = ()) -> Network:
    return Network((_node("x", "input"), *nodes), outputs or (nodes[-1].name,))


RESNET = _network(
    _conv("stem", "x"), _relu("r0", "stem"), _node("pool", "maxpool", "r0"),
    _conv("c1", "pool"), _relu("r1", "c1"), _conv("c2", "r1"), _node("sum", "add", "c2", "pool"), _relu("r2", "sum"),
    _mean("mean", "r2"), _matmul("fc", "mean"),
)  # fmt: skip


def _lay_out(network: Network, precision: str = "int8") -> Layout:
    return lay_out(network, integer_layers(network, precision))


def test_all_of_a_residual_network_runs_in_integers_but_its_result() -> None:
    layout = _lay_out(RESNET)
    assert layout.integer == {node.name for node in RESNET.nodes} - {"x"}
    # c1, sum and stem are computed with their clamps; the last layer's result stays f32.
    assert set(layout.groups) == {"x", "r0", "pool", "r1", "c2", "r2", "mean"}
    assert layout.groups["r0"] == layout.groups["pool"]
    assert layout.sources[layout.groups["pool"]] == ("r0",)
    assert len(set(layout.groups.values())) == 6


def test_mixed_leaves_the_ends_in_f32() -> None:
    assert integer_layers(RESNET, "mixed") == {"c1", "c2"}
    assert integer_layers(RESNET, "f32") == frozenset()
    layout = _lay_out(RESNET, "mixed")
    # r0 is a clamp of an f32 layer that hands its integers to the pool: it is quantized, the layer before it is not.
    assert layout.integer == {"r0", "pool", "c1", "r1", "c2"}
    assert set(layout.groups) == {"r0", "pool", "r1"}


def test_any_layer_may_stay_in_f32() -> None:
    bits = BitWidths.parse("w4/f32:c1+fc")
    assert integer_layers(RESNET, "int8", bits) == {"stem", "c2"}
    assert integer_layers(RESNET, "mixed", bits) == {"c2"}
    assert integer_layers(RESNET, "int8", BitWidths.parse("f32/w4:c1")) == {"c1"}
    layout = lay_out(RESNET, integer_layers(RESNET, "int8", BitWidths.parse("w8/f32:c1")))
    # c1 reads what the addition has as integers; what it gives is quantized behind its clamp.
    assert layout.integer == {node.name for node in RESNET.nodes} - {"x", "c1"}
    assert "c1" not in layout.groups
    assert "r1" in layout.groups


@pytest.mark.parametrize("chosen", [*itertools.product((True, False), repeat=len(RESNET.layers))])
def test_whatever_stays_in_f32_the_statistics_are_there(chosen: tuple[bool, ...]) -> None:
    layers = frozenset(node.name for node, taken in zip(RESNET.layers, chosen, strict=True) if taken)
    layout = lay_out(RESNET, layers)
    assert {name for names in layout.sources.values() for name in names} <= set(observed(RESNET))
    assert {node.inputs[0] for node in RESNET.layers if node.name in layers} <= set(layout.groups)


def test_a_network_of_which_all_layers_stay_in_f32_is_refused() -> None:
    network = _network(_conv("a", "x"), _conv("b", "a"))
    with pytest.raises(UsageError, match="no layer of the model is quantized; that is precision=f32"):
        make_plan(network, {}, QuantConfig(bits=BitWidths.parse("w8/f32:a+b")))
    with pytest.raises(UsageError, match="the model has no layer 'c'"):
        make_plan(network, {}, QuantConfig(bits=BitWidths.parse("w8/f32:c")))


def test_networks_of_one_or_two_layers_have_nothing_mixed() -> None:
    assert integer_layers(_network(_conv("a", "x")), "mixed") == frozenset()
    assert integer_layers(_network(_conv("a", "x"), _conv("b", "a")), "mixed") == frozenset()


def test_float_precisions_quantize_nothing() -> None:
    assert _lay_out(RESNET, "f32").groups == {}
    assert make_plan(RESNET, {}, QuantConfig(precision="f16")).activations == {}


def test_observed_are_the_tensors_that_set_a_range_and_what_layers_read() -> None:
    assert set(observed(RESNET)) == {"x", "r0", "r1", "c2", "r2", "mean", "pool"}


def test_concatenated_tensors_share_one_range() -> None:
    network = _network(
        _conv("a", "x"), _conv("b", "x"), _node("cat", "concat", "a", "b", shape=(1, 8, 4, 4)),
        _node("half", "slice", "cat"), _conv("c", "half"), _node("pool", "maxpool", "b"), _conv("d", "pool"),
    )  # fmt: skip
    layout = _lay_out(network)
    group = layout.groups["cat"]
    assert {name for name, root in layout.groups.items() if root == group} == {"a", "b", "cat", "half", "pool"}
    assert set(layout.sources[group]) == {"a", "b"}
    assert layout.sources[layout.groups["x"]] == ("x",)


def test_chains_of_concatenations_are_one_group() -> None:
    network = _network(
        _conv("a", "x"), _conv("d", "x"), _node("cat", "concat", "a", "d"), _conv("b", "x"),
        _node("cat2", "concat", "cat", "b"), _conv("c", "cat2"),
    )  # fmt: skip
    layout = _lay_out(network)
    assert len({layout.groups[name] for name in ("a", "d", "cat", "b", "cat2")}) == 1
    assert set(layout.sources[layout.groups["cat2"]]) == {"a", "d", "b"}


def test_what_others_compute_with_keeps_its_range_in_a_concatenation() -> None:
    network = _network(
        _conv("a", "x"), _node("cat", "concat", "a", "x"), _conv("b", "cat"), _node("cat2", "concat", "cat", "b"),
        _conv("c", "cat2"),
    )  # fmt: skip
    layout = _lay_out(network)
    assert layout.groups["a"] == layout.groups["cat"]
    assert layout.groups["b"] == layout.groups["cat2"]
    assert len({layout.groups[name] for name in ("x", "cat", "cat2")}) == 3
    assert set(layout.sources[layout.groups["cat"]]) == {"a", "cat"}
    assert layout.sources[layout.groups["x"]] == ("x",)


def test_a_clamp_of_a_tensor_with_other_readers_works_on_its_integers() -> None:
    network = _network(_conv("a", "x"), _relu("r", "a"), _conv("b", "r"), _conv("c", "a"))
    layout = _lay_out(network)
    assert layout.groups["a"] == layout.groups["r"]
    assert layout.sources[layout.groups["r"]] == ("a",)


def test_float_operations_stay_f32_and_what_they_give_is_quantized_for_its_readers() -> None:
    network = _network(_conv("a", "x"), _node("sigmoid", "float", "a", detail="math.exp"), _conv("b", "sigmoid"))
    layout = _lay_out(network)
    assert layout.integer == {"a", "b"}
    assert set(layout.groups) == {"x", "sigmoid"}


def test_a_clamp_that_alone_reads_a_float_operation_belongs_to_it() -> None:
    chain = (_conv("a", "x"), _node("f", "float", "a", detail="math.exp"), _relu("r", "f"), _conv("b", "r"))
    layout = _lay_out(_network(*chain))
    assert layout.integer == {"a", "b"}
    assert set(layout.groups) == {"x", "r"}
    # With another reader of the float operation that runs in integers, its result is quantized anyway.
    layout = _lay_out(_network(*chain, _conv("c", "f")))
    assert "r" in layout.integer
    assert layout.groups["f"] == layout.groups["r"]


def test_an_addition_with_a_float_operand_is_quantized_with_it() -> None:
    network = _network(
        _conv("a", "x"), _node("f", "float", "a", detail="math.exp"), _conv("b", "a"), _node("s", "add", "f", "b"),
        _conv("c", "s"),
    )  # fmt: skip
    layout = _lay_out(network)
    assert layout.integer == {"a", "b", "s", "c"}
    assert set(layout.groups) == {"x", "a", "f", "b", "s"}


def test_a_final_average_sums_integers_and_ends_in_f32() -> None:
    network = _network(_conv("a", "x"), _relu("r", "a"), _mean("mean", "r"), _node("flat", "reshape", "mean"))
    layout = _lay_out(network)
    assert layout.integer == {"a", "r", "mean"}
    assert set(layout.groups) == {"x", "r"}


@pytest.mark.parametrize("between", [_relu("t", "b"), _node("t", "maxpool", "b"), _node("t", "add", "b", "a")])
def test_a_final_average_of_f32_values_is_computed_in_f32(between: Node) -> None:
    network = _network(_conv("a", "x"), _conv("m", "a"), _conv("b", "m"), between, _mean("mean", "t"))
    layout = _lay_out(network, "mixed")
    assert layout.integer == {"m"}
    assert set(layout.groups) == {"a"}


def test_a_final_average_of_a_float_operation_is_computed_in_f32() -> None:
    network = _network(_conv("a", "x"), _node("f", "float", "a", detail="math.exp"), _mean("mean", "f"))
    assert _lay_out(network).integer == {"a"}


def test_a_returned_average_that_a_layer_reads_is_quantized() -> None:
    network = _network(
        _conv("a", "x"), _node("f", "float", "a", detail="math.exp"), _mean("mean", "f"), _matmul("fc", "mean"),
        outputs=("mean", "fc"),
    )  # fmt: skip
    assert _lay_out(network).integer == {"a", "mean", "fc"}


def test_a_final_addition_stays_f32() -> None:
    network = _network(_conv("a", "x"), _conv("b", "x"), _node("s", "add", "a", "b"))
    layout = _lay_out(network)
    assert layout.integer == {"a", "b"}
    assert set(layout.groups) == {"x"}


def test_a_returned_tensor_may_be_quantized_for_its_other_readers() -> None:
    network = _network(_conv("a", "x"), _relu("r", "a"), _conv("b", "r"), outputs=("b", "r"))
    assert set(_lay_out(network).groups) == {"x", "r"}


# Numbers


def _seen(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    return histogram


def _statistics(network: Network, low: float = -1.0, high: float = 2.0) -> dict[str, Histogram]:
    return {name: _seen(low, high) for name in observed(network)}


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_scales_are_those_of_the_observed_range(scheme: str) -> None:
    plan = make_plan(RESNET, _statistics(RESNET), QuantConfig(scheme=scheme))
    assert set(plan.activations) == {"x", "r0", "pool", "r1", "c2", "r2", "mean"}
    assert set(plan.weights) == {"stem", "c1", "c2", "fc"}
    expected = SCHEMES[scheme].params(-1, 2)
    assert all(params == expected for params in plan.activations.values())
    assert plan.notes == ()
    assert {w.axis for w in plan.weights.values()} == {0}
    assert plan.weights["fc"].scale.shape == (3,)
    per_tensor = make_plan(RESNET, _statistics(RESNET), QuantConfig(scheme=scheme, granularity="tensor"))
    assert {w.axis for w in per_tensor.weights.values()} == {None}


def test_a_group_covers_all_that_enters_it() -> None:
    network = _network(_conv("a", "x"), _conv("b", "x"), _node("cat", "concat", "a", "b"), _conv("c", "cat"))
    statistics = {"x": _seen(0, 1), "a": _seen(-3, 1), "b": _seen(0, 5)}
    plan = make_plan(network, statistics, QuantConfig(clip="max"))
    assert (
        plan.activations["a"] == plan.activations["b"] == plan.activations["cat"] == SCHEMES["asymmetric"].params(-3, 5)
    )
    assert plan.activations["x"] == SCHEMES["asymmetric"].params(0, 1)
    assert statistics["a"] == _seen(-3, 1)  # merging worked on a copy


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("clip", ["kl", "percentile"])
def test_ranges_are_clipped_for_the_scheme_that_uses_them(scheme: str, clip: str) -> None:
    random = np.random.default_rng(4)
    network = _network(_conv("a", "x"), _conv("b", "x"), _node("cat", "concat", "a", "b"), _conv("c", "cat"))
    signed = _seen(*(1 + random.laplace(0, 1, 30_000)))
    positive = _seen(*np.maximum(random.laplace(0, 1, 30_000), 0))
    statistics = {"x": positive, "a": positive, "b": signed}
    plan = make_plan(network, statistics, QuantConfig(clip=clip, scheme=scheme))
    together = positive.copy()
    together.merge(signed)
    for name, histogram in (("x", positive), ("cat", together)):
        clipped = CLIPS[clip].range(histogram, SCHEMES[scheme])
        assert clipped != (histogram.minimum, histogram.maximum)
        assert plan.activations[name] == SCHEMES[scheme].params(*clipped)


def test_constant_tensors_are_noted() -> None:
    network = _network(_conv("a", "x"), _relu("r", "a"), _conv("b", "r"))
    plan = make_plan(network, {"x": _seen(0, 1), "r": _seen(0, 0)}, QuantConfig())
    assert plan.notes == ("r: was 0 on every calibration image; scale 1.0 is used",)
    assert plan.activations["r"].scale == 1


def test_a_bias_too_large_for_its_weight_coarsens_the_weight() -> None:
    network = _network(_conv("a", "x", bias=3.0))
    weight = network.layers[0].weight
    assert weight is not None
    weight[1] = 1e-12  # a dead channel
    plan = make_plan(network, {"x": _seen(0, 1)}, QuantConfig())
    steps = 3.0 / (plan.weights["a"].scale.astype(np.float64) * float(plan.activations["x"].scale))
    assert steps[1] == pytest.approx(BIAS_LIMIT, rel=1e-6)
    assert steps.max() <= BIAS_LIMIT
    assert plan.weights["a"].scale[0] == np.float32(0.5 / 127)


def test_json_is_what_the_annotating_pass_reads() -> None:
    network = _network(_conv("a", "x"))
    plan = make_plan(network, {"x": _seen(-1, 2)}, QuantConfig(granularity="tensor"))
    written = json.loads(plan.to_json())
    params = plan.activations["x"]
    assert written["activations"]["x"] == {
        "scale": [float(params.scale)],
        "zero_point": [int(params.zero_point)],
        "min": 0,
        "max": 255,
        "per_channel": False,
    }
    assert written["weights"]["a"]["min"] == -127
    assert np.float32(written["weights"]["a"]["scale"][0]) == plan.weights["a"].scale
    empty = {"activations": {}, "weights": {}}
    assert json.loads(QuantizationPlan({}, {}).to_json()) == empty


def _ramps() -> dict[str, Histogram]:
    statistics = {name: Histogram() for name in observed(RESNET)}
    for histogram in statistics.values():
        histogram.add(np.linspace(0, 4, 2000, dtype=np.float32))
    return statistics


def test_bits_are_those_of_the_layer_and_of_the_widest_reader() -> None:
    config = QuantConfig.parse("bits=w4a4/w2a8:c1/w8a4:fc")
    plan = make_plan(RESNET, _ramps(), config)
    assert {name: bits_of(params) for name, params in plan.weights.items()} == {"stem": 4, "c1": 2, "c2": 4, "fc": 8}
    assert plan.weights["c1"].qmax == 1
    # c1 reads the pool with eight bits, and r0 is of the pool's group; no layer reads the sum.
    found = {name: bits_of(params) for name, params in plan.activations.items()}
    assert found == {"x": 4, "r0": 8, "pool": 8, "r1": 4, "c2": 8, "r2": 8, "mean": 4}
    assert plan.is_narrow
    assert not make_plan(RESNET, _ramps(), QuantConfig()).is_narrow


def test_bits_of_a_layer_that_is_not_there_are_told_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"the model has no layer 'ste' \(did you mean stem\?\)") as error:
        make_plan(RESNET, _ramps(), QuantConfig.parse("bits=w8/w4:ste"))
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="its layers have names such as stem, c1, c2"):
        make_plan(RESNET, _ramps(), QuantConfig.parse("bits=w8/w4:zzzzzz"))


def test_weights_are_cut_as_the_configuration_says() -> None:
    weight = np.random.default_rng(2).laplace(size=(4, 4, 3, 3)).astype(np.float32)
    conv = _node("a", "conv", "x", weight=weight, bias=np.zeros(4, np.float32))
    network, seen, power = _network(conv), {"x": _seen(0, 1)}, {"x": np.array([0.0, 1.0, 4.0, 9.0])}
    known: dict = {}
    plans = {
        rule: make_plan(network, seen, QuantConfig.parse(f"bits=w4,weight_clip={rule}"), None, known, power)
        for rule in ("max", "mse", "power")
    }
    for rule, plan in plans.items():
        expected = fit_weight(weight, "channel", SCHEMES["asymmetric"].weights, 4, rule, power["x"][None])
        assert np.array_equal(plan.weights["a"].scale, expected.scale)
    assert len({plan.digest() for plan in plans.values()}) == 3
    with pytest.raises(UsageError, match=r"weight_clip=kl: expected one of max, mse, power"):
        QuantConfig.parse("weight_clip=kl")


@pytest.mark.parametrize("clip", ["max", "kl", "percentile", "mse", "aciq"])
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_remembered_changes_no_plan(clip: str, signed: bool) -> None:
    rng = np.random.default_rng(3)
    statistics = _statistics(RESNET)
    for histogram in statistics.values():
        values = rng.standard_normal(4000).astype(np.float32)
        histogram.add(values if signed else np.abs(values))
    ranges: dict = {}
    weights: dict = {}
    for scheme in ("asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2"):
        for granularity in ("tensor", "channel"):
            config = QuantConfig(clip=clip, scheme=scheme, granularity=granularity)
            fresh = make_plan(RESNET, statistics, config).to_json()
            assert make_plan(RESNET, statistics, config, ranges, weights).to_json() == fresh


def _params(scale: float = 0.5, point: int = 0, low: int = -127, high: int = 127, channels: int = 0) -> QuantParams:
    shape = (channels,) if channels else ()
    axis = 0 if channels else None
    return QuantParams(np.full(shape, scale, np.float32), np.full(shape, point, np.int32), low, high, axis)


def test_plans_of_one_digest_quantize_alike() -> None:
    plan = QuantizationPlan({"x": _params()}, {"w": _params(0.25), "v": _params()})
    again = QuantizationPlan({"x": _params()}, {"v": _params(), "w": _params(0.25)}, notes=("nothing that counts",))
    assert plan.digest() == again.digest()
    weights = [_params(0.75), _params(0.25, 1), _params(0.25, 0, -126), _params(0.25, 0, -127, 126)]
    weights += [_params(0.25, channels=1), _params(0.25, channels=2)]
    changed = [{"w": other} for other in weights]
    changed += [{"v": _params(0.25), "w": _params()}, {"u": _params()}]
    others = [QuantizationPlan(plan.activations, {**plan.weights, **change}) for change in changed]
    others += [QuantizationPlan({"x": _params(0.25)}, plan.weights), QuantizationPlan({"y": _params()}, plan.weights)]
    others += [QuantizationPlan({**plan.activations, "v": _params()}, {"w": _params(0.25)}), plan]
    assert len({each.digest() for each in others}) == len(others)


def test_narrow_is_what_has_weights_of_fewer_than_eight_bits() -> None:
    assert not QuantizationPlan({"x": _params(low=-8, high=7)}, {"w": _params()}).is_narrow
    assert QuantizationPlan({}, {"v": _params(), "w": _params(low=-63, high=63)}).is_narrow
