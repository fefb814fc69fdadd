"""The room of functions of one value: what is one, of which tensor, what it computes, and what is nearly one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_mlir import ir

from mlir_passes.functions import IDENTITY
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import Network
from mlir_passes.ops import table
from mlir_passes.ops.reader import read_network
from quantune.frontend.importer import import_module
from quantune.quantization.plan import integer_layers, lay_out

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu, "hard swish": F.hardswish, "hard sigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid,
    "gelu": F.gelu, "tanh": torch.tanh, "elu": F.elu, "leaky relu": F.leaky_relu, "mish": F.mish,
    "softplus": F.softplus, "celu": lambda x: F.celu(x, 0.5), "selu": F.selu, "soft sign": F.softsign,
    "log sigmoid": F.logsigmoid, "hard shrink": F.hardshrink, "tanh shrink": F.tanhshrink,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)), "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "two of them": lambda x: F.silu(F.hardswish(x)), "a clamp behind one": lambda x: F.silu(x).clamp(0.1, 2.0),
    "a number added": lambda x: x + 1.0, "its square": lambda x: x * x, "a power": lambda x: x**3,
    "itself and its function": lambda x: x + torch.tanh(x), "minus itself": lambda x: 1 - x,
}  # fmt: skip


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))


def _network(function: Callable[..., torch.Tensor]) -> Network:
    return import_module(Between(function).eval(), torch.zeros(1, 3, 4, 4), "net").network


def _kinds(network: Network) -> list[str]:
    return [node.kind for node in network.nodes]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_value_are_one_node_that_computes_them(name: str) -> None:
    network = _network(FUNCTIONS[name])
    assert _kinds(network) == ["input", "conv", "table", "conv"]
    node = network.nodes[2]
    assert node.inputs == ("first",)
    assert node.function is not None
    x = np.linspace(-25, 25, 2001, dtype=np.float32)
    expected = FUNCTIONS[name](torch.from_numpy(x).double().reshape(1, 1, 1, -1)).numpy().reshape(-1)
    np.testing.assert_allclose(node.function(x), expected, rtol=2e-6, atol=1e-7)


def test_gelu_by_tanh_as_torch_mlir_writes_it() -> None:
    """With sqrt(2 / pi) as 0.797724 there, of which the f32 network has the same error."""
    node = _network(lambda x: F.gelu(x, approximate="tanh")).nodes[2]
    assert node.function is not None
    x = torch.linspace(-8, 8, 999)
    np.testing.assert_allclose(node.function(x.numpy()), F.gelu(x, approximate="tanh").numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: F.relu(x), ["clamp"]),
        (lambda x: F.silu(F.relu(x)), ["clamp", "table"]),
        (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), ["avgpool", "table", "product"]),
        (lambda x: torch.tanh(x) * torch.sigmoid(x.flip(1)), ["table", "gather", "table", "product"]),
        (lambda x: (lambda s: s + s.mean((2, 3), keepdim=True))(torch.sigmoid(x)), ["table", "avgpool", "add"]),
        (lambda x: F.prelu(x, torch.arange(4) * 0.1), ["table"]),
    ],
    ids=["clamp", "of a clamp", "one number a channel", "of two", "read twice", "other numbers a channel"],
)
def test_what_is_no_function_of_one_value_is_read_as_before(function: Callable, kinds: list[str]) -> None:
    assert _kinds(_network(function)) == ["input", "conv", *kinds, "conv"]


def test_a_tensor_that_is_read_elsewhere_is_kept() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            s = torch.sigmoid(x)
            return s, torch.tanh(x * s)

    network = import_module(Net(), torch.zeros(1, 4, 4, 4), "net").network
    assert [(node.kind, node.inputs) for node in network.nodes[1:]] == [
        ("table", ("input",)), ("table", ("input",))
    ]  # fmt: skip
    sigmoid, product = (node.function for node in network.nodes[1:])
    assert sigmoid is not None
    assert product is not None
    assert sigmoid(0.0) == 0.5
    assert product(2.0) == np.float32(np.tanh(2 / (1 + np.exp(-2))))


def test_a_step_that_two_functions_take_over_is_gone() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            s = torch.sigmoid(x)
            return torch.cat([x * s, x - s], 1)

    network = import_module(Net(), torch.zeros(1, 4, 4, 4), "net").network
    assert [(node.kind, node.inputs) for node in network.nodes[1:]] == [
        ("table", ("input",)), ("table", ("input",)), ("concat", ("mul", "sub"))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "first_is_integer", "expected"), [("int8", True, True), ("mixed", False, False)], ids=str
)
def test_functions_of_what_is_f32_stay_f32(precision: str, first_is_integer: bool, expected: bool) -> None:
    """Quantizing what a function reads loses precision, which is only worth it where that is quantized anyway."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SiLU(), nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
    )
    network = import_module(net.eval(), torch.zeros(1, 3, 4, 4), "net").network
    layers = integer_layers(network, precision)
    layout = lay_out(network, layers)
    assert ("0" in layers) == first_is_integer
    assert [name in layout.integer for name in ("1", "3")] == [expected] * 2
    assert ("0" in layout.groups) == expected
    assert "3" in layout.groups


