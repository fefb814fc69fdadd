"""Networks with operations of which some have no integer form: these run in f32, and what is around in integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from quantized import Form, call, compiled, lower, sqnr_db
from torch import nn

from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.data.base import ImageSource
from quantune.data.splits import Split
from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig
from quantune.tuning.builder import Builder

SHAPE = (3, 10, 12)
INT8 = QuantConfig(calib=4)


class Images(ImageSource):
    """Smooth random images."""

    name, classes, shape = "images", None, SHAPE

    def __init__(self) -> None:
        noise = np.random.default_rng(0).normal(0, 1, (5, *SHAPE)).astype(np.float32)
        self.images = noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        return self.images[index], 0


class Around(nn.Module):
    """A convolution, a function, and a convolution."""

    def __init__(self, function: Callable, channels: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.function(self.first(x)))


def _five_dimensions(x: torch.Tensor) -> torch.Tensor:
    groups = F.relu(x).view(1, 2, 3, 10, 12)
    return torch.cat([groups[:, 1], groups[:, 0].flip(1)], 1)


CASES: dict[str, tuple[Callable, int]] = {
    "circular borders": (lambda x: F.pad(F.relu(x), (1, 2, 2, 1), mode="circular"), 6),
    "five dimensions": (_five_dimensions, 6),
    "average that counts no border": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 6),
    "average rounded up": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), 6),
    "uneven adaptive average": (lambda x: F.adaptive_avg_pool2d(x, 4), 6),
    "a constant": (lambda x: torch.cat([x, torch.full((1, 1, 10, 12), 0.3)], 1), 7),
}
SLOW = ("average rounded up", "a constant")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_around_float_operations(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    function, channels = CASES[name]
    net, source = Around(function, channels).eval(), Images()
    model = import_module(net, torch.zeros(1, *SHAPE), "net")
    cache = ArtifactCache(tmp_path_factory.mktemp("cache"))
    builder = Builder(model, Target("cpu"), calib=Split(source, (0, 1, 2, 3)), cache=cache, sizes=(4,))
    x = source.images[4:]
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    (f32,) = call(compiled(builder.lower(QuantConfig(precision="f32"))), x)
    np.testing.assert_allclose(f32, expected, atol=1e-4)
    plan = builder.plan(INT8)
    assert plan is not None
    assert set(plan.weights) == {node.name for node in model.network.layers}
    results = [call(compiled(lower(model, plan, Form(layout))), x)[0] for layout in ("nchw", "target")]
    # An uneven adaptive average is a chain of additions, each of which rounds.
    assert min(sqnr_db(expected, result) for result in results) > (15 if "uneven" in name else 20)
    # The layouts may differ by the contraction of f32 sums, hence by a step here and there.
    np.testing.assert_allclose(results[0], results[1], atol=0.02 * np.abs(expected).max())
