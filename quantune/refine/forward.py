"""The operations of networks in torch, in real numbers and differentiable: what a reconstruction sees of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mlir_passes.network import Node

if TYPE_CHECKING:
    import torch

Weights = dict[str, "tuple[torch.Tensor, torch.Tensor]"]
"""Layer -> weight and bias."""


def computes(node: Node) -> bool:
    """Whether ``compute`` can: a known operation that keeps images apart."""
    first = node.permutation[0] if node.kind == "transpose" else node.offsets[0] if node.kind == "slice" else 0
    apart = first == 0 and 0 not in node.axes and not (node.kind == "concat" and node.axis == 0)
    return node.traits.weighted or (node.kind in _OPERATIONS and apart)


def compute(node: Node, inputs: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    """The result of an operation for any number of images [n, ...]."""
    if node.traits.weighted:
        weight, bias = weights[node.name]
        return product(node, inputs[0], weight) + bias.reshape(1, -1, *[1] * (len(node.shape) - 2))
    return _OPERATIONS[node.kind](node, inputs)


def product(node: Node, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolution or matrix product without bias."""
    from torch.nn import functional

    if weight.ndim == 2:
        return functional.linear(x, weight)
    (_, _, bottom, right), (top, left, *_) = node.pads, node.pads
    if (top, left) == (bottom, right):
        pads: tuple[int, int] = (top, left)
    else:
        x, pads = functional.pad(x, (left, right, top, bottom)), (0, 0)
    found = functional.conv2d(x, weight, None, node.strides, pads, node.dilations, node.groups)
    return found[:, :, : node.shape[2], : node.shape[3]]


def _pool(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Windows by hand, as numpy does: ceil mode, dilation and uneven padding need no cases."""
    import torch
    from torch.nn import functional

    top, left, bottom, right = node.pads
    largest = node.kind == "maxpool"
    x = functional.pad(inputs[0], (left, right, top, bottom), value=float("-inf") if largest else 0.0)
    (kh, kw), (sh, sw), (dh, dw) = node.kernel, node.strides, node.dilations
    oh, ow = (*node.shape, 1, 1)[2:4]
    if not largest and (oh, ow) == (1, 1) and (kh, kw) == tuple(x.shape[2:]):
        return (x.sum(dim=(2, 3)) / node.divisor).reshape(len(x), *node.shape[1:])
    total: torch.Tensor | None = None
    for i in range(kh):
        for j in range(kw):
            tap = x[:, :, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
            total = tap if total is None else torch.maximum(total, tap) if largest else total + tap
    assert total is not None
    return (total if largest else total / node.divisor).reshape(len(x), *node.shape[1:])


def _slice(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    taken = list(zip(node.offsets, node.shape, node.steps, strict=True))[1:]
    return inputs[0][(slice(None), *(slice(first, first + size * step, step) for first, size, step in taken))]


def _scaled(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    import torch

    shape = (1, -1, *[1] * (len(node.shape) - 2))
    slope, shift = (torch.from_numpy(np.array(values)).reshape(shape) for values in (node.weight, node.bias))
    return inputs[0] * slope + shift


def _concat(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(inputs, dim=node.axis)


def _function(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    """A function that only numpy knows: its value, and its slope by a small difference."""
    import torch

    assert node.function is not None
    at, small = inputs[0].detach().numpy(), np.float32(1e-3)
    value = torch.from_numpy(np.asarray(node.function(at), np.float32))
    slope = (node.function(at + small) - node.function(at - small)) / (2 * small)
    return value + torch.from_numpy(np.asarray(slope, np.float32)) * (inputs[0] - inputs[0].detach())


_OPERATIONS: dict[str, Callable[[Node, list[torch.Tensor]], torch.Tensor]] = {
    "maxpool": _pool,
    "avgpool": _pool,
    "reshape": lambda node, inputs: inputs[0].reshape(len(inputs[0]), *node.shape[1:]),
    "transpose": lambda node, inputs: inputs[0].permute(node.permutation),
    "slice": _slice,
    "concat": _concat,
    "clamp": lambda node, inputs: inputs[0].clamp(node.lo, node.hi),
    "table": _function,
    "affine": _scaled,
    "sum": lambda node, inputs: (inputs[0].sum(node.axes) / node.divisor).reshape(len(inputs[0]), *node.shape[1:]),
    "maximum": lambda node, inputs: inputs[0].amax(node.axes).reshape(len(inputs[0]), *node.shape[1:]),
    "subtract": lambda node, inputs: inputs[0] - inputs[1],
    "product": lambda node, inputs: inputs[0] * inputs[1],
    "add": lambda node, inputs: inputs[0] + inputs[1],
}
