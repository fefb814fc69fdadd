"""Chosen roundings: what is reconstructed together, what it gains, and that it can be broken off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_refine import BATCH, COUNT, Net, Subject, _plan, replace_batch
from torch import nn

from mlir_passes import ops
from mlir_passes.network import Network, Node
from quantune.errors import UsageError
from quantune.frontend.importer import import_module
from quantune.numerics import affine, simulate
from quantune.numerics.simulate import schedule
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant, merged, with_constants
from quantune.quantization.plan import QuantizationPlan
from quantune.refine import base, forward, rounding, twin, units
from quantune.refine.base import Task


class Odd(nn.Module):
    """Operations of which torchvision's networks have few."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.back = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.norm.weight.data += torch.arange(4) / 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        x = self.norm(x - x.mean((1, 2, 3), keepdim=True)) * x.amax((2, 3), keepdim=True)
        return self.back(torch.relu(x)[:, :, ::2, 1::3])


class Gated(nn.Module):
    """A function and a product, as squeeze and excitation has them, within a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow, self.wide = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        gate = torch.sigmoid(self.wide(nn.functional.silu(self.narrow(x.mean((2, 3), keepdim=True)))))
        return x * gate + x


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(1)
    net = Net(nn.Identity())
    return Subject(import_module(net, torch.zeros(BATCH, 3, 14, 14), "net").network, net)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "STEPS", 80)


def network_of(net: nn.Module, size: int = 14) -> Network:
    return import_module(net.eval(), torch.zeros(1, 3, size, size), "net").network


def names(parts: list[units.Unit]) -> list[list[str]]:
    return [[node.layer for node in unit.layers] for unit in parts if unit.layers]


def real_order(network: Network) -> list[tuple[Node, Node]]:
    return schedule(network, {}, {})


# What is reconstructed together


def test_a_block_lies_between_tensors_through_which_everything_goes(subject: Subject) -> None:
    order = real_order(subject.network)
    assert names(units.blocks(order)) == [["stem"], ["deep", "wide"], ["grouped"], ["head"]]
    assert names(units.layers(order)) == [["stem"], ["deep"], ["wide"], ["grouped"], ["head"]]
    for split in (units.blocks, units.layers):
        steps = [step for unit in split(order) for step in unit.steps]
        assert steps == order
    block = units.blocks(order)[3]
    assert len(block.inputs) == 1
    assert subject.network.by_name[block.output].kind == "add"


def test_a_depthwise_layer_belongs_to_its_neighbours_but_not_to_the_first() -> None:
    def separable(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), nn.Conv2d(inputs, outputs, 1)]

    net = nn.Sequential(nn.Conv2d(3, 4, 1), *separable(4, 8), nn.Conv2d(8, 6, 1), *separable(6, 4), nn.Conv2d(4, 2, 1))
    found = names(units.blocks(real_order(network_of(net))))
    assert found == [["0"], ["1", "2"], ["3", "4", "5"], ["6"]]


def test_blocks_that_are_too_large_are_taken_layer_by_layer(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LARGEST", 1)
    order = real_order(subject.network)
    assert names(units.blocks(order)) == names(units.layers(order))


# Operations in torch


@pytest.mark.parametrize("net", [Net(nn.Identity()), Gated(), Odd()], ids=["usual", "gated", "odd"])
def test_operations_in_torch_are_those_of_numpy(net: nn.Module) -> None:
    network = replace_batch(network_of(net), COUNT)
    x = np.random.default_rng(0).normal(0, 1, network.inputs[0].shape).astype(np.float32)
    expected = simulate.simulate(network, {}, {}, x)
    tensors = {"input": torch.from_numpy(x)}
    weights = {n.name: (torch.from_numpy(n.weight.copy()), torch.from_numpy(n.bias.copy())) for n in network.layers}  # type: ignore[union-attr]
    for node in network.nodes[1:]:
        assert forward.computes(node), node.kind
        tensors[node.name] = forward.compute(node, [tensors[name] for name in node.inputs], weights)
        np.testing.assert_allclose(tensors[node.name], expected[node.name], rtol=1e-4, atol=1e-5)


def test_which_operations_have_a_form_in_torch() -> None:
    weighted = {kind for kind, traits in ops.OPERATIONS.items() if traits.weighted}
    by_layer = {"gather", "surround", "blend"}  # a block with one of these is taken layer by layer
    assert set(forward._OPERATIONS) | weighted | by_layer == set(ops.OPERATIONS)
    assert not set(forward._OPERATIONS) & by_layer


def test_a_function_has_its_slope() -> None:
    node = next(n for n in network_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())).nodes if n.kind == "table")
    x = torch.linspace(-4, 4, 50, requires_grad=True)
    found = torch.autograd.grad(forward.compute(node, [x], {}).sum(), x)[0]
    expected = torch.autograd.grad(nn.functional.silu(x).sum(), x)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


# What it gains


def _task(subject: Subject, plan: QuantizationPlan, **options: object) -> Task:
    return Task(subject, plan, COUNT, {}, **options)  # type: ignore[arg-type]


def _off(subject: Subject, plan: QuantizationPlan) -> float:
    """The squared error of the quantized network's output, over the output's variance."""
    real = replace_batch(subject.network, COUNT)
    expected = simulate.simulate(real, {}, {}, subject.images(COUNT))[real.outputs[0]]
    given = with_constants(real, plan.constants)
    found = simulate.simulate(given, plan.activations, plan.weights, subject.images(COUNT), shifts=plan.shifts)
    return float(np.square(found[real.outputs[0]] - expected).mean() / expected.var())


@pytest.mark.parametrize("how", [rounding.adaround, rounding.brecq])
@pytest.mark.parametrize(
    "line",
    ["bits=w3", "bits=w2,weight_clip=mse", "bits=w2h", "bits=w4,granularity=tensor", "bits=w3,scheme=symmetric_power2"],
)
def test_the_network_answers_better_on_the_same_grid(subject: Subject, how: base.Refiner, line: str) -> None:
    plan = _plan(subject, QuantConfig.parse(line))
    found = how(_task(subject, plan, bias="sequential"))
    refined = replace(plan, constants=merged(plan.constants, found))  # refuses what is off the grid
    assert set(refined.constants) == set(plan.weights)
    assert refined.weights == plan.weights
    biases = {name: Constant(bias=constant.bias) for name, constant in refined.constants.items()}
    nearest = replace(plan, constants=merged(plan.constants, biases))
    assert _off(subject, refined) < min(0.6 * _off(subject, plan), _off(subject, nearest))
    for node in subject.network.layers:
        weight, params = refined.constants[node.name].weight, plan.weights[node.name]
        assert node.weight is not None
        if weight is not None:  # down or up
            below, above = (affine.dequantize(q, params) for q in affine.neighbours(node.weight, params))
            assert np.all((weight == below) | (weight == above))


def test_biases_stay_as_they_are_where_they_are_not_to_be_corrected(subject: Subject) -> None:
    plan = _plan(subject, QuantConfig.parse("bits=w3"))
    found = rounding.brecq(_task(subject, plan))
    assert all(constant.bias is None for constant in found.values())
    again = rounding.brecq(_task(subject, plan))
    assert all(np.array_equal(found[name].weight, again[name].weight) for name in found)  # type: ignore[arg-type]


def test_one_image_is_enough(subject: Subject) -> None:
    plan = _plan(subject, QuantConfig.parse("bits=w3"))
    for how in (rounding.adaround, rounding.brecq):
        found = how(replace(_task(subject, plan, bias="sequential"), count=1))
        assert all(np.isfinite(array).all() for constant in found.values() for array in constant.parts.values())


def test_layers_in_f32_are_left_alone(subject: Subject) -> None:
    plan = _plan(subject, QuantConfig.parse("bits=w3,precision=mixed"))
    assert set(rounding.brecq(_task(subject, plan, bias="sequential"))) == set(plan.weights)


def test_what_is_no_better_than_the_nearest_is_not_taken(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding._Rounding, "hard", lambda self: -self.nearest)
    plan = _plan(subject, QuantConfig.parse("bits=w3"))
    assert rounding.adaround(_task(subject, plan)) == {}


# Breaking off, memory, progress


class Kept:
    """A store in memory that ends the work once it holds so many parts."""

    def __init__(self, most: int = 100) -> None:
        self.parts: dict[str, dict[str, Constant]] = {}
        self.most = most

    def read(self, part: str) -> dict[str, Constant] | None:
        found = self.parts.get(part)
        return None if found is None else dict(found)

    def write(self, part: str, found: Mapping[str, Constant]) -> None:
        self.parts[part] = dict(found)
        if len(self.parts) >= self.most:
            raise KeyboardInterrupt


def test_what_was_finished_is_not_searched_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(subject, QuantConfig.parse("bits=w3"))
    whole = rounding.adaround(_task(subject, plan, bias="sequential"))
    store = Kept(6)
    with pytest.raises(KeyboardInterrupt):
        rounding.adaround(_task(subject, plan, bias="sequential", store=store))
    before, store.most = set(store.parts), 100
    searched: list[str] = []
    run = rounding._Fit.run

    def noted(self: rounding._Fit, hear: object) -> dict[str, Constant]:
        searched.append(self._unit.output)
        return run(self, hear)  # type: ignore[arg-type]

    monkeypatch.setattr(rounding._Fit, "run", noted)
    resumed = rounding.adaround(_task(subject, plan, bias="sequential", store=store))
    assert searched
    assert not before & set(searched)
    for name, constant in whole.items():
        np.testing.assert_array_equal(constant.weight, resumed[name].weight)  # type: ignore[arg-type]
        np.testing.assert_array_equal(constant.bias, resumed[name].bias)  # type: ignore[arg-type]


def test_progress_goes_up_to_the_end(subject: Subject) -> None:
    heard: list[tuple[int, int]] = []
    plan = _plan(subject, QuantConfig.parse("bits=w3"))
    rounding.adaround(_task(subject, plan, on_layer=lambda done, total: heard.append((done, total))))
    assert heard == sorted(heard)
    assert heard[-1] == (1000, 1000)
    assert len({done for done, _ in heard}) > 20


def test_what_a_walk_holds_is_bounded(subject: Subject) -> None:
    """The tensors of both networks that are alive at once, and a layer's sums."""
    network = subject.network
    assert base.images_for_rounding(network) == base.MOST_IN_ROUNDING
    held = base.bytes_of_walks(network)
    plan, most = _plan(subject), 0
    with twin.workers() as pool:
        real, walk = twin.Walk(subject, QuantizationPlan({}, {}), COUNT, pool), twin.Walk(subject, plan, COUNT, pool)
        for unit in units.blocks(walk.order):
            target = real.until(unit.output)
            assert target is not None
            for node, _ in unit.steps:
                made = walk.next()
                assert made is not None
                alive: list[NDArray] = [*real.alive.values(), *walk.alive.values()]
                sums = 4 * int(np.prod(node.shape[1:])) * COUNT
                most = max(most, sum(x.nbytes for x in alive) + sums)
    assert 0.3 * held * COUNT < most <= held * COUNT


def test_names_are_those_of_the_table() -> None:
    with pytest.raises(UsageError, match=r"rounding=brec: expected one of nearest, adaround, brecq \(did you"):
        QuantConfig.parse("rounding=brec")
    config = QuantConfig.parse("bits=w4,rounding=brecq,bias=fast")
    assert QuantConfig.parse(str(config)) == config
    assert config.refinement == "brecq+fast"
    assert replace(config, rounding="nearest").refinement == "fast"
    assert not config.unrefined.refinement
    assert str(config.unrefined) == str(QuantConfig.parse("bits=w4"))
