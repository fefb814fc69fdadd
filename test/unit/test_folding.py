"""Batch norms disappear into convolutions, or become a scale and a shift; the values stay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from quantune.frontend.folding import fold_batch_norms
from quantune.frontend.importer import import_module

X = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 4, 8, 8)).astype(np.float32))


def _norm(channels: int, **options: object) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(channels)
    for tensor, low, high in (
        (norm.running_mean, -1.0, 1.0), (norm.running_var, 0.2, 3.0), (norm.weight, -2.0, 2.0), (norm.bias, -1.0, 1.0),
    ):  # fmt: skip
        if tensor is not None:
            with torch.no_grad():
                tensor.uniform_(low, high, generator=generator)
    return norm


class SharedConv(nn.Module):
    """A convolution whose result goes to a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), _norm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class SharedWeights(nn.Module):
    """One convolution, two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), _norm(4), _norm(4, eps=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.conv(self.one(self.conv(x))))


class SharedNorm(nn.Module):
    """Two convolutions, one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), _norm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.two(self.norm(self.one(x))))


class TiedWeights(nn.Module):
    """Two convolutions with one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), _norm(4), _norm(4, eps=0.1)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.two(self.a(self.one(x))))


class AfterConcat(nn.Module):
    """A batch norm of two tensors together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), _norm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.cat([self.conv(x), x], 1))


def _flat(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *modules)


def _norm1d() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(5)
    norm.load_state_dict(_norm(5).state_dict())
    return norm


MODELS = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), _norm(6)), 1, 0),
    "conv without bias": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), _norm(6)), 1, 0),
    "same padding": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), _norm(6)), 1, 0),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), _norm(8)), 1, 0),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), _norm(6)), 1, 0),
    "norm without affine": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), _norm(6, affine=False)), 1, 0),
    "two in a row": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), _norm(6), _norm(6)), 2, 0),
    "norm first": (lambda: nn.Sequential(_norm(4), nn.Conv2d(4, 6, 3)), 1, 2),
    "norm after relu": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), _norm(6)), 1, 2),
    "after a concatenation": (AfterConcat, 1, 2),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3), _norm(6)), 1, 2),
    "linear": (lambda: _flat(nn.Linear(256, 5), _norm1d()), 1, 2),
    "conv with another reader": (SharedConv, 1, 2),
    "conv called twice": (SharedWeights, 2, 4),
    "norm called twice": (SharedNorm, 0, None),
    "weights under two names": (TiedWeights, 2, None),
}


@pytest.mark.parametrize("name", MODELS)
def test_folded_models_compute_the_same(name: str) -> None:
    make, expected, affine_operations = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    program = torch.export.export(copy.deepcopy(model), (X,), strict=False)
    assert fold_batch_norms(program) == expected
    with torch.no_grad():
        np.testing.assert_allclose(program.module()(X).numpy(), model(X).numpy(), rtol=1e-4, atol=2e-5)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("batch_norm" in call for call in calls) == (expected == 0)
    if affine_operations is not None:
        others = 1 if name == "conv with another reader" else 0
        assert sum(call in ("aten.mul.Tensor", "aten.add.Tensor") for call in calls) == affine_operations + others


def test_the_folded_bias_is_one_of_the_convolution() -> None:
    network = import_module(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), _norm(6)), X, "net").network
    assert [node.kind for node in network.nodes] == ["input", "conv"]
    assert np.abs(network.layers[0].bias).min() > 0


def test_training_norms_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)).eval()
    program = torch.export.export(model, (X,), strict=False)
    assert fold_batch_norms(program) == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, about its own trees
def test_decomposed_programs_fold_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), _norm(6), nn.ReLU(), _norm(6)).eval()
    program = torch.export.export(copy.deepcopy(model), (X,), strict=False).run_decompositions()
    assert any("_native_batch_norm_legit_no_training" in str(node.target) for node in program.graph.nodes)
    assert fold_batch_norms(program) == 2
    with torch.no_grad():
        np.testing.assert_allclose(program.module()(X).numpy(), model(X).numpy(), rtol=1e-4, atol=2e-5)
