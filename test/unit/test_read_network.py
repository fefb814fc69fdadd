"""What the reader makes of the forms that torch-mlir writes, and of modules it cannot read."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_mlir import ir

from mlir_passes.network import Network
from mlir_passes.ops.reader import NetworkError, read_network
from quantune.frontend.importer import import_module

Conv = nn.Conv2d


class Net(nn.Module):
    """A forward function over a list of modules."""

    def __init__(self, forward: Callable, *modules: nn.Module) -> None:
        super().__init__()
        self.run, self.m = forward, nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.m, x)


def _network(forward: Callable, *modules: nn.Module, shape: tuple[int, ...] = (1, 3, 8, 8)) -> Network:
    return import_module(Net(forward, *modules), torch.zeros(shape), "net").network


def _kinds(network: Network) -> list[tuple[str, tuple[str, ...]]]:
    return [(node.kind, node.inputs) for node in network.nodes[1:]]


CONVS = {
    "dense": Conv(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "uneven padding": Conv(3, 4, 4, padding="same"),
    "without bias": Conv(3, 4, 3, bias=False),
    "depthwise": Conv(3, 3, 3, padding=1, groups=3),
    "depthwise, two of each": Conv(3, 6, 3, padding=1, groups=3),
    "grouped": Conv(4, 6, 3, padding=1, groups=2),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str) -> None:
    conv = CONVS[name]
    network = _network(lambda m, x: m[0](x), conv, shape=(2, conv.in_channels, 8, 8))
    (node,) = network.layers
    assert _kinds(network) == [("conv", ("input",))]
    assert (node.name, node.layer) == ("m.0", "m.0")
    assert (node.groups, node.kernel, node.strides, node.dilations) == (
        conv.groups,
        conv.kernel_size,
        conv.stride,
        conv.dilation,
    )
    # The stride leaves the padding at the bottom unread.
    assert node.pads == {"dense": (1, 0, 0, 0), "without bias": (0,) * 4, "uneven padding": (1, 1, 2, 2)}.get(
        name, (1,) * 4
    )
    np.testing.assert_array_equal(node.weight, conv.weight.detach().numpy())
    np.testing.assert_array_equal(node.bias, np.zeros(4) if conv.bias is None else conv.bias.detach().numpy())
    assert network.outputs == ("m.0",)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    linear = nn.Linear(192, 5, bias=bias)
    network = _network(lambda m, x: m[0](x.flatten(1)), linear, shape=(2, 3, 8, 8))
    assert _kinds(network) == [("reshape", ("input",)), ("matmul", ("view",))]
    (node,) = network.layers
    np.testing.assert_array_equal(node.weight, linear.weight.detach().numpy())
    np.testing.assert_array_equal(node.bias, linear.bias.detach().numpy() if bias else np.zeros(5))


CLAMPS = {
    "relu": (F.relu, (0, math.inf)),
    "relu6": (F.relu6, (0, 6)),
    "hardtanh": (F.hardtanh, (-1, 1)),
    "clamp": (lambda x: torch.clamp(x, -2, 3), (-2, 3)),
    "clamp from below": (lambda x: x.clamp(min=0.5), (0.5, math.inf)),
    "twice": (lambda x: F.relu(x).clamp(max=2.0), (0, 2)),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_clamps(name: str) -> None:
    function, bounds = CLAMPS[name]
    network = _network(lambda m, x: function(m[0](x)), Conv(3, 4, 1))
    (node,) = network.nodes[2:]
    assert node.kind == "clamp"
    assert (node.lo, node.hi) == bounds


def test_clamps_stay_apart_when_the_first_has_another_reader() -> None:
    network = _network(lambda m, x: (lambda y: (y, y.clamp(max=2.0)))(F.relu(m[0](x))), Conv(3, 4, 1))
    assert [(node.lo, node.hi) for node in network.nodes[2:]] == [(0, math.inf), (-math.inf, 2)]


MAX_POOLS = {
    "plain": (lambda x: F.max_pool2d(x, 2), (2, 2), (2, 2), (0, 0, 0, 0)),
    "padded": (lambda x: F.max_pool2d(x, 3, 2, 1), (3, 3), (2, 2), (1, 1, 0, 0)),
    "ceil mode": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), (3, 3), (2, 2), (0, 0, 1, 1)),
    "uneven": (lambda x: F.max_pool2d(x, (3, 1), (1, 2), (1, 0)), (3, 1), (1, 2), (1, 0, 1, 0)),
}


@pytest.mark.parametrize("name", MAX_POOLS)
def test_max_pools(name: str) -> None:
    function, kernel, strides, pads = MAX_POOLS[name]
    (node,) = _network(lambda m, x: function(x)).nodes[1:]
    assert (node.kind, node.kernel, node.strides, node.pads) == ("maxpool", kernel, strides, pads)


AVERAGES = {
    "window": (lambda x: F.avg_pool2d(x, 3, 2, 1), (3, 3), (2, 2), (1, 1, 0, 0), 9, (1, 3, 4, 4)),
    "window of one": (lambda x: F.avg_pool2d(x, 1, 2), (1, 1), (2, 2), (0, 0, 0, 0), 1, (1, 3, 4, 4)),
    "sum": (lambda x: x.sum((2, 3)), (8, 8), (1, 1), (0, 0, 0, 0), 1, (1, 3)),
    "own divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), (2, 2), (2, 2), (0, 0, 0, 0), 3, (1, 3, 4, 4)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 2), (4, 4), (4, 4), (0, 0, 0, 0), 16, (1, 3, 2, 2)),
    "to one": (lambda x: F.adaptive_avg_pool2d(x, 1), (8, 8), (1, 1), (0, 0, 0, 0), 64, (1, 3, 1, 1)),
    "mean": (lambda x: x.mean((2, 3)), (8, 8), (1, 1), (0, 0, 0, 0), 64, (1, 3)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_average_pools(name: str) -> None:
    function, kernel, strides, pads, divisor, shape = AVERAGES[name]
    (node,) = _network(lambda m, x: function(x)).nodes[1:]
    assert (node.kind, node.kernel, node.strides, node.pads) == ("avgpool", kernel, strides, pads)
    assert (node.divisor, node.shape, node.detail) == (divisor, shape, "")


def test_residual_add_concat_slices_and_channel_shuffle() -> None:
    def forward(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        y = m[0](x)
        kept, rest = y.chunk(2, 1)
        joined = torch.cat((kept, m[1](rest)), 1) + y
        return m[2](joined.view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8))

    network = _network(forward, Conv(3, 4, 1), Conv(2, 2, 1), Conv(4, 4, 1))
    assert _kinds(network) == [
        ("conv", ("input",)),
        ("slice", ("m.0",)),
        ("slice", ("m.0",)),
        ("conv", ("getitem#2",)),
        ("concat", ("getitem", "m.1")),
        ("add", ("cat", "m.0")),
        ("reshape", ("add",)),
        ("transpose", ("view",)),
        ("reshape", ("permute",)),
        ("conv", ("view_1",)),
    ]
    assert network.by_name["getitem#2"].offsets == (0, 2, 0, 0)
    assert network.by_name["cat"].axis == 1
    assert network.by_name["permute"].permutation == (0, 2, 1, 3, 4)


def test_a_tensor_added_to_itself() -> None:
    network = _network(lambda m, x: (lambda y: y + y)(m[0](x)), Conv(3, 4, 1))
    assert _kinds(network)[1] == ("table", ("m.0",))


OTHERS = {
    "zeros around a max pool": (
        lambda m, x: F.max_pool2d(F.pad(m[0](x), (1, 1, 1, 1)), 2),
        [("surround", ("m.0",)), ("maxpool", ("constant_pad_nd",))],
    ),
    "channels padded": (
        lambda m, x: m[1](F.pad(m[0](x), (0, 0, 0, 0, 1, 1))),
        [("surround", ("m.0",)), ("conv", ("constant_pad_nd",))],
    ),
    "padded with ones": (
        lambda m, x: m[2](F.pad(m[0](x), (1, 1, 1, 1), value=1.0)),
        [("float", ("m.0",)), ("conv", ("constant_pad_nd",))],
    ),
    "every second channel": (lambda m, x: m[0](x)[:, ::2], [("slice", ("m.0",))]),
    "a gather": (
        lambda m, x: m[2](F.interpolate(m[0](x), scale_factor=2)),
        [("gather", ("m.0",)), ("conv", ("upsample_nearest2d",))],
    ),
    "a computed constant added": (
        lambda m, x: m[0](x) + torch.ones(1, 4, 8, 8) * m[0].bias.view(1, 4, 1, 1),
        [("float", ("m.0",))],
    ),
    "a constant concatenated": (lambda m, x: torch.cat([m[0](x), torch.zeros(1, 1, 8, 8)], 1), [("float", ("m.0",))]),
    "broadcast": (
        lambda m, x: (lambda y: y + y.mean((2, 3), keepdim=True))(m[0](x)),
        [("avgpool", ("m.0",)), ("add", ("m.0", "mean"))],
    ),
    "a difference": (lambda m, x: m[0](x) - x[:, :1], [("slice", ("input",)), ("subtract", ("m.0", "slice_1"))]),
    "borders count in no mean": (
        lambda m, x: F.avg_pool2d(m[0](x), 3, 2, 1, count_include_pad=False),
        [("avgpool", ("m.0",)), ("float", ("avg_pool2d",))],
    ),
    "a sum divided by another tensor": (
        lambda m, x: m[0](x).sum((2, 3)) / m[0](x).amax((2, 3)),
        [
            ("avgpool", ("m.0",)),
            ("maximum", ("m.0",)),
            ("maximum", ("amax",)),
            ("float", ("sum_1", "amax#2")),
        ],
    ),
    "positions of maxima": (lambda m, x: m[0](x).argmax(1), [("float", ("m.0",)), ("float", ("m.0",))]),
    "a weight that is no constant": (
        lambda m, x: F.conv2d(m[0](x), x.reshape(48, 4, 1, 1)),
        [("reshape", ("input",)), ("reshape", ("view",)), ("float", ("m.0", "view#2"))],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_know_what_they_read(name: str) -> None:
    forward, expected = OTHERS[name]
    network = _network(forward, Conv(3, 4, 1), Conv(6, 2, 1), Conv(4, 2, 1))
    assert _kinds(network)[1:] == expected
    assert all(node.detail for node in network.nodes if node.kind == "float")


def test_a_view_behind_a_grouped_convolution_is_its_own_node() -> None:
    network = _network(lambda m, x: m[1](m[0](x)).flatten(1), Conv(3, 4, 1), Conv(4, 4, 1, groups=2))
    assert _kinds(network)[1:] == [("conv", ("m.0",)), ("reshape", ("m.1",)), ("reshape", ("reshape",))]
    assert network.by_name["m.1"].shape == (1, 4, 8, 8)


def test_channel_shuffle_next_to_grouped_convolutions() -> None:
    def forward(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        return m[2](m[1](m[0](x)).view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8))

    network = _network(forward, Conv(3, 4, 1), Conv(4, 4, 1, groups=2), Conv(4, 4, 1, groups=2))
    kinds = [node.kind for node in network.nodes]
    assert kinds == ["input", "conv", "conv", "reshape", "transpose", "reshape", "conv"]
    assert [node.shape for node in network.layers] == [(1, 4, 8, 8)] * 3


def test_padding_before_a_convolution_adds_up() -> None:
    network = _network(lambda m, x: m[0](F.pad(x, (1, 0, 1, 0))), Conv(3, 4, 3, padding=1))
    assert _kinds(network) == [("conv", ("input",))]
    assert network.layers[0].pads == (2, 2, 1, 1)


def test_names_are_unique_and_several_outputs_keep_their_order() -> None:
    network = _network(lambda m, x: (m[0](m[0](x)), x), Conv(3, 3, 1))
    assert [node.name for node in network.nodes] == ["input", "m.0", "m.0#2"]
    assert [node.layer for node in network.layers] == ["m.0", "m.0"]
    assert network.outputs == ("m.0#2", "input")


# Modules as text


def _read(text: str) -> Network:
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(text)
        return read_network(module.operation).network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module {}", "expected one func.func with a body, found 0"),
        ("func.func private @f(tensor<1xf32>)", "expected one func.func with a body, found 0"),
        ("func.func @f() { return } func.func @g() { return }", "found 2"),
        ("func.func @f(%x: tensor<?x3xf32>) { return }", r"argument 0 has type tensor<\?x3xf32>; expected a .* static"),
        ("func.func @f(%x: f32) { return }", "argument 0 has type f32"),
        (
            "func.func @f(%x: tensor<4xf32>, %n: tensor<2xf32>) -> tensor<?xf32> {\n"
            '%r = "test.resize"(%x) : (tensor<4xf32>) -> tensor<?xf32>\nreturn %r : tensor<?xf32>\n}',
            r"test.resize has type tensor<\?xf32>",
        ),
        (
            "func.func @f(%x: tensor<4xf32>) -> f32 {\n%c = arith.constant 1.0 : f32\nreturn %c : f32\n}",
            "reads a value of type f32 that no known operation made",
        ),
    ],
)
def test_modules_that_are_no_network(text: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        _read(text)


def test_several_arguments_and_results_of_unknown_operations() -> None:
    network = _read("""
      func.func @f(%x: tensor<4xf32>, %y: tensor<4xf32>) -> tensor<4xi64> {
        %r:2 = "test.sort"(%x, %y) : (tensor<4xf32>, tensor<4xf32>) -> (tensor<4xf32>, tensor<4xi64>)
        return %r#1 : tensor<4xi64>
      }""")
    assert [(n.name, n.kind, n.inputs) for n in network.nodes] == [
        ("input0", "input", ()),
        ("input1", "input", ()),
        ("float", "float", ("input0", "input1")),
        ("float#2", "float", ("input0", "input1")),
    ]
    assert network.outputs == ("float#2",)


def test_scalars_are_looked_through() -> None:
    network = _read("""
      func.func @f(%x: tensor<4xf32>) -> tensor<2xf32> {
        %i = arith.constant 0 : index
        %s = tensor.extract %x[%i] : tensor<4xf32>
        %e = tensor.empty() : tensor<2xf32>
        %r = linalg.fill ins(%s : f32) outs(%e : tensor<2xf32>) -> tensor<2xf32>
        return %r : tensor<2xf32>
      }""")
    assert _kinds(network) == [("float", ("input",))]


QDQ = """
  !act = !quant.uniform<u8:f32, 0.5:3>
  !w = !quant.uniform<i8<-127:127>:f32:0, {0.5, 0.25}>
  func.func @f(%x: tensor<1x1x4x4xf32>) -> tensor<1x2x4x4xf32> {
    %xq = quant.qcast %x : tensor<1x1x4x4xf32> to tensor<1x1x4x4x!act>
    %xd = quant.dcast %xq : tensor<1x1x4x4x!act> to tensor<1x1x4x4xf32>
    %w = arith.constant dense<[[[[1.0]]], [[[2.0]]]]> : tensor<2x1x1x1xf32>
    %wq = quant.qcast %w : tensor<2x1x1x1xf32> to tensor<2x1x1x1x!w>
    %wd = quant.dcast %wq : tensor<2x1x1x1x!w> to tensor<2x1x1x1xf32>
    %zero = arith.constant dense<0.0> : tensor<1x2x4x4xf32>
    %y = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%xd, %wd : tensor<1x1x4x4xf32>, tensor<2x1x1x1xf32>)
      outs(%zero : tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
    return %y : tensor<1x2x4x4xf32>
  }"""


def test_quantized_networks_read_alike_and_report_their_types() -> None:
    with ir.Context():
        module = ir.Module.parse(QDQ)
        reading = read_network(module.operation)
        assert _kinds(reading.network) == [("conv", ("input",))]
        assert len(reading.sites["input"].qcasts) == 1
        assert reading.sites["conv"].qcasts == []
        assert "0:f32" not in str(reading.sites["conv"].weight_type)
        assert "{5.000000e-01" in str(reading.sites["conv"].weight_type)
        weight = reading.network.layers[0].weight
        assert weight is not None
        assert weight.reshape(-1).tolist() == [1, 2]
        (source,) = reading.sites["conv"].sources
        assert source.owner.name == "quant.dcast"
