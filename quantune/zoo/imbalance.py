"""Give a trained network the channel imbalance of ImageNet models, without changing what it computes.

A small network trained on a small task has channels of like ranges, and at 8 bits nearly all settings are equal there.
In networks trained on ImageNet the ranges of a tensor's channels differ by orders of magnitude, which is what makes
quantization hurt (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019).
That paper removes the imbalance by scaling channel c by s_c where it is written and by 1/s_c where it is read. This
module does the same with random s_c to bring it in:

  y = W2 relu(W1 x + b1)   ->   y = (W2 / s) relu(s W1 x + s b1)      for s > 0, because relu(s z) = s relu(z)

The s_c are powers of two, so that not even the rounding of f32 changes. A scale passes through everything that is
positively homogeneous or only moves data: ReLU, pools, flattening, slices, concatenation, channel shuffle. The terms of
a sum share their scales. What is neither (ReLU6, say) keeps its input and output as they are, so a MobileNetV2 has its
linear bottlenecks scaled only.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.proxy import TraceError
from torch.nn import functional

LARGEST = 4
"""Bound of |log2 s|."""

_HOMOGENEOUS: tuple[Any, ...] = (
    nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity,
    torch.relu, functional.relu, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
    functional.dropout, "relu", "mean",
)  # fmt: skip
_MOVES: tuple[Any, ...] = (
    nn.Flatten, torch.flatten, torch.cat, torch.transpose, torch.chunk, operator.getitem, operator.floordiv, getattr,
    "view", "size", "transpose", "contiguous", "chunk", "flatten", "reshape",
)  # fmt: skip
_SUMS = (operator.add, operator.iadd, torch.add)


def imbalance(model: nn.Module, octaves: float, *, size: int = 64, seed: int = 0) -> int:
    """Scale the channels of a network in evaluation mode, in place, by 2**k, k normal; returns how many were scaled.

    octaves: standard deviation of k before it is rounded; |k| is at most ``LARGEST``. size: of an input image. Layers
    that torch.fx cannot trace, and a layer that is called twice, are a ValueError.
    """
    scales = _Scales(model, size)
    free = scales.free()
    exponents = np.random.default_rng(seed).normal(0, octaves, len(free))
    chosen = np.ones(len(scales.parent))
    chosen[free] = 2.0 ** np.clip(np.rint(exponents), -LARGEST, LARGEST)
    scales.apply(torch.tensor(chosen[[scales.find(i) for i in range(len(chosen))]], dtype=torch.float32))
    return len(free)


class _Scales(fx.Interpreter):
    """Runs the graph on channel numbers in place of activations: two elements with the same number share their scale.

    Number 0 is the scale that stays 1.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        try:
            graph = fx.symbolic_trace(model)
        except (TypeError, RuntimeError, TraceError) as error:
            raise ValueError(f"{type(model).__name__} cannot be traced: {error}") from error
        ShapeProp(graph).propagate(torch.zeros(1, 3, size, size))
        super().__init__(graph)
        self.parent = [0]
        self.writers: dict[str, torch.Tensor] = {}
        self.readers: dict[str, torch.Tensor] = {}
        self.layers = dict(model.named_modules())
        self.pin(self.run(torch.zeros(1, 3, size, size, dtype=torch.int64)))

    def find(self, number: int) -> int:
        """The least number that is known to share the scale of ``number``."""
        while self.parent[number] != number:
            number = self.parent[number]
        return number

    def join(self, first: torch.Tensor, second: torch.Tensor) -> None:
        """Note that two tensors of one shape share their scales."""
        for a, b in torch.stack((first.flatten(), second.flatten()), 1).unique(dim=0).tolist():
            low, high = sorted((self.find(a), self.find(b)))
            self.parent[high] = low

    def pin(self, values: Any) -> None:
        """Keep the scales of the tensors in ``values`` at 1."""
        for value in values if isinstance(values, Sequence) else (values,):
            if isinstance(value, torch.Tensor):
                self.join(value, torch.zeros_like(value))

    def free(self) -> list[int]:
        """The numbers whose scale may be chosen, in the order of the graph."""
        return [i for i in range(1, len(self.parent)) if self.parent[i] == i]

    def run_node(self, n: fx.Node) -> Any:
        """Channel numbers of the result of a node."""
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        kind = type(self.layers[str(n.target)]) if n.op == "call_module" else n.target
        if kind in _MOVES:
            return super().run_node(n)
        shape = n.meta["tensor_meta"].shape if "tensor_meta" in n.meta else torch.Size(())
        if kind in _SUMS and all(isinstance(a, torch.Tensor) and a.shape == shape for a in args):
            self.join(args[0], args[1])
            return args[0]
        if kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d):
            return self._layer(str(n.target), args[0], shape)
        if kind in _HOMOGENEOUS and _one_a_channel(args[0]):
            return _spread(_channels(args[0]), shape)
        self.pin([*args, *kwargs.values()])
        return torch.zeros(shape, dtype=torch.int64)

    def _layer(self, name: str, ids: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if name in self.writers:
            raise ValueError(f"layer {name} is called twice")
        if isinstance(self.layers[name], nn.BatchNorm2d) or not _one_a_channel(ids):
            self.pin(ids)  # a norm is folded into the layer before it, which leaves no tensor between them
        else:
            self.readers[name] = _channels(ids)
        first = len(self.parent)
        self.parent.extend(range(first, first + shape[1]))
        self.writers[name] = torch.arange(first, first + shape[1])
        return _spread(self.writers[name], shape)

    def apply(self, scales: torch.Tensor) -> None:
        """Scale what the layers write and undo it where they read; ``scales`` are by channel number."""
        with torch.no_grad():
            for name, ids in self.readers.items():
                layer: Any = self.layers[name]
                outputs, inputs = layer.weight.shape[:2]
                blocks = scales[ids].reshape(-1, inputs)  # an input block for each group of a convolution
                divisor = blocks.repeat_interleave(outputs // len(blocks), 0)
                layer.weight /= divisor.reshape(outputs, inputs, *[1] * (layer.weight.ndim - 2))
            for name, ids in self.writers.items():
                layer = self.layers[name]
                layer.weight *= scales[ids].reshape(-1, *[1] * (layer.weight.ndim - 1))
                if layer.bias is not None:
                    layer.bias *= scales[ids]


def _channels(ids: torch.Tensor) -> torch.Tensor:
    """The number of each channel of ids[1, c, ...]."""
    return ids.reshape(*ids.shape[:2], -1)[0, :, 0]


def _one_a_channel(ids: torch.Tensor) -> bool:
    """Whether all elements of a channel have one number."""
    return bool((ids == _spread(_channels(ids), ids.shape)).all())


def _spread(channels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return channels.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)
