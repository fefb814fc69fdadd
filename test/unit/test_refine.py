"""Bias correction, and the torch twin of the integer network that it looks through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mlir_passes.network import Network, Node
from quantune.errors import UsageError
from quantune.frontend.importer import import_module
from quantune.numerics import affine
from quantune.numerics.histogram import Histogram
from quantune.numerics.simulate import full_batch, simulate
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import with_constants
from quantune.quantization.plan import QuantizationPlan, make_plan, observed
from quantune.refine import base, bias, twin
from quantune.refine.base import Task
from quantune.refine.bias import check_means, corrected, layer_means

COUNT = 9  # no multiple of a batch
BATCH = 2


class Net(nn.Module):
    """Every kind of operation; channels of very unlike range, so that rounding moves means."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, (3, 2), padding=(1, 0), dilation=(1, 2), groups=2)
        self.middle, self.head = middle, nn.Linear(16, 5)
        with torch.no_grad():
            for layer in (self.stem, self.deep):
                layer.weight *= 2.0 ** torch.arange(-6, 2).reshape(8, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.middle(self.wide(nn.functional.relu6(self.deep(x))) + x))
        x = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = torch.cat([self.grouped(x), x[:, :, :, 2:]], 1)
        return self.head(x.mean((2, 3)))


class Subject:
    """A network and images, without a compiler: what is observed comes from torch or numpy."""

    def __init__(self, network: Network, real: nn.Module, seed: int = 0) -> None:
        self.network, self._real = network, real
        self._images = np.random.default_rng(seed).normal(0.3, 1, (COUNT, 3, 14, 14)).astype(np.float32)

    def images(self, count: int) -> NDArray[np.float32]:
        return self._images[:count]

    def observe(self, tensors: Sequence[str], count: int) -> Iterator[dict[str, NDArray[np.float32]]]:
        for image in self._images[:count]:
            found = self.answers(np.stack([image] * BATCH))
            yield {name: found[name][:1] for name in tensors}

    def answers(self, batch: NDArray[np.float32]) -> dict[str, NDArray]:
        return simulate(self.network, {}, {}, batch)


class AroundFloat(Subject):
    """An enlargement between two layers: torch says what comes out of it, since numpy cannot."""

    def answers(self, batch: NDArray[np.float32]) -> dict[str, NDArray]:
        first, enlarge, _ = self._real.children()
        with torch.no_grad():
            between = enlarge(first(torch.from_numpy(batch))).numpy()
        return {"input": batch, self.network.layers[1].inputs[0]: between}


def _plan(subject: Subject, config: QuantConfig | None = None) -> QuantizationPlan:
    statistics = {name: Histogram() for name in observed(subject.network)}
    for tensors in subject.observe(tuple(statistics), COUNT):
        for name, histogram in statistics.items():
            histogram.add(tensors[name].reshape(-1))
    return make_plan(subject.network, statistics, config or QuantConfig())


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(1)
    net = Net(nn.Identity())
    return Subject(import_module(net, torch.zeros(BATCH, 3, 14, 14), "net").network, net)


def _task(subject: Subject, plan: QuantizationPlan) -> Task:
    return Task(subject, plan, COUNT, layer_means(subject, COUNT))


@pytest.mark.parametrize("line", ["", "scheme=symmetric_power2", "precision=mixed,granularity=tensor", "bits=w4a4"])
def test_the_twin_has_the_integers_of_the_simulation(subject: Subject, line: str) -> None:
    plan = _plan(subject, QuantConfig.parse(line) if line else None)
    own = {node.name: node.bias for node in subject.network.layers}
    found = dict(twin.run(subject, plan, COUNT, lambda node, mean, step: own[node.name]))  # type: ignore[arg-type, return-value]
    assert set(plan.activations) <= set(found)
    for i in range(0, COUNT, BATCH):
        batch = full_batch(subject.images(COUNT)[i : i + BATCH], BATCH).astype(np.float32)
        for name, expected in simulate(
            subject.network, plan.activations, plan.weights, batch, shifts=plan.shifts
        ).items():
            got = found[name][i : i + BATCH]
            assert got.dtype == expected.dtype
            if name in plan.activations:
                assert np.mean(got == expected[: len(got)]) >= 0.999
            else:
                np.testing.assert_allclose(got, expected[: len(got)], rtol=1e-4, atol=1e-5)


def test_the_means_are_those_of_the_f32_layers(subject: Subject) -> None:
    means = layer_means(subject, COUNT)
    batch = np.concatenate([subject.images(COUNT), subject.images(1)])
    found = simulate(replace_batch(subject.network, len(batch)), {}, {}, batch)
    for node in subject.network.layers:
        values = found[node.name][:COUNT]
        np.testing.assert_allclose(
            means[node.name], values.mean(axis=(0, *range(2, values.ndim))), rtol=1e-4, atol=1e-5
        )
    check_means(means, subject.network)
    with pytest.raises(ValueError, match="for each output of 'head'"):
        check_means({**means, "head": np.zeros(3)}, subject.network)


