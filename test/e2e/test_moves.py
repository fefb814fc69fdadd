"""What picks values or puts zeros between them, in integers: programs equal numpy bit for bit, and torch nearly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantized import LAYOUTS, Form, assert_same_bits, call, compiled, lower, plan_from_images, reference, sqnr_db
from torch import nn

from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig

SHAPE = (2, 3, 6, 8)
CASES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "nearest, twice as large": (lambda x: F.interpolate(x, scale_factor=2), "gather"),
    "nearest, any size": (lambda x: F.interpolate(x, size=(9, 5)), "gather"),
    "nearest, exact": (lambda x: F.interpolate(x, size=(9, 5), mode="nearest-exact"), "gather"),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "blend"),
    "bilinear, corners aligned": (
        lambda x: F.relu(F.interpolate(x, size=(11, 5), mode="bilinear", align_corners=True)),
        "blend",
    ),
    "mirrored": (lambda x: x.flip(2), "gather"),
    "reflected border": (lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), "gather"),
    "replicated border": (lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"), "gather"),
    "zeros around": (lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2), "surround"),
    "channels of zeros": (lambda x: F.pad(F.relu(x), (0, 0, 0, 0, 1, 2)), "surround"),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), "transpose"),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), "transpose"),
    "every second": (lambda x: x[:, ::2, 1::2, ::3], "slice"),
    "space to depth": (lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), "slice"),
    "chunks": (lambda x: torch.cat(x.chunk(4, 1)[::-1], 1), "slice"),
    "parts": (lambda x: torch.cat(x.split([1, 5, 2], 1)[1:], 1), "slice"),
}
SLOW = ("nearest, exact", "channels of zeros", "pixel unshuffle", "space to depth", "parts")


class Around(nn.Module):
    """A layer, a function, and a layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first = function, nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(function(self.first(torch.zeros(SHAPE))).shape[1], 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_programs_equal_numpy(name: str) -> None:
    function, kind = CASES[name]
    net = Around(function).eval()
    model = import_module(net, torch.zeros(SHAPE), "net")
    kinds = [node.kind for node in model.network.nodes]
    assert "float" not in kinds
    assert kind in kinds
    first, x = np.random.default_rng(0).normal(0, 2, (2, *SHAPE)).astype(np.float32)
    plan = plan_from_images(model, first, QuantConfig())
    expected = reference(model, plan, x)
    with torch.no_grad():
        assert sqnr_db(net(torch.from_numpy(x)).numpy(), expected[0]) > 20
    for layout in LAYOUTS:
        lowered = lower(model, plan, Form(layout))
        assert not any(why.startswith("in f32") for why in lowered.reasons.values()), lowered.reasons
        assert_same_bits(call(compiled(lowered), x), expected)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: F.pad(x, (1, 1, 1, 1), value=0.5), "tensor.pad with something else than zeros"),
        (lambda x: x[:, :, torch.arange(6), torch.arange(6)], "a gather into another number of dimensions"),
        (lambda x: torch.gather(x, 3, x.argmax(3, keepdim=True)), "a gather"),
    ],
    ids=["other number", "diagonal", "places from the image"],
)
def test_what_stays_f32_says_why(function: Callable[[torch.Tensor], torch.Tensor], why: str) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x) * 2

    network = import_module(Net(), torch.zeros(SHAPE), "net").network
    assert any(node.detail.startswith(why) for node in network.nodes), [node.detail for node in network.nodes]
