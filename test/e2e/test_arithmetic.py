"""Sums, differences and products of any broadcast, constants of channels, reductions: programs equal numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantized import (
    Form,
    assert_same_bits,
    call,
    compiled,
    is_exact,
    lower,
    plan_from_images,
    reference,
    sqnr_db,
)
from torch import nn

from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig

SHAPE = (2, 3, 8, 10)
CHANNELS = 6


def _numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32))


DIVISORS = _numbers(4, 1, CHANNELS, 1, 1).abs() + 0.1
EQUAL_SLOPES = torch.full((CHANNELS,), 0.25)


class Around(nn.Module):
    """A layer, functions of its result that layers read, and the sum of these."""

    def __init__(self, functions: tuple[Callable[[torch.Tensor], torch.Tensor], ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.functions, self.first = functions, nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList()
        x = self.first(torch.zeros(SHAPE))
        for function in functions:
            channels = _flat(function(x)).shape[1]
            self.layers.append(nn.Linear(channels, 4))
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        results = [layer(_flat(function(x))) for layer, function in zip(self.layers, self.functions, strict=True)]
        total = results[0]
        for result in results[1:]:
            total = total + result
        return self.last(total)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return torch.flatten(x, 1)


def _batch_norm(x: torch.Tensor) -> torch.Tensor:
    mean, factor = _numbers(0, CHANNELS), _numbers(1, CHANNELS)
    factor[2], factor[3] = 0.0, 1e-6
    return F.batch_norm(F.max_pool2d(x, 2), mean, torch.ones(CHANNELS), factor, _numbers(2, CHANNELS) * 3)


def _channel(seed: int) -> torch.Tensor:
    return _numbers(seed, 1, CHANNELS, 1, 1)


CASES: dict[str, tuple[tuple[Callable[[torch.Tensor], torch.Tensor], ...], dict[str, int]]] = {
    "channels": (
        (
            lambda x: F.relu(_batch_norm(x)), _batch_norm,
            lambda x: (x - _channel(3)) / DIVISORS * 2.5, lambda x: _channel(5) - x,
        ),
        {"affine": 5},
    ),
    "slopes": (
        (lambda x: F.prelu(x, _numbers(7, CHANNELS)), lambda x: F.prelu(x, EQUAL_SLOPES)), {"table": 2}
    ),
    "broadcast": (
        (
            lambda x: x + x.mean((2, 3), keepdim=True), lambda x: x[:, :, :1] - x[:, :, :, :1],
            lambda x: F.relu(x.amax(1, keepdim=True) - x), lambda x: x[:, :1] * x[:, :, :1, :1],
            lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        ),
        {"add": 5, "subtract": 2, "product": 2, "maximum": 1, "sum": 1, "avgpool": 1},
    ),
    "concatenation": ((lambda x: torch.cat([x, x * x / 2], 1), lambda x: torch.cat([F.relu(x), x], 2)), {"concat": 2}),
    "reductions": (
        (
            lambda x: x.sum((1, 2)), lambda x: x.mean(3), lambda x: F.relu(x.mean(2, keepdim=True)),
            lambda x: x.amax((2, 3)), lambda x: x.max(dim=3).values, lambda x: F.adaptive_max_pool2d(x, 1),
        ),
        {"sum": 3, "maxpool": 1},
    ),
}  # fmt: skip


def _model(name: str) -> tuple[nn.Module, ImportedModel]:
    net = Around(CASES[name][0]).eval()
    return net, import_module(net, torch.zeros(SHAPE), "around")


def _images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, SHAPE).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("layout", "config"),
    [
        ("nchw", QuantConfig()),
        pytest.param("nhwc", QuantConfig(), marks=pytest.mark.slow),
        pytest.param("target", QuantConfig(), marks=pytest.mark.slow),
        ("target", QuantConfig(scheme="symmetric_uint8", clip="kl")),
        ("target", QuantConfig(scheme="symmetric_power2")),
    ],
    ids=str,
)
def test_programs_equal_numpy(name: str, layout: str, config: QuantConfig) -> None:
    _, model = _model(name)
    kinds = [node.kind for node in model.network.nodes]
    assert "float" not in kinds
    for kind, count in CASES[name][1].items():
        assert kinds.count(kind) == count, kinds
    plan = plan_from_images(model, _images(1), config)
    assert is_exact(model, plan)
    lowered = lower(model, plan, Form(layout, outlined=layout == "nhwc"))
    assert not any(why.startswith("in f32") for why in lowered.reasons.values()), lowered.reasons
    x = _images(2)
    assert_same_bits(call(compiled(lowered), x), reference(model, plan, x))


@pytest.mark.parametrize("name", CASES)
def test_integers_are_near_torch(name: str) -> None:
    net, model = _model(name)
    x = _images(1)
    found = reference(model, plan_from_images(model, x, QuantConfig()), x)[0]
    with torch.no_grad():
        assert sqnr_db(net(torch.from_numpy(x)).numpy(), found) > 25


def test_what_others_compute_with_keeps_its_scale_in_a_concatenation() -> None:
    """The square is read by the concatenation alone, and shares its range."""
    _, model = _model("concatenation")
    plan = plan_from_images(model, _images(1), QuantConfig())
    x, square = next(node.inputs for node in model.network.nodes if node.kind == "concat")
    (result,) = (reader.name for reader in model.network.consumers[square])
    assert plan.activations[square] == plan.activations[result]
    assert plan.activations[x] != plan.activations[result]


def test_a_layer_norm_stays_f32_as_a_whole() -> None:
    """Its steps would be sums, differences and products in eight bits, of which a variance does not come out well."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 10]), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(x)))

    model = import_module(Net().eval(), torch.zeros(SHAPE), "net")
    plan = plan_of_layers(model)
    between = {node.name for node in model.network.nodes if not node.traits.weighted and node.kind != "input"}
    last = [node for node in model.network.nodes if node.traits.weighted][-1]
    assert not (between - set(last.inputs)) & plan
    assert set(last.inputs) <= plan


def plan_of_layers(model: ImportedModel) -> set[str]:
    """The tensors that are quantized where all layers run in integers."""
    from quantune.quantization.plan import integer_layers, lay_out

    return set(lay_out(model.network, integer_layers(model.network, "int8")).groups)
