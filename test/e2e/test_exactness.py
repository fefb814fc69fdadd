"""Compiled int8 programs equal the numpy simulation bit for bit, whatever the network and however it is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st
from quantized import (
    LAYOUTS,
    Form,
    assert_same_bits,
    call,
    compiled,
    executions,
    is_exact,
    lower,
    plan_from_images,
    reference,
)
from random_nets import Concat, Layer, Net, Pool, Residual, Shuffle, nets
from torch import nn

from quantune.compiler import pipelines
from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target
from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig

SCHEMES = ("asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2")
CONFIGS = st.builds(
    QuantConfig,
    scheme=st.sampled_from(SCHEMES),
    clip=st.sampled_from(("max", "kl", "percentile")),
    granularity=st.sampled_from(("tensor", "channel")),
)
FORMS = st.builds(Form, st.sampled_from(LAYOUTS), st.booleans())
# Every example takes seconds: no shrinking, and the same examples in every run.
_OPTIONS = {
    "deadline": None, "derandomize": True, "database": None, "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip
fast, many = settings(max_examples=12, **_OPTIONS), settings(max_examples=300, **_OPTIONS)  # type: ignore[arg-type]

EVERYTHING = Net(
    (2, 3, 12, 13),
    (
        Layer(8, (3, 2), (2, 1), (1, 0), activation="relu6"),
        Residual(),
        Concat(4),
        Shuffle(sliced=False),
        Layer(1, (3, 3), (1, 1), (2, 2), dilation=2, grouping="depthwise", activation="none"),
        Pool("max", (3, 2), (2, 2), padded=True, ceil=True),
        Layer(8, (1, 1), grouping="grouped", bias=False, activation="clamp"),
        Pool("average", (2, 3), (1, 1), padded=True, ceil=False),
    ),
    offset=0.5,
)


def _check(net: Net, config: QuantConfig, form: Form) -> bool:
    """Whether the comparison was of all bits."""
    images = net.images(2)
    calibration, evaluation = np.split(images, 2)
    model = import_module(net.module(), torch.zeros(net.shape), "net")
    plan = plan_from_images(model, calibration, config)
    program = compiled(lower(model, plan, form, config.precision))
    actual, expected = call(program, evaluation), reference(model, plan, evaluation)
    exact = is_exact(model, plan)
    if exact:
        assert_same_bits(actual, expected)
    else:  # the last layer, or an average of the image itself, is f32; what it reads is exact
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(e).max())))
    return exact


def _check_noted(net: Net, config: QuantConfig, form: Form) -> None:
    note(f"{net}\n{config}\n{form}")
    event("all bits compared" if _check(net, config, form) else "sums in f32")


@fast
@given(net=nets(), config=CONFIGS, form=FORMS)
def test_random_networks(net: Net, config: QuantConfig, form: Form) -> None:
    _check_noted(net, config, form)


@settings(fast, max_examples=3)
@given(net=nets(exact=True), config=CONFIGS, form=FORMS)
def test_random_networks_with_f32_ends(net: Net, config: QuantConfig, form: Form) -> None:
    _check_noted(net, replace(config, precision="mixed"), form)


@pytest.mark.slow
@many
@given(net=nets(), config=CONFIGS, form=FORMS)
def test_many_random_networks(net: Net, config: QuantConfig, form: Form) -> None:
    _check_noted(net, config, form)


@pytest.mark.slow
@settings(many, max_examples=100)
@given(net=nets(exact=True), config=CONFIGS, form=FORMS)
def test_many_random_networks_with_f32_ends(net: Net, config: QuantConfig, form: Form) -> None:
    _check_noted(net, replace(config, precision="mixed"), form)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_operation_in_every_layout(layout: str) -> None:
    assert _check(EVERYTHING, QuantConfig(), Form(layout, outlined=layout == "nhwc"))


@pytest.mark.parametrize("weights", ["spread", "dead", "zero"])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric_power2"])
def test_extreme_weights(weights: str, scheme: str) -> None:
    steps = (Layer(8), Residual(), Layer(1, grouping="depthwise"), Layer(8, (1, 1), padding=(0, 0), activation="none"))
    net = Net((1, 3, 8, 8), steps, weights=weights)
    assert _check(net, QuantConfig(scheme=scheme), Form(outlined=scheme == "asymmetric"))


@pytest.mark.parametrize("channels", [5, 20, 32])
def test_depthwise_layer_that_nobody_quantizes(channels: int) -> None:
    """Its sums end in f32: where the network ends, or where only f32 operations read them."""

    class Ending(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).clamp(-0.4, 1.1)

    images = np.random.default_rng(0).normal(0, 2, (2, channels, 6, 7)).astype(np.float32)
    model = import_module(Ending().eval(), torch.zeros(1, channels, 6, 7), "net")
    plan = plan_from_images(model, images[:1], QuantConfig())
    assert_same_bits(call(compiled(lower(model, plan, Form())), images[1:]), reference(model, plan, images[1:]))


def test_f32_clamp_has_every_digit_of_its_bound() -> None:
    class Clamped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).clamp(-0.123456789, 0.123456789)

    model = import_module(Clamped().eval(), torch.zeros(1, 3, 6, 6), "net")
    x = np.random.default_rng(0).normal(0, 9, (1, 3, 6, 6)).astype(np.float32)
    (y,) = call(compiled(lower(model, None, Form(), "f32")), x)
    assert (y.min(), y.max()) == (-np.float32(0.123456789), np.float32(0.123456789))


@pytest.mark.parametrize("cpu", ["znver4", "alderlake", "haswell"])
def test_every_processors_kernels_are_seen_to_multiply_integers(cpu: str, tmp_path: Path) -> None:
    net, target = Net((1, 3, 8, 8), (Layer(6), Layer(2, grouping="depthwise"))), Target("cpu", cpu=cpu)
    assert target.kernels() is not None
    model = import_module(net.module(), torch.zeros(net.shape), "net")
    plan = plan_from_images(model, net.images(1), QuantConfig())
    lowered = pipelines.lower(model.bytecode, plan, target, "int8")
    rows = executions(model, compile_module(lowered.module, target, output_dir=tmp_path, failure_dir=tmp_path))
    assert [(row.layer, row.op, row.is_integer) for row in rows] == [
        (node.layer, "kernel", True) for node in model.network.layers
    ]


class Several(nn.Module):
    """One layer called twice, at two scales, and three results, one of which another layer reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.shared, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.shared(self.stem(x)))
        z = torch.relu(self.shared(y))
        return y, self.head(z), z.mean((2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_results_and_a_layer_called_twice(layout: str) -> None:
    shape = (1, 3, 8, 8)
    model = import_module(Several(), torch.zeros(shape), "several")
    calibration, x = np.random.default_rng(0).normal(0, 1, (2, *shape)).astype(np.float32)
    plan = plan_from_images(model, calibration, QuantConfig())
    assert is_exact(model, plan)
    assert len(plan.weights) == 4
    assert_same_bits(call(compiled(lower(model, plan, Form(layout))), x), reference(model, plan, x))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_of_operation_with_every_scheme(layout: str, scheme: str) -> None:
    for outlined in (False, True):
        assert _check(EVERYTHING, QuantConfig(scheme=scheme, granularity="tensor"), Form(layout, outlined))


def test_one_program_serves_two_sets_of_numbers_and_one_number_more_is_seen() -> None:
    """Numbers are data: the comparison fails when one of them is off by one, so it can fail."""
    net = Net((1, 3, 8, 8), (Layer(6), Residual(), Layer(1, grouping="depthwise")))
    model = import_module(net.module(), torch.zeros(net.shape), "net")
    calibration, x = np.split(net.images(2), 2)
    plan = plan_from_images(model, calibration, QuantConfig())
    lowered = lower(model, plan, Form(outlined=True))
    other = lower(model, plan_from_images(model, 2 * calibration, QuantConfig(clip="kl")), Form(outlined=True))
    assert lowered.module == other.module
    assert lowered.parameters is not None
    expected = reference(model, plan, x)
    assert_same_bits(call(compiled(lowered), x), expected)
    changed = {name: array.copy() for name, array in lowered.parameters.items()}
    name = next(
        n for n, array in changed.items() if n.startswith("steps.0") and array.dtype == np.int8 and array.size > 9
    )
    changed[name].reshape(-1)[0] += 1 if changed[name].reshape(-1)[0] < 127 else -1
    with pytest.raises(AssertionError):
        assert_same_bits(call(compiled(replace(lowered, parameters=changed)), x), expected)