def replace_batch(network: Network, size: int) -> Network:
    """The network for batches of another size."""
    return Network(tuple(replace(node, shape=(size, *node.shape[1:])) for node in network.nodes), network.outputs)


def _moved(subject: Subject, plan: QuantizationPlan, task: Task) -> dict[str, float]:
    """How far each layer's mean lies off the f32 network's, over its own size, in the quantized network."""
    network = replace_batch(with_constants(subject.network, plan.constants), COUNT)
    found = {}
    for node in network.layers:
        found[node.name] = 0.0
    own = {node.name: node.bias for node in network.layers}

    def look(node: Node, mean: NDArray, step: NDArray) -> NDArray:
        corrected = own[node.name]
        assert corrected is not None
        there = mean * step + corrected
        found[node.name] = float(np.abs(there - task.means[node.name]).max() / np.abs(task.means[node.name]).max())
        return corrected

    for _ in twin.run(subject, plan, COUNT, look):
        pass
    return found


@pytest.mark.parametrize("line", ["granularity=tensor", "bits=w4,scheme=symmetric", "scheme=symmetric_power2"])
def test_sequential_correction_puts_every_mean_right(subject: Subject, line: str) -> None:
    plan = _plan(subject, QuantConfig.parse(line))
    task = _task(subject, plan)
    refined = replace(plan, constants=bias.sequential(task))
    before, after = _moved(subject, plan, task), _moved(subject, refined, task)
    assert max(before.values()) > 0.002
    assert max(after.values()) < 1e-5
    alone = _moved(subject, replace(plan, constants=bias.fast(task)), task)
    assert alone["stem"] < 1e-5  # whose input is the same in both
    assert np.mean(list(alone.values())) < np.mean(list(before.values()))
    assert alone["head"] > 1e-4  # what is left of the layers before it is not seen


def test_the_f32_layers_of_mixed_precision_keep_their_biases(subject: Subject) -> None:
    plan = _plan(subject, QuantConfig(precision="mixed"))
    assert set(bias.sequential(_task(subject, plan))) == set(bias.fast(_task(subject, plan))) == set(plan.weights)
    assert "stem" not in plan.weights


def test_a_float_operation_is_passed_by() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConstantPad2d(3, 0.5), nn.Conv2d(4, 5, 3))
    subject = AroundFloat(import_module(net, torch.zeros(BATCH, 3, 14, 14), "net").network, net)
    assert [node.kind for node in subject.network.nodes] == ["input", "conv", "float", "conv"]
    plan = _plan(subject, QuantConfig.parse("bits=w3"))
    task = _task(subject, plan)
    alone, behind = bias.fast(task), bias.sequential(task)
    assert set(alone) == set(behind) == set(plan.weights)
    for node in subject.network.layers:  # each layer reads what the f32 network gives
        first, second = alone[node.name].bias, behind[node.name].bias
        assert first is not None
        assert second is not None
        assert node.bias is not None
        np.testing.assert_allclose(first, second, rtol=1e-5)
        assert np.abs(first - node.bias).max() > 1e-3


def test_a_bias_stays_inside_i32() -> None:
    step = np.array([1e-12, 1e-3])
    found = corrected(np.array([5.0, 5.0]), np.array([0.0, 1000.0]), step)
    assert found[1] == np.float32(4.0)
    assert abs(affine.quantize_bias(found, 1.0, step).astype(np.int64)).max() <= affine.BIAS_LIMIT + 64


def test_images_fit_into_the_memory(subject: Subject) -> None:
    assert base.images_for(subject.network) == base.MOST_IMAGES
    huge = replace_images(subject.network, 4096)
    assert base.images_for(huge) == base.FEWEST_IMAGES
    assert base.images_for(replace_images(subject.network, 512)) == base.MEMORY_BYTES // (4 * 8 * 512 * 512)


def replace_images(network: Network, side: int) -> Network:
    """The network for images of another size."""
    nodes = (replace(n, shape=(*n.shape[:2], side, side)) if len(n.shape) == 4 else n for n in network.nodes)
    return Network(tuple(nodes), network.outputs)


def test_how_is_one_of_the_table() -> None:
    with pytest.raises(UsageError, match=r"bias=fats: expected one of none, fast, sequential \(did you mean fast\?\)"):
        QuantConfig.parse("bias=fats")
    assert QuantConfig.parse(str(QuantConfig(bias="fast"))).bias == "fast"
