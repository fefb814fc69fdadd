"""The numpy simulation against torch: f32 networks, fake-quantized layers, and integers that are only moved."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from mlir_passes.network import Network, Node
from quantune.frontend.importer import import_module
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import SCHEMES
from quantune.numerics.simulate import SimulationError, bounds, simulate, steps
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan, make_plan, observed

Conv = nn.Conv2d


class Net(nn.Module):
    """A forward function over a list of modules."""

    def __init__(self, forward: Callable, *modules: nn.Module) -> None:
        super().__init__()
        self.run, self.m = forward, nn.ModuleList(modules)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.m, x)


def _images(shape: tuple[int, ...] = (2, 3, 9, 9), seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype(np.float32)


def _network(net: nn.Module, x: NDArray[np.float32]) -> Network:
    return _imported(net, x.shape)


@functools.cache
def _imported(net: nn.Module, shape: tuple[int, ...]) -> Network:
    return import_module(copy.deepcopy(net), torch.zeros(shape), "net").network


def _plan(network: Network, x: NDArray[np.float32], scheme: str = "asymmetric", **options: str) -> QuantizationPlan:
    tensors = simulate(network, {}, {}, x)
    statistics = {name: Histogram() for name in observed(network)}
    for name, histogram in statistics.items():
        histogram.add(tensors[name].reshape(-1))
    return make_plan(network, statistics, QuantConfig(scheme=scheme, **options))


# f32


FLOAT_NETS = {
    "conv": Net(lambda m, x: m[0](x), Conv(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))),
    "depthwise": Net(lambda m, x: m[0](x), Conv(3, 3, 3, padding=1, groups=3)),
    "depthwise, two of each": Net(lambda m, x: m[0](x), Conv(3, 6, 3, padding=1, groups=3, bias=False)),
    "grouped": Net(lambda m, x: m[1](m[0](x)), Conv(3, 4, 1), Conv(4, 6, 3, groups=2, stride=2)),
    "linear": Net(lambda m, x: m[0](x.flatten(1)), nn.Linear(243, 5)),
    "relu6": Net(lambda m, x: F.relu6(m[0](x)), Conv(3, 4, 1)),
    "clamps": Net(lambda m, x: F.relu(m[0](x)).clamp(max=0.3), Conv(3, 4, 1)),
    "max pool": Net(lambda m, x: F.max_pool2d(m[0](x), 3, 2, 1), Conv(3, 4, 1)),
    "max pool, ceil mode": Net(lambda m, x: F.max_pool2d(m[0](x), 2, 2, ceil_mode=True), Conv(3, 4, 1)),
    "max pool, dilated": Net(lambda m, x: F.max_pool2d(m[0](x), (3, 2), 1, (1, 0), dilation=2), Conv(3, 4, 1)),
    "average": Net(lambda m, x: F.avg_pool2d(m[0](x), 3, 2, 1), Conv(3, 4, 1)),
    "average, own divisor": Net(lambda m, x: F.avg_pool2d(m[0](x), 2, divisor_override=3), Conv(3, 4, 1)),
    "adaptive": Net(lambda m, x: F.adaptive_avg_pool2d(m[0](x), 3), Conv(3, 4, 1)),
    "mean": Net(lambda m, x: m[0](x).mean((2, 3)), Conv(3, 4, 1)),
    "residual": Net(lambda m, x: F.relu(m[0](x) + x), Conv(3, 3, 3, padding=1)),
    "concat, slices": Net(lambda m, x: torch.cat([m[0](x)[:, 1:], x, x[:, :, :, :]], 1), Conv(3, 4, 1)),
    "channel shuffle": Net(lambda m, x: m[0](x).view(2, 2, 2, 9, 9).transpose(1, 2).reshape(2, 4, 9, 9), Conv(3, 4, 1)),
    "one tensor, three readers": Net(
        lambda m, x: F.relu(m[0](x)) + F.avg_pool2d(x, 3, 1, 1) + m[0](x), Conv(3, 3, 3, padding=1)
    ),
}


@pytest.mark.parametrize("name", FLOAT_NETS)
def test_f32_networks_equal_torch(name: str) -> None:
    net, x = FLOAT_NETS[name], _images()
    network = _network(net, x)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    (output,) = (simulate(network, {}, {}, x)[each] for each in network.outputs)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, expected, atol=1e-5)


# Integers


def _as_real(value: NDArray, params: QuantParams | None) -> NDArray[np.float32]:
    return value if params is None else affine.dequantize(value, params)


LAYERS = {
    "conv": Net(lambda m, x: m[0](x), Conv(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))),
    "depthwise": Net(lambda m, x: m[0](x), Conv(3, 3, 3, padding=1, groups=3)),
    "grouped": Net(lambda m, x: m[0](x), Conv(4, 6, 3, groups=2, padding=1)),
    "linear": Net(lambda m, x: m[0](x.flatten(1)), nn.Linear(243, 5)),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_torch_on_fake_quantized_operands(name: str, granularity: str, scheme: str) -> None:
    """The result is f32: only the rounding of the bias, at most half a step of it, tells the two apart."""
    net = LAYERS[name]
    x = _images((2, 4 if name == "grouped" else 3, 9, 9))
    network = _network(net, x)
    plan = _plan(network, x, scheme, granularity=granularity)
    (layer,) = network.layers
    (name,) = network.outputs
    output = simulate(network, plan.activations, plan.weights, x, shifts=plan.shifts)[name]
    s_x, s_w = plan.activations["input"], plan.weights[layer.name]
    fake = copy.deepcopy(net)
    with torch.no_grad():
        zeros = torch.from_numpy(np.zeros(s_w.scale.shape or (1,), np.int32))
        scale = torch.from_numpy(np.atleast_1d(s_w.scale).copy())
        if s_w.axis is None:
            quantized = torch.fake_quantize_per_tensor_affine(fake.m[0].weight, float(scale[0]), 0, -127, 127)
        else:
            quantized = torch.fake_quantize_per_channel_affine(fake.m[0].weight, scale, zeros, 0, -127, 127)
        fake.m[0].weight.copy_(quantized)
        x_fake = torch.fake_quantize_per_tensor_affine(
            torch.from_numpy(x), float(s_x.scale), int(s_x.zero_point), s_x.qmin, s_x.qmax
        )
        expected = fake(x_fake).numpy()
    half_a_step = np.broadcast_to(float(s_x.scale) * s_w.scale / 2, (output.shape[1],))
    tolerance = half_a_step.reshape(1, -1, *[1] * (output.ndim - 2)) + 1e-5 * np.abs(expected).max()
    assert np.all(np.abs(output - expected) <= tolerance)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_requantized_layer_is_the_nearest_integer(scheme: str) -> None:
    """conv -> relu -> conv: the middle tensor against the f32 convolution of the dequantized operands."""
    net = Net(lambda m, x: m[1](F.relu(m[0](x))), Conv(3, 5, 3, padding=1), Conv(5, 2, 1))
    x = _images()
    network = _network(net, x)
    plan = _plan(network, x, scheme)
    tensors = simulate(network, plan.activations, plan.weights, x, shifts=plan.shifts)
    first, y = network.layers[0], plan.activations["relu"]
    real = {"input": _as_real(tensors["input"], plan.activations["input"])}
    weight = affine.dequantize(affine.quantize(first.weight, plan.weights[first.name]), plan.weights[first.name])
    convolved = F.conv2d(
        torch.from_numpy(real["input"]), torch.from_numpy(weight), torch.from_numpy(first.bias.copy()), padding=1
    ).numpy()
    exact = np.maximum(convolved, 0) / float(y.scale) + int(y.zero_point)
    off = tensors["relu"].astype(np.float64) - np.clip(exact, y.qmin, y.qmax)
    assert np.abs(off).max() <= 0.5 + 0.02  # half a step of rounding, and the rounded bias
    assert tensors["relu"].dtype == y.dtype
    assert tensors["relu"].min() >= int(y.zero_point)
    assert first.name not in tensors  # computed with its clamp


def test_residual_and_average_round_to_a_neighbour() -> None:
    net = Net(lambda m, x: m[1](F.avg_pool2d(F.relu(m[0](x) + x), 3, 2, 1)), Conv(3, 3, 3, padding=1), Conv(3, 2, 1))
    x = _images()
    network = _network(net, x)
    plan = _plan(network, x)
    tensors = simulate(network, plan.activations, plan.weights, x, shifts=plan.shifts)
    real = {name: _as_real(value, plan.activations.get(name)) for name, value in tensors.items()}
    for name, expected in (
        ("relu", np.maximum(real["m.0"] + real["input"], 0)),
        ("avg_pool2d", F.avg_pool2d(torch.from_numpy(real["relu"]), 3, 2, 1).numpy()),
    ):
        y = plan.activations[name]
        inside = np.clip(expected, *affine.dequantize(np.array([y.qmin, y.qmax]), y))
        assert np.abs(real[name] - inside).max() <= float(y.scale) * 0.51


MOVES: dict[str, tuple[Callable, int]] = {
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), 3),
    "max pool, ceil mode": (lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), 3),
    "concat": (lambda x: torch.cat([x, F.max_pool2d(x, 1)], 1), 6),
    "slice": (lambda x: x[:, 1:, 2:], 2),
    "clamp": (lambda x: x[:, :2].clamp(-0.5, 1.0), 2),
    "transpose": (lambda x: x.transpose(2, 3), 3),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_change_no_integer(name: str) -> None:
    move, channels = MOVES[name]
    net = Net(lambda m, x: m[0](move(x)), Conv(channels, 2, 1))
    x = _images()
    network = _network(net, x)
    plan = _plan(network, x)
    tensors = simulate(network, plan.activations, plan.weights, x, shifts=plan.shifts)
    moved = network.layers[0].inputs[0]
    params = plan.activations[moved]
    with torch.no_grad():
        expected = move(torch.from_numpy(affine.dequantize(tensors["input"], plan.activations["input"]))).numpy()
    np.testing.assert_array_equal(tensors[moved], affine.quantize(expected, params))
    assert params == plan.activations["input"] or name == "clamp"


def test_moves_between_tensors_of_different_scales_go_through_f32() -> None:
    node = Node("c", "c", "clamp", ("input",), (1, 4), lo=0.0, hi=2.0)
    network = Network((Node("input", "", "input", (), (1, 4)), node), ("c",))
    x = np.array([[-1, 0.5, 1.7, 3]], np.float32)
    wide, narrow = SCHEMES["asymmetric"].params(-4, 4), SCHEMES["asymmetric"].params(0, 2)
    assert bounds(node, wide) == (int(wide.zero_point), int(wide.zero_point) + round(2 / float(wide.scale)))
    assert bounds(network.nodes[0], wide) == (0, 255)
    tensors = simulate(network, {"input": wide, "c": narrow}, {}, x)
    expected = np.clip(affine.dequantize(tensors["input"], wide), 0, 2)
    np.testing.assert_array_equal(tensors["c"], affine.quantize(expected, narrow))


def test_mixed_networks_compute_their_ends_in_f32() -> None:
    net = Net(
        lambda m, x: m[2](F.relu(m[1](F.relu(m[0](x)))).mean((2, 3))), Conv(3, 4, 3), Conv(4, 4, 3), nn.Linear(4, 2)
    )
    x = _images()
    network = _network(net, x)
    plan = _plan(network, x, precision="mixed")
    tensors = simulate(network, plan.activations, plan.weights, x, shifts=plan.shifts)
    assert list(plan.weights) == ["m.1"]
    kinds = {name: value.dtype for name, value in tensors.items()}
    assert kinds == {"input": np.float32, "m.0": np.float32, "relu": np.uint8, "relu_1": np.float32} | {
        name: np.float32 for name in kinds if name.startswith(("mean", "m."))
    }
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(tensors["m.2"], expected, atol=0.1)


# Order and memory


def _chain() -> tuple[Network, Mapping[str, QuantParams], Mapping[str, QuantParams]]:
    """x -> conv -> relu (fused), with a pool of x between the two that is x's last reader in program order."""
    weight, bias = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    shape = (1, 1, 4, 4)
    nodes = (
        Node("input", "", "input", (), shape),
        Node("conv", "conv", "conv", ("input",), shape, weight, bias),
        Node("pool", "pool", "maxpool", ("input",), shape),
        Node("relu", "relu", "clamp", ("conv",), shape, lo=0.0),
        Node("sum", "sum", "add", ("relu", "pool"), shape),
    )
    params = SCHEMES["asymmetric"].params(-4, 4)
    activations = {name: params for name in ("input", "pool", "relu", "sum")}
    return Network(nodes, ("sum",)), activations, {"conv": SCHEMES["asymmetric"].weights.params(weight, "tensor")}


