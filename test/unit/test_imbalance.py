"""Channel imbalance: what is computed stays, what a quantizer sees does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantune.frontend.models import calibrate_batch_norms
from quantune.zoo.imbalance import LARGEST, imbalance
from quantune.zoo.recipes import RECIPES

ARCHITECTURES = {recipe.architecture: recipe for recipe in RECIPES.values()}


def _logits(model: nn.Module, size: int) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.rand(2, 3, size, size))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_compute_the_same_with_other_channels(architecture: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture].network()
    calibrate_batch_norms(model, (3, 64, 64))
    before, kernels = _logits(model, 64), {n: p.clone() for n, p in model.named_parameters() if p.ndim == 4}
    assert imbalance(model, 1.75) > 500
    after = _logits(model, 64)
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())
    changed = [name for name, p in model.named_parameters() if name in kernels and not torch.equal(p, kernels[name])]
    assert len(changed) >= len(kernels) // 3
    for name, p in model.named_parameters():
        if name in kernels:
            ratio = (p / kernels[name])[kernels[name] != 0].log2()
            assert torch.equal(ratio, ratio.round())
            assert ratio.abs().max() <= 2 * LARGEST


def test_the_same_seed_gives_the_same_scales() -> None:
    def kernel(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
        imbalance(model, 1.5, size=4, seed=seed)
        return model[0].weight  # type: ignore[return-value]

    assert torch.equal(kernel(0), kernel(0))
    assert not torch.equal(kernel(0), kernel(1))


class Chain(nn.Module):
    """Two convolutions with ``between`` in the middle."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Conv2d(3, 8, 3, padding=1), between, nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "count"),
    [
        (nn.ReLU(), 8),
        (nn.MaxPool2d(2), 8),
        (nn.AvgPool2d(2), 8),
        (nn.Identity(), 8),
        (nn.BatchNorm2d(8), 8),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), 16),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 16),
        (nn.ReLU6(), 0),
        (nn.Hardswish(), 0),
        (nn.Sigmoid(), 0),
        (nn.Softmax(1), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_scales_pass_through_what_is_homogeneous(between: nn.Module, count: int) -> None:
    torch.manual_seed(0)
    model = Chain(between).eval()
    before = _logits(model, 8)
    assert imbalance(model, 1.75, size=8) == count
    assert torch.allclose(_logits(model, 8), before, rtol=1e-5, atol=1e-6)


class Sums(nn.Module):
    """A residual sum, a sum with the image, a concatenation that is read in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)
        self.d, self.e = nn.Conv2d(9, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        b = self.b(a) + a
        with_image = self.c(b) + x
        low, high = torch.cat((b, with_image), 1).chunk(2, 1)[0:2]
        return self.d(torch.cat((low, high[:, :4]), 1)) + self.e(with_image)


def test_sums_share_scales_and_concatenations_do_not() -> None:
    torch.manual_seed(0)
    model = Sums().eval()
    before = _logits(model, 8)
    assert imbalance(model, 1.75, size=8) == 6  # of a and b together; the image and the result keep theirs
    assert torch.allclose(_logits(model, 8), before, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(("model", "line"), [(Twice(), "layer layer is called twice"), (Untraceable(), "traced")])
def test_what_it_cannot_do(model: nn.Module, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        imbalance(model, 1.0, size=8)
