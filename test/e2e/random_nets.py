"""Random small convolutional networks, drawn by hypothesis: values that print well, and their torch modules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.7, 1.3),
}
WEIGHTS = ("normal", "spread", "dead", "zero")
"""normal: of one scale. spread: channels differ by powers of two. dead: some channels nearly vanish and have a large
bias. zero: some channels are all zero."""


@dataclass(frozen=True)
class Layer:
    """A convolution of some grouping and what is applied to it; made smaller where it would not fit the image."""

    out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: int = 1
    grouping: str = "dense"
    bias: bool = True
    activation: str = "relu"


@dataclass(frozen=True)
class Residual:
    """x + convolution of x, and what is applied to the sum."""

    kernel: int = 3
    activation: str = "relu"


@dataclass(frozen=True)
class Concat:
    """A convolution of x, x itself, and x pooled, side by side."""

    out: int


@dataclass(frozen=True)
class Pool:
    """A max or average pool; only the maximum rounds up."""

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padded: bool
    ceil: bool


@dataclass(frozen=True)
class Shuffle:
    """A channel shuffle, where the channels can be split in two, and a slice."""

    sliced: bool


Step = Layer | Residual | Concat | Pool | Shuffle


@dataclass(frozen=True)
class Net:
    """Steps, how they end, and what weights and images are like.

    exact: weights and images on a coarse grid, on which f32 sums do not depend on their order.
    """

    shape: tuple[int, int, int, int]
    steps: tuple[Step, ...]
    head: str = "mean linear"
    weights: str = "normal"
    seed: int = 0
    offset: float = 0.0
    exact: bool = False

    def images(self, count: int = 1) -> NDArray[np.float32]:
        """``count`` batches of images, one after the other."""
        generator = np.random.default_rng(self.seed)
        n, *image = self.shape
        x = generator.normal(self.offset, 1, (count * n, *image)).astype(np.float32)
        return np.round(x * 16) / np.float32(16) if self.exact else x

    def module(self) -> nn.Module:
        """The network in torch, with its weights."""
        return _Module(self)


HEADS = ("mean linear", "flatten linear", "mean", "pooled", "map", "clamped map", "depthwise map")


@st.composite
def nets(draw: st.DrawFn, *, exact: bool = False) -> Net:
    """A network of one to five steps on images of 5 to 13 pixels."""
    size = st.integers(5, 13)
    steps = draw(
        st.lists(st.one_of(_layers(), _layers(), _RESIDUALS, _CONCATS, _POOLS, _SHUFFLES), min_size=1, max_size=5)
    )
    first = [draw(_layers())] if exact or draw(st.booleans()) else []
    has_layer = any(isinstance(step, Layer | Residual | Concat) for step in (*first, *steps))
    heads = HEADS if has_layer else [head for head in HEADS if head not in ("mean", "pooled")]
    return Net(
        (draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(size), draw(size)),
        (*first, *steps),
        draw(st.sampled_from(heads)),
        "normal" if exact else draw(st.sampled_from(WEIGHTS)),
        draw(st.integers(0, 1000)),
        draw(st.sampled_from((0.0, 0.5, 3.0))),
        exact,
    )


def _pairs(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(strategy, strategy)


def _layers() -> st.SearchStrategy[Layer]:
    return st.builds(
        Layer, st.integers(1, 9), _pairs(st.integers(1, 4)), _pairs(st.integers(1, 2)), _pairs(st.integers(0, 2)),
        st.integers(1, 2), st.sampled_from(("dense", "dense", "depthwise", "grouped")), st.booleans(),
        st.sampled_from(tuple(ACTIVATIONS)),
    )  # fmt: skip


_RESIDUALS = st.builds(Residual, st.sampled_from((1, 3)), st.sampled_from(tuple(ACTIVATIONS)))
_CONCATS = st.builds(Concat, st.integers(1, 5))
_POOLS = st.builds(
    Pool, st.sampled_from(("max", "average")), _pairs(st.integers(1, 3)), _pairs(st.integers(1, 2)), st.booleans(),
    st.booleans(),
)  # fmt: skip
_SHUFFLES = st.builds(Shuffle, st.booleans())


class _Module(nn.Module):
    """Builds each step for the shape that the one before it gives."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.generator = np.random.default_rng(net.seed + 1)
        self.steps = nn.ModuleList()
        shape = torch.Size(net.shape)
        for step in net.steps:
            made = self._make(step, shape)
            shape = made(torch.zeros(shape)).shape
            self.steps.append(made)
        channels, features = shape[1], math.prod(shape[1:])
        self.head = {
            "mean linear": lambda: nn.Sequential(_Mean(), nn.Linear(channels, 5)),
            "flatten linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(features, 5)),
            "mean": _Mean,
            "pooled": lambda: nn.Sequential(nn.AvgPool2d(tuple(shape[2:])), nn.Flatten()),
            "map": lambda: nn.Conv2d(channels, 3, 1),
            "clamped map": lambda: nn.Sequential(nn.Conv2d(channels, 3, 1), nn.ReLU6()),
            "depthwise map": lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        }[net.head]()
        self._fill(self.head)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return self.head(x)

    def _make(self, step: Step, shape: torch.Size) -> nn.Module:
        _, c, h, w = shape
        if isinstance(step, Layer):
            made: nn.Module = _layer(step, c, h, w)
        elif isinstance(step, Residual):
            made = _Residual(step, c)
        elif isinstance(step, Concat):
            made = _Concat(step, c)
        elif isinstance(step, Pool):
            made = _pool(step, h, w)
        else:
            made = _Shuffle(step)
        self._fill(made)
        return made

    def _fill(self, module: nn.Module) -> None:
        for layer in (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
            shape = tuple(layer.weight.shape)
            w = self.generator.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape)
            b = self.generator.normal(0, 0.3, shape[0])
            chosen = self.generator.random(shape[0]) < 0.4
            if self.net.weights == "spread":
                w *= np.exp2(self.generator.integers(-6, 6, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
            elif self.net.weights == "dead":
                w[chosen] *= 1e-9
                b[chosen] *= 20
            elif self.net.weights == "zero":
                w[chosen] = 0
            if self.net.exact:
                w, b = np.round(w * 64) / 64, np.round(b * 64) / 64
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(w))
                if layer.bias is not None:
                    layer.bias.copy_(torch.from_numpy(b))


def _layer(step: Layer, c: int, h: int, w: int) -> nn.Module:
    kernel, padding, dilation = step.kernel, step.padding, step.dilation
    if any(dilation * (k - 1) + 1 > size + 2 * p for k, size, p in zip(kernel, (h, w), padding, strict=True)):
        kernel, padding, dilation = (1, 1), (0, 0), 1
    groups, out = 1, step.out
    if step.grouping == "depthwise":
        groups, out = c, c * (1 + step.out % 2)
    elif step.grouping == "grouped":
        groups = 2 if c % 2 == 0 else 1
        out = groups * (1 + step.out // 2)
    conv = nn.Conv2d(c, out, kernel, step.stride, padding, dilation, groups, step.bias)
    return nn.Sequential(conv, _Apply(step.activation))


def _pool(step: Pool, h: int, w: int) -> nn.Module:
    kernel = (min(step.kernel[0], h), min(step.kernel[1], w))
    padding = (kernel[0] // 2, kernel[1] // 2) if step.padded else (0, 0)
    if step.kind == "max":
        return nn.MaxPool2d(kernel, step.stride, padding, ceil_mode=step.ceil)
    return nn.AvgPool2d(kernel, step.stride, padding)


class _Apply(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self.activation](x)


class _Residual(nn.Module):
    def __init__(self, step: Residual, c: int) -> None:
        super().__init__()
        self.conv, self.apply_ = nn.Conv2d(c, c, step.kernel, padding=step.kernel // 2), _Apply(step.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_(self.conv(x) + x)


class _Concat(nn.Module):
    def __init__(self, step: Concat, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, step.out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.relu(self.conv(x)), x, F.max_pool2d(x, 3, 1, 1)], 1)


class _Shuffle(nn.Module):
    def __init__(self, step: Shuffle) -> None:
        super().__init__()
        self.sliced = step.sliced

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        if c % 2 == 0:
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x[:, : (c + 1) // 2] if self.sliced else x


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))