def test_a_layer_that_waits_for_its_clamp_still_finds_its_input() -> None:
    network, activations, weights = _chain()
    x = np.random.default_rng(0).uniform(-3, 3, (1, 1, 4, 4)).astype(np.float32)
    tensors = simulate(network, activations, weights, x)
    assert [*tensors] == ["input", "pool", "relu", "sum"]
    np.testing.assert_array_equal(tensors["relu"], np.maximum(tensors["input"], int(activations["relu"].zero_point)))


def test_tensors_are_dropped_after_their_last_reader() -> None:
    net = Net(lambda m, x: m[3](F.relu(m[2](F.relu(m[1](F.relu(m[0](x))))))), *(Conv(3, 3, 1) for _ in range(4)))
    x = _images()
    network = _network(net, x)
    for plan in (_plan(network, x), QuantizationPlan({}, {})):
        running = steps(network, plan.activations, plan.weights, x, shifts=plan.shifts)
        alive = []
        for _ in running:
            frame = running.gi_frame
            assert frame is not None
            alive.append(len(frame.f_locals["alive"]))
        assert max(alive) <= 2


def test_float_operations_are_named() -> None:
    network = _network(Net(lambda m, x: F.pad(m[0](x), (1, 1), value=0.5), Conv(3, 4, 1)), _images())
    with pytest.raises(SimulationError, match=r"'constant_pad_nd' \(tensor.pad with .*\) runs in f32 in the artifact"):
        simulate(network, {}, {}, _images())
    alone = Node("noise", "", "float", (), (1, 4), detail="test.noise")
    with pytest.raises(SimulationError, match=r"'noise' \(test\.noise\)"):
        simulate(Network((Node("input", "", "input", (), (1, 4)), alone), ("noise",)), {}, {}, _images((1, 4)))
