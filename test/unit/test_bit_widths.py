"""What a user may ask of bit widths, and what a builder's network is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from quantune.allocation.output_error import OutputError
from quantune.allocation.solve import Budget
from quantune.compiler.targets import Target
from quantune.data.sources import Items
from quantune.data.splits import Split
from quantune.errors import UsageError
from quantune.frontend.importer import import_module
from quantune.numerics.simulate import simulate
from quantune.quantization.bits import BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.tuning.bit_widths import CHOICES, Allocator, BitsWanted
from quantune.tuning.builder import Builder

SHAPE = (1, 3, 8, 8)
IMAGES = np.random.default_rng(0).standard_normal((6, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def allocator() -> Allocator:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 4))
    split = Split(Items([(image[0], 0) for image in IMAGES], "calibration images"), tuple(range(6)))
    model = import_module(net.eval(), torch.zeros(SHAPE), "net")
    return Allocator(Builder(model, Target("cpu"), calib=split, sizes=(1000,)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weight_bits": 4, "size_budget": "1MB"}, "exclude each other"),
        ({"weight_bits": 9}, "9 bits for weights: expected one of 2, 3, 4, 5, 6, 7, 8"),
        ({"weight_bits": 4.0}, "4.0 bits for weights"),
        ({"weight_bits": True}, "True bits for weights"),
        ({"scorer": "sqnr"}, "scorer 'sqnr' has nothing to allocate; give a size budget too"),
        ({"size_budget": "big"}, "size budget 'big': expected a size such as"),
        ({"size_budget": 0}, "size budget '0': expected a size such as"),
        ({"size_budget": "1MB", "scorer": "best"}, "scorer 'best': expected one of sqnr"),
    ],
)
def test_a_wrong_request_is_refused_at_once(asked: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        BitsWanted(**asked)
    assert "\n" not in str(error.value)


def test_sizes_are_those_of_packed_weights(allocator: Allocator) -> None:
    weights = 216 + 64 + 1152
    assert allocator.eight_bits == weights
    assert allocator.weight_bytes(BitWidths(LayerBits(2))) == weights // 4
    assert allocator.within(weights - 1) == [BitWidths(LayerBits(7))]
    assert allocator.within(weights // 4 - 1) == []


def test_layers_are_judged_without_bias_correction(allocator: Allocator) -> None:
    """A corrected bias depends on the widths of other layers, and the numbers of several widths are put together."""
    config = QuantConfig(clip="kl", weight_clip="mse", bias="sequential")
    assert Allocator(allocator.builder, config=config).config == QuantConfig(clip="kl", weight_clip="mse")


def test_tensors_are_observed_image_by_image(allocator: Allocator) -> None:
    layers = allocator.network.layers
    for names in ([layers[1].inputs[0]], [layers[0].name, layers[2].name]):  # what calibration reads too, and what not
        found = list(allocator.observe(names, 3))
        assert [list(each) for each in found] == [names] * 3
        for tensors, image in zip(found, IMAGES, strict=False):
            expected = simulate(allocator.network, {}, {}, image)
            for name in names:
                np.testing.assert_allclose(tensors[name], expected[name], rtol=1e-4, atol=1e-5)


def test_numbers_of_a_mixed_network_are_put_together_from_uniform_ones(allocator: Allocator) -> None:
    """What a flip runs is what building that configuration would give."""
    (first, *_, last) = allocator.network.layers
    bits = BitWidths(LayerBits(8), ((first.name, LayerBits(3)), (last.name, LayerBits(5))))
    f32, composed = list(allocator.logits([bits], 6))
    artifact = allocator.builder.artifact(QuantConfig(bits=bits))
    np.testing.assert_array_equal(composed, np.concatenate([artifact(image) for image in IMAGES]))
    assert f32.shape == composed.shape == (6, 4)
    assert not np.array_equal(f32, composed)


def test_a_flip_of_an_activation_is_built(allocator: Allocator) -> None:
    (_, middle, _) = allocator.network.layers
    bits = BitWidths(LayerBits(8), ((middle.name, LayerBits(8, 4)),))
    _, found = list(allocator.logits([bits], 2))
    artifact = allocator.builder.artifact(QuantConfig(bits=bits))
    np.testing.assert_array_equal(found, np.concatenate([artifact(image) for image in IMAGES[:2]]))


def test_a_budget_by_size_and_one_by_layer_costs_hold_together(allocator: Allocator) -> None:
    names = [node.name for node in allocator.network.layers]
    latency = {name: {choice: float(choice.weights) for choice in CHOICES} for name in names}
    size = Budget(allocator.sizes, allocator.eight_bits // 2)
    found = allocator.allocate(OutputError(4), [size, Budget(latency, 12, "latency", "ms")])
    assert found.costs["size"] <= allocator.eight_bits // 2
    assert found.costs["latency"] == sum(found.bits.of(name).weights for name in names) <= 12
    assert allocator.weight_bytes(found.bits) == found.costs["size"]