def test_functions_of_the_image_stay_f32() -> None:
    net = nn.Sequential(nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(3, 4, 1))
    network = import_module(net.eval(), torch.zeros(1, 3, 4, 4), "net").network
    assert set(lay_out(network, integer_layers(network, "int8")).groups) == {"1"}


# One operation, changed

MAPS = "#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>\n"
IMAGE = "tensor<2x2x2x2xf32>"


def _module(body: str, maps: str = "#id, #id", last: str = "r") -> ir.Module:
    text = f"""{MAPS}func.func @main(%x: {IMAGE}) -> {IMAGE} {{
%c3 = arith.constant 3.0 : f32
%c6 = arith.constant 6.0 : f32
%zero = arith.constant 0.0 : f32
%e = tensor.empty() : {IMAGE}
%y = linalg.generic {{indexing_maps = [{maps}],
    iterator_types = ["parallel", "parallel", "parallel", "parallel"]}} ins(%x : {IMAGE}) outs(%e : {IMAGE}) {{
^bb0(%v: f32, %old: f32):
{body}
  linalg.yield %{last} : f32
}} -> {IMAGE}
return %y : {IMAGE}
}}"""
    return ir.Module.parse(text, context=ir.Context())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("%i = arith.fptosi %v : f32 to i32\n%r = arith.sitofp %i : i32 to f32", "arith.fptosi (no table"),
        ("%r = arith.addf %v, %old : f32", "arith.addf"),
        ("%n = linalg.index 0 : index\n%i = arith.index_cast %n : index to i32\n%f = arith.sitofp %i : i32 to f32\n"
         "%r = arith.addf %v, %f : f32", "linalg.index (no table"),
        ("%p = arith.cmpf ord, %v, %zero : f32\n%r = arith.select %p, %v, %zero : f32", "arith.cmpf (no table"),
    ],
    ids=["a whole number", "the start value", "a position", "whether it is a number"],
)  # fmt: skip
def test_other_bodies_stay_f32_and_say_why(body: str, reason: str) -> None:
    node = read_network(_module(body).operation).network.nodes[1]
    assert node.kind == "float"
    assert node.detail.startswith(reason)


def test_another_map_stays_f32() -> None:
    module = _module("%r = arith.addf %v, %c3 : f32", "affine_map<(d0, d1, d2, d3) -> (d0, d1, d3, d2)>, #id")
    assert read_network(module.operation).network.nodes[1].kind == "float"


@pytest.mark.parametrize("signed", [True, False])
def test_entries_stand_in_the_order_of_the_bits(signed: bool) -> None:
    low = -128 if signed else 0
    x = QuantSpec.per_tensor(0.5, low + 100, storage_min=low, storage_max=low + 255, signed=signed)
    found = table.entries(IDENTITY, x.stored, x.stored, (-128, 127))
    np.testing.assert_array_equal(found, np.arange(256, dtype=np.uint8).view(np.int8))
    bounded = table.entries(IDENTITY, x.stored, x.stored, (-5, 7))
    assert (bounded.min(), bounded.max()) == (-5, 7)
