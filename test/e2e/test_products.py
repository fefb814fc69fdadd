"""Products of two tensors in integers: squeeze and excitation, and two images; compiled programs equal numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantized import LAYOUTS, Form, assert_same_bits, call, compiled, is_exact, lower, plan_from_images, reference
from torch import nn

from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig

SHAPE = (2, 3, 8, 8)


class Products(nn.Module):
    """Squeeze and excitation, a clamped product of two images behind it, and one of two vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.reduce, self.expand = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.other, self.last, self.left, self.right = (
            nn.Conv2d(12, 12, 1), nn.Conv2d(12, 6, 3), nn.Linear(6, 5), nn.Linear(6, 5)
        )  # fmt: skip
        self.end = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.first(x))
        weight = torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        x = weight * x
        x = F.relu(x * self.other(x))
        x = self.last(x).mean((2, 3))
        return self.end(self.left(x) * self.right(x))


def _model() -> ImportedModel:
    return import_module(Products().eval(), torch.zeros(SHAPE), "products")


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        *((layout, QuantConfig()) for layout in LAYOUTS),
        ("target", QuantConfig(scheme="symmetric_uint8", granularity="tensor")),
        ("target", QuantConfig(scheme="symmetric_power2")),
    ],
    ids=str,
)
def test_programs_equal_numpy(layout: str, config: QuantConfig) -> None:
    model = _model()
    assert [node.kind for node in model.network.nodes].count("product") == 3
    assert all(node.kind != "float" for node in model.network.nodes)
    first, x = np.random.default_rng(0).normal(0, 2, (2, *SHAPE)).astype(np.float32)
    plan = plan_from_images(model, first, config)
    assert is_exact(model, plan)
    lowered = lower(model, plan, Form(layout, outlined=layout == "nhwc"))
    assert not any(why.startswith("in f32") for why in lowered.reasons.values())
    assert_same_bits(call(compiled(lowered), x), reference(model, plan, x))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.amax(1, keepdim=True), lambda x: x.mean((0, 2, 3), keepdim=True), lambda x: x[:, :, :1],
        lambda x: x.flip(2), lambda x: x.mean((2, 3), keepdim=True),
    ],
    ids=["one a position", "one for the batch", "one row", "an image", "one a channel"],
)  # fmt: skip
def test_products_take_any_broadcast(other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * other(x)

    network = import_module(Net(), torch.zeros(SHAPE), "net").network
    assert network.nodes[-1].kind == "product"
    assert network.nodes[-1].inputs[0] == "input"
