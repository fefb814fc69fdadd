"""f32 networks of kernels compute what torch computes, and leave nothing for generic code that a kernel covers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from integer_layers import RUNNABLE, run_on_cpu
from torch import Tensor, nn

from quantune.api import ModelOptions, import_any
from quantune.cache import ArtifactCache
from quantune.compiler.pipelines import Debugging, parse
from quantune.compiler.pipelines import run as run_passes


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, body: Callable[[nn.ModuleDict, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body, self.layers = body, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.layers, x)


def depthwise(c: int, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(c, c, kernel, groups=c, **options)  # type: ignore[arg-type]


def shuffled(net: nn.ModuleDict, x: Tensor) -> Tensor:
    x = net["stem"](x)
    for _ in range(2):
        a, b = x.chunk(2, dim=1)
        b = net["last"](net["middle"](net["first"](b).relu()))
        n, c, h, w = (*a.shape[:1], 2 * a.shape[1], *a.shape[2:])
        x = torch.cat([a, b], 1).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return x


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int]]] = {
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 20, 3, 2, 1), nn.ReLU6(), depthwise(20, padding=1), nn.ReLU6(), depthwise(20, 5, stride=2),
            depthwise(20, (1, 7), padding=(0, 3)), depthwise(20, 3, dilation=2, padding=2), nn.Conv2d(20, 33, 1),
        ),
        (1, 3, 43, 39),
    ),
    "few channels": (lambda: nn.Sequential(nn.Conv2d(1, 16, 3), depthwise(16, padding=1), nn.ReLU()), (2, 1, 9, 7)),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 18, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(), nn.MaxPool2d(3, 1, 1),
            nn.AvgPool2d(3, 2, 1), nn.Conv2d(18, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16),
        ),
        (3, 4, 22, 19),
    ),
    "joined": (
        lambda: Net(
            lambda net, x: net["after"](torch.cat([net["a"](x), net["b"](net["a"](x)), net["c"](x)], 1)),
            a=nn.Conv2d(3, 16, 1), b=nn.Conv2d(16, 21, 3, padding=1), c=nn.Sequential(nn.Conv2d(3, 37, 1), nn.ReLU()),
            after=nn.Conv2d(74, 16, 3, padding=1),
        ),
        (2, 3, 9, 10),
    ),
    "shuffled": (
        lambda: Net(
            shuffled, stem=nn.Conv2d(3, 44, 3, 2), first=nn.Conv2d(22, 22, 1), middle=depthwise(22, padding=1),
            last=nn.Conv2d(22, 22, 1),
        ),
        (1, 3, 17, 19),
    ),
    "far pixels and residuals": (
        lambda: Net(
            lambda net, x: torch.relu(net["c"](torch.relu(net["b"](net["a"](x)))) + net["a"](x) + net["d"](x)),
            a=nn.Conv2d(3, 512, 1), b=nn.Conv2d(512, 24, 3, padding=1), c=nn.Conv2d(24, 512, 1), d=nn.Conv2d(3, 512, 1),
        ),
        (2, 3, 6, 7),
    ),
}  # fmt: skip


# The fastest variant always, the others where there is time.
_CHOSEN = [RUNNABLE[0], *(pytest.param(*each.values, marks=[*each.marks, pytest.mark.slow]) for each in RUNNABLE[1:])]


@pytest.mark.parametrize("variant", _CHOSEN)
@pytest.mark.parametrize("name", NETS)
def test_network_equals_torch(name: str, variant: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    make, shape = NETS[name]
    network, x = make().eval(), torch.randn(shape)
    n, c, h, w = shape
    imported = import_any(network, ModelOptions(shape=(c, h, w), batch=n), ArtifactCache(tmp_path))
    module = parse(imported.bytecode)
    passes = f"quantune-to-nhwc,quantune-lower-to-cpu-kernels{{features={variant}}}"
    run_passes(module, passes, Debugging())
    text = str(module)
    assert not re.search(r"= (?:linalg\.(?:conv|depthwise|pool)|tensor\.(?:pad|concat))", text)
    assert "permutation = [0, 2, 3, 1]" not in text
    (y,) = run_on_cpu.load_on_cpu(run_on_cpu.compile_for_cpu(text))(x.numpy())
    with torch.inference_mode():
        wanted = network(x).numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
