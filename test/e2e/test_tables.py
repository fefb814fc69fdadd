"""Functions of one value in integers: compiled programs equal numpy bit for bit, and are near what torch computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantized import (
    LAYOUTS,
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
from quantune.quantization.bits import BitWidths
from quantune.quantization.config import QuantConfig

SHAPE = (2, 3, 8, 8)
FUNCTIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    F.silu, F.hardswish, torch.sigmoid, F.gelu, torch.tanh, F.elu, F.leaky_relu, F.mish, F.softplus,
    lambda x: F.prelu(x, torch.tensor([0.3])), lambda x: torch.exp(-x * x),
)  # fmt: skip


class Activations(nn.Module):
    """A layer, and for each function a layer that reads it; the sum of all, averaged."""

    def __init__(self, functions: tuple[Callable[[torch.Tensor], torch.Tensor], ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.functions, self.first = functions, nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 5, 3, padding=1) for _ in functions)
        self.last = nn.Linear(5, 4)
        self.first.weight.data *= 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        results = [layer(function(x)) for layer, function in zip(self.layers, self.functions, strict=True)]
        total = results[0]
        for result in results[1:]:
            total = total + result
        return self.last(F.gelu(torch.flatten(F.hardsigmoid(total).mean((2, 3)), 1), approximate="tanh"))


def _model(functions: tuple[Callable[[torch.Tensor], torch.Tensor], ...]) -> tuple[nn.Module, ImportedModel]:
    net = Activations(functions).eval()
    return net, import_module(net, torch.zeros(SHAPE), "activations")


def _images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        *((layout, QuantConfig()) for layout in LAYOUTS),
        ("target", QuantConfig(scheme="symmetric", clip="kl")),
        ("target", QuantConfig(scheme="symmetric_power2")),
        ("target", QuantConfig(bits=BitWidths.parse("w4a4"))),
    ],
    ids=str,
)
def test_programs_equal_numpy(layout: str, config: QuantConfig) -> None:
    _, model = _model(FUNCTIONS)
    tables = [node for node in model.network.nodes if node.kind == "table"]
    assert len(tables) == len(FUNCTIONS) + 2
    assert all(node.kind != "float" for node in model.network.nodes)
    plan = plan_from_images(model, _images(1), config)
    assert is_exact(model, plan)
    lowered = lower(model, plan, Form(layout, outlined=layout == "nhwc"))
    assert not any(why.startswith("in f32") for why in lowered.reasons.values())
    x = _images(2)
    assert_same_bits(call(compiled(lowered), x), reference(model, plan, x))


def test_integers_are_near_torch() -> None:
    net, model = _model((F.silu, F.hardswish, F.gelu, F.mish))
    x = _images(1)
    plan = plan_from_images(model, x, QuantConfig())
    (found,) = call(compiled(lower(model, plan, Form())), x)
    with torch.no_grad():
        assert sqnr_db(net(torch.from_numpy(x)).numpy(), found) > 25


def test_one_program_serves_all_numbers_and_one_entry_more_is_seen() -> None:
    _, model = _model((F.silu,))
    plan = plan_from_images(model, _images(1), QuantConfig())
    lowered = lower(model, plan, Form(outlined=True))
    other = lower(model, plan_from_images(model, 3 * _images(1), QuantConfig(clip="kl")), Form(outlined=True))
    assert lowered.module == other.module
    assert lowered.parameters is not None
    assert other.parameters is not None
    names = [name for name in lowered.parameters if name.endswith(".table") and not name.startswith("cast.")]
    assert len(names) == 3
    assert all(lowered.parameters[name].shape == (256,) for name in names)
    assert any((lowered.parameters[name] != other.parameters[name]).any() for name in names)
    x = _images(2)
    expected = reference(model, plan, x)
    assert_same_bits(call(compiled(lowered), x), expected)
    changed = {**lowered.parameters, names[0]: lowered.parameters[names[0]] ^ 1}
    with pytest.raises(AssertionError):
        assert_same_bits(call(compiled(replace(lowered, parameters=changed)), x), expected)


class Twins(nn.Module):
    """The same function of two layers whose results have the same range."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.right.weight.data, self.right.bias.data = self.left.weight.data.flip(0), self.left.bias.data.flip(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.hardsigmoid(self.left(x)) * F.hardsigmoid(self.right(x)))


@pytest.mark.parametrize("outlined", [False, True])
def test_equal_tables_that_meet_in_one_loop(outlined: bool) -> None:
    model = import_module(Twins().eval(), torch.zeros(SHAPE), "twins")
    plan = plan_from_images(model, _images(1), QuantConfig())
    left, right = (node.name for node in model.network.nodes if node.kind == "table")
    assert plan.activations[left] == plan.activations[right]
    x = _images(2)
    for layout in LAYOUTS:
        assert_same_bits(call(compiled(lower(model, plan, Form(layout, outlined))), x), reference(model, plan, x))
