"""What a user may ask of bit widths, and what a builder's network is asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from quantune.allocation.amp import Alone
from quantune.allocation.base import Allocation, Budget, Problem
from quantune.allocation.controls import Parameters
from quantune.allocation.output_error import OutputNorm
from quantune.allocation.solve import optimal
from quantune.compiler.targets import Target
from quantune.data.sources import Items
from quantune.data.splits import Split
from quantune.errors import UsageError
from quantune.frontend.importer import import_module
from quantune.numerics.simulate import simulate
from quantune.quantization.bits import F32, BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.tuning.bit_widths import CHOICES, Allocator
from quantune.tuning.bits_wanted import STEPS, BitsWanted, BySize
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
        ({"score": "sqnr"}, "score 'sqnr' has nothing to allocate; give a size budget or the smallest within"),
        ({"propose": "list"}, "proposer 'list' has nothing to allocate"),
        ({"weight_bits": 4, "score": "sqnr"}, "score 'sqnr' has nothing to allocate"),
        ({"weight_bits": 4, "smallest_within": 0.01}, "weight bits and the smallest within a bound exclude each other"),
        ({"size_budget": "1MB", "smallest_within": 0.01}, "a size budget and the smallest within a bound exclude"),
        ({"size_budget": "1MB", "walk": "bisection"}, "walk 'bisection' belongs to the smallest within a bound"),
        ({"smallest_within": 0.01, "walk": "bisect"}, "walk 'bisect': expected one of bisection"),
        ({"smallest_within": 0.01, "propose": "milp"}, "proposer 'milp': expected one of optimal"),
        ({"size_budget": "big"}, "size budget 'big': expected a size such as"),
        ({"size_budget": 0}, "size budget '0': expected a size such as"),
        ({"size_budget": "1MB", "score": "best"}, "score 'best': expected one of sqnr"),
        ({"formats": "w2h"}, "formats 'w2h' has nothing to allocate; give a size budget"),
        ({"size_budget": "1MB", "formats": "w2h,w2x"}, "bits 'w2x': expected for example"),
        ({"size_budget": "1MB", "formats": "w2h,f32"}, "formats 'w2h,f32': 'f32' is none of a weight"),
        ({"size_budget": "1MB", "formats": "w2ha4"}, "'w2ha4' is none of a weight"),
        ({"size_budget": "1MB", "formats": "w2h,"}, "bits '': expected for example"),
    ],
)
def test_a_wrong_request_is_refused_at_once(asked: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        BitsWanted(**asked)
    assert "\n" not in str(error.value)


def test_formats_are_candidates_beside_the_widths(allocator: Allocator) -> None:
    wanted = BitsWanted(size_budget="0.3x", score="output-error", formats="w2c, w3k,w2,w1")
    formats = [LayerBits.parse(name) for name in ("w2c", "w3k", "w1")]
    assert wanted.choices == (*CHOICES, *formats)
    allocated, uniform = wanted.candidates(allocator.builder, QuantConfig())
    assert uniform == BitWidths(LayerBits(2))
    found = wanted.allocator(allocator.builder, QuantConfig())
    scores = found.scores(wanted.scorer)
    assert all(set(row) == {*CHOICES, *formats} for row in scores.values())
    for row in scores.values():  # a table of four, fitted, keeps more of a weight than three integers up to the largest
        assert row[formats[0]] < row[LayerBits(2)]
    assert {allocated.of(name) for name in scores} & set(formats)
    assert found.weight_bytes(allocated) <= 0.3 * found.eight_bits


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
    wide = BitWidths(LayerBits(8), ((last.name, LayerBits(2)),))
    f32, other, composed = list(allocator.logits([wide, bits], 6))
    for widths, found in ((wide, other), (bits, composed)):
        artifact = allocator.builder.artifact(QuantConfig(bits=widths))
        np.testing.assert_array_equal(found, np.concatenate([artifact(image) for image in IMAGES]))
    assert f32.shape == composed.shape == (6, 4)
    assert not np.array_equal(f32, composed)
    assert not np.array_equal(other, composed)


def test_one_layer_alone_is_what_its_own_artifact_computes(allocator: Allocator) -> None:
    (first, middle, last) = (node.name for node in allocator.network.layers)
    columns = [(first, LayerBits(3)), (middle, LayerBits(2)), (last, LayerBits(8))]
    exact, *found = list(allocator.alone(columns, 6))
    np.testing.assert_allclose(exact, next(allocator.logits([], 6)), rtol=1e-4, atol=1e-5)
    for column, outputs in zip(columns, found, strict=True):
        _, compiled = allocator.logits([BitWidths(F32, (column,))], 6)
        np.testing.assert_allclose(outputs, compiled, rtol=1e-4, atol=1e-4)
        assert np.abs(outputs - exact).max() > 1e-3
    scores = Alone(images=6)(allocator)
    assert scores[last][LayerBits(8)] < scores[last][LayerBits(2)]


def test_allocations_of_falling_size_are_made_when_they_are_asked_for(allocator: Allocator) -> None:
    asked: list[float] = []

    def propose(problem: Problem) -> Allocation:
        asked.append(problem.budgets[0].limit)
        return optimal(problem)

    way = BySize(propose, allocator.problem(Parameters(), [Budget(allocator.sizes, 0)]))
    assert len(way) == STEPS + 1
    assert way[0] == BitWidths()
    assert way[STEPS] == BitWidths(LayerBits(2))
    sizes = [allocator.weight_bytes(way[i]) for i in (0, 10, 32, 63, 64)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(asked) == 5  # none twice
    with pytest.raises(IndexError):
        way[STEPS + 1]


@pytest.mark.parametrize("propose", ["list", "greedy"])
def test_lists_go_from_wide_to_narrow_one_layer_at_a_time(allocator: Allocator, propose: str) -> None:
    wanted = BitsWanted(smallest_within=0.01, score="parameters", propose=propose)
    way = wanted.way(allocator.builder, QuantConfig())
    names = [node.name for node in allocator.network.layers]
    assert way[0] == BitWidths()
    assert way[len(way) - 1] == BitWidths(LayerBits(2))
    assert len(way) == 1 + len(names) * (len(CHOICES) - 1)
    for before, after in itertools.pairwise(way):
        changed = [name for name in names if before.of(name) != after.of(name)]
        assert len(changed) == 1
        assert after.of(changed[0]) < before.of(changed[0])


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
    found = allocator.allocate(OutputNorm(4), [size, Budget(latency, 12, "latency", "ms")])
    assert found.costs["size"] <= allocator.eight_bits // 2
    assert found.costs["latency"] == sum(found.bits.of(name).weights for name in names) <= 12
    assert allocator.weight_bytes(found.bits) == found.costs["size"]
