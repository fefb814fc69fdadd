"""From torch to linalg: names, weights, and one line when a model does not lower."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch_mlir import ir

from mlir_passes.ir.build import constant_array, layer_of, walk
from quantune.errors import ImportFailed, UsageError
from quantune.frontend.importer import import_module, import_program

X = torch.zeros(1, 3, 8, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 5)})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.body(x).mean((2, 3))
        return self.heads["a"](pooled), self.heads["b"](pooled)


def test_layers_carry_their_module_path() -> None:
    model = import_module(Block(), X, "block")
    assert model.name == "block"
    assert [(node.kind, node.layer) for node in model.network.nodes] == [
        ("input", ""),
        ("conv", "body.0"),
        ("clamp", "body.2"),
        ("avgpool", "mean"),
        ("matmul", "heads.a"),
        ("matmul", "heads.b"),
    ]
    assert model.network.outputs == ("heads.a", "heads.b")
    assert model.input_shape == (1, 3, 8, 8)
    module = ir.Module.parse(model.bytecode, context=ir.Context())
    named = {layer_of(op): op for op in walk(module.operation) if op.name.startswith("linalg.conv")}
    assert list(named) == ["body.0"]
    assert named["body.0"].location.name_str == "body.0"


def test_weights_are_readable_constants_of_the_module() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    model = import_module(net, X, "net")
    module = ir.Module.parse(model.bytecode, context=ir.Context())
    arrays = [constant_array(op.results[0]) for op in walk(module.operation) if op.name == "arith.constant"]
    for parameter in net.parameters():
        expected = parameter.detach().numpy()
        assert any(a is not None and a.shape == expected.shape and np.array_equal(a, expected) for a in arrays)
    assert b"dense_resource" not in str(module).encode()


def test_the_model_is_not_changed() -> None:
    torch.manual_seed(0)
    net = Block()
    net.train()
    net.heads.eval()
    before = copy.deepcopy(net.state_dict())
    import_module(net, X, "net")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.body[1].training
    assert not net.heads.training


def test_the_fingerprint_depends_on_the_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    first = import_module(net, X, "net").fingerprint
    assert import_module(net, X, "other name").fingerprint == first
    with torch.no_grad():
        net[0].bias[0] += 1
    assert import_module(net, X, "net").fingerprint != first


def test_programs_import_as_modules_do(tmp_path: str) -> None:
    torch.manual_seed(0)
    net = Block().eval()
    program = torch.export.export(net, (X,), strict=False)
    assert [n.layer for n in import_program(program, "p").network.layers] == ["body.0", "heads.a", "heads.b"]


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 4, 1), Odd()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.stem(x))


class Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft2(x).real


def test_an_unsupported_operator_is_named_with_its_layer(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImportFailed) as caught:
        import_module(Unsupported(), X, "net")
    assert str(caught.value) == "model 'net' cannot be lowered: no lowering for operator 'aten.fft_fft2' in layer 'odd'"
    assert capfd.readouterr().err == ""


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_a_model_that_cannot_be_exported_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImportFailed, match=r"model 'net' cannot be exported by torch\.export: ") as caught:
        import_module(DataDependent(), X, "net")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_wrong_shape_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"'net' does not run on f32 images of shape .*channels.*--image-shape"):
        import_module(nn.Conv2d(4, 2, 1), X, "net")


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_weights_of_another_type_are_one_line(kind: torch.dtype) -> None:
    expected = rf"model 'net': 'weight' is {str(kind)[6:]}, expected float32: call \.float\(\)"
    with pytest.raises(UsageError, match=expected):
        import_module(nn.Conv2d(3, 2, 1).to(kind), X, "net")


class Largest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.topk(x.flatten(1), 3).values


def test_operations_without_an_integer_form_import_as_float() -> None:
    kinds = {node.kind for node in import_module(Largest(), X, "net").network.nodes}
    assert "float" in kinds


@pytest.mark.parametrize("kind", [AssertionError, KeyError, TypeError, RecursionError, IndexError])
def test_whatever_the_import_raises_is_one_line_that_names_the_operator(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        print("noise")
        os.write(2, b"noise of C++\n")
        raise kind("Heterogeneous lists\nare not supported")

    monkeypatch.setattr("torch_mlir.extras.fx_importer.GraphNodeImporter._import_torch_op_overload", fail)
    with pytest.raises(ImportFailed) as caught:
        import_module(nn.Sequential(nn.Conv2d(3, 4, 3)), X, "net")
    first = "Heterogeneous lists" if kind is not KeyError else "'Heterogeneous lists\\nare not supported'"
    assert str(caught.value) == (
        f"model 'net' cannot be lowered: operator 'aten.convolution.default' in layer '0': {first}"
    )
    assert capfd.readouterr() == ("", "")


def test_a_fold_that_fails_is_an_import_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(program: object) -> None:
        raise AssertionError("no such slot")

    monkeypatch.setattr("quantune.frontend.importer.fold_batch_norms", fail)
    with pytest.raises(ImportFailed, match="model 'net' cannot be lowered: no such slot"):
        import_module(nn.Sequential(nn.Conv2d(3, 4, 3)), X, "net")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda net: net[0].weight.__setitem__((1, 2, 0, 0), np.nan),
            "layer '0': 1 of 108 numbers of its weight",
        ),
        (lambda net: net[0].bias.__setitem__(1, np.inf), "layer '0': 1 of 4 numbers of its bias are NaN or infinite"),
        (lambda net: net[1].running_var.fill_(-1.0), "layer '0': 108 of 108 numbers of its weight are NaN"),
        (
            lambda net: (net[0].weight.fill_(1e30), net[1].weight.fill_(1e30)),
            "layer '0': 108 of 108 numbers of its weight",
        ),
        (lambda net: net[3].bias.fill_(np.nan), "layer '3': 5 of 5 numbers of its bias are NaN"),
    ],
    ids=["weight", "bias", "variance", "product", "head"],
)
def test_numbers_that_are_none_are_refused(spoil: Callable[[nn.Sequential], object], line: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    with torch.no_grad():
        spoil(net)
    with pytest.raises(UsageError) as caught:
        import_module(net, X, "net")
    assert f"model 'net': {line}" in str(caught.value)
