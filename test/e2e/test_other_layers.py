"""Transposed convolutions and convolutions of rows, in integers: programs equal numpy bit for bit, and torch nearly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from quantized import (
    LAYOUTS,
    Form,
    assert_same_bits,
    call,
    compiled,
    is_exact,
    lower,
    plan_from_images,
    reference,
    sqnr_db,
)
from torch import nn

from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig

IMAGES, ROWS = (2, 3, 6, 7), (2, 3, 16)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed": (lambda: nn.ConvTranspose2d(3, 5, 3, 2, 1, 1), IMAGES),
    "transposed without gaps": (lambda: nn.ConvTranspose2d(3, 5, (3, 2), 1, bias=False), IMAGES),
    "transposed, two by two": (lambda: nn.ConvTranspose2d(3, 5, 2, 2), IMAGES),
    "rows": (lambda: nn.Conv1d(3, 5, 3, 2, 1), ROWS),
    "rows, dilated": (lambda: nn.Conv1d(3, 5, 3, dilation=2, bias=False), ROWS),
}


class Net(nn.Module):
    """The layer, and another behind a bound."""

    def __init__(self, layer: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.layer = layer
        self.last = nn.Conv2d(5, 4, 1) if dimensions == 4 else nn.Conv1d(5, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.layer(x)))


@pytest.mark.parametrize("name", LAYERS)
def test_programs_equal_numpy(name: str) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    net = Net(layer(), len(shape)).eval()
    model = import_module(net, torch.zeros(shape), "net")
    assert "float" not in [node.kind for node in model.network.nodes]
    assert len(model.network.layers) == 2
    first, x = np.random.default_rng(0).normal(0, 2, (2, *shape)).astype(np.float32)
    plan = plan_from_images(model, first, QuantConfig())
    assert is_exact(model, plan)
    expected = reference(model, plan, x)
    with torch.no_grad():
        exact = net(torch.from_numpy(x)).numpy()
    assert sqnr_db(exact, expected[0]) > 20
    for layout in LAYOUTS:
        assert_same_bits(call(compiled(lower(model, plan, Form(layout))), x), expected)
    (f32,) = call(compiled(lower(model, None, Form(), "f32")), x)
    np.testing.assert_allclose(f32, exact, atol=1e-4)
