"""Windows over images [n, c, h, w], for convolutions and pools."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node


def padded(node: Node, x: NDArray, value: float) -> NDArray:
    """``x`` with the node's padding, which holds ``value``."""
    top, left, bottom, right = node.pads
    if not any(node.pads):
        return x
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def taps(node: Node, x: NDArray) -> Iterator[tuple[int, int, NDArray]]:
    """For each tap of the kernel, the strided view of ``x`` that it meets."""
    (kh, kw), (sh, sw), (dh, dw) = node.kernel, node.strides, node.dilations
    oh, ow = (*node.shape, 1, 1)[2:4]  # ceil mode pads more than the windows reach
    for i in range(kh):
        for j in range(kw):
            yield i, j, x[:, :, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]


def reduced(node: Node, x: NDArray, combine: np.ufunc, start: float) -> NDArray:
    """The values of each window combined; padding holds ``start``."""
    result: NDArray | None = None
    for _, _, window in taps(node, padded(node, x, start)):
        result = window.copy() if result is None else combine(result, window)
    assert result is not None
    return result


def along_channels(values: NDArray, ndim: int) -> NDArray:
    """One number, or one a channel, in a shape that broadcasts to tensors of ``ndim`` dimensions."""
    return values if values.ndim == 0 else values.reshape(1, -1, *[1] * (ndim - 2))
