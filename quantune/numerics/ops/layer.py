"""Convolutions and matrix products: exact integer sums, a bias, one multiplication or a shift."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.ops import Operands, Tensor
from quantune.numerics.windows import along_channels, padded, taps


def real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The layer in f32."""
    assert node.weight is not None
    assert node.bias is not None
    return _sums(node, inputs[0], node.weight).astype(np.float32) + along_channels(node.bias, len(node.shape))


def integer(node: Node, x: Operands) -> Tensor | None:
    """The layer requantized, or its sums as f32."""
    (values,), (s_x,), s_w, target = x.inputs, x.specs, x.weight, x.target
    assert node.weight is not None
    assert node.bias is not None
    assert s_w is not None
    w = affine.quantize(node.weight, s_w).astype(np.float64)
    centred = values.astype(np.float64) - float(s_x.zero_point)  # padding with the zero point is padding with 0 here
    acc = _sums(node, centred, w).astype(np.int64)
    scale = np.broadcast_to(s_w.scale, node.bias.shape)
    acc = acc + along_channels(affine.quantize_bias(node.bias, s_x.scale, scale), acc.ndim)
    acc = acc.astype(np.int32)
    if target is None:
        return acc.astype(np.float32) * along_channels(affine.multiplier(s_x.scale, scale, 1.0), acc.ndim)
    if x.shifts:
        shift = along_channels(affine.shift_of(s_x.scale, scale, target.scale), acc.ndim)
        out = affine.requantize_shift(acc, shift, target.zero_point, target.qmin, target.qmax)
    else:
        m = along_channels(affine.multiplier(s_x.scale, scale, target.scale), acc.ndim)
        out = affine.requantize(acc, m, target.zero_point, target.qmin, target.qmax)
    return np.clip(out, x.lo, x.hi)


def columns(node: Node, x: NDArray) -> NDArray:
    """What a layer's weight meets in one image ``x`` [1, ...]: [groups, inputs of a group, positions].

    With the weight as [groups, outputs of a group, inputs of a group], their product is the layer's result.
    """
    if _is_matrix_product(node):
        return x.reshape(1, -1, 1)
    x = padded(node, x, 0)
    found = [window for _, _, window in taps(node, x)]
    stacked = found[0][0, :, None] if len(found) == 1 else np.stack([tap[0] for tap in found], axis=1)
    return stacked.reshape(node.groups, x.shape[1] // node.groups * len(found), -1)


def _is_matrix_product(node: Node) -> bool:
    return node.weight is not None and node.weight.ndim == 2


def _sums(node: Node, x: NDArray, w: NDArray) -> NDArray:
    """Convolution or matrix product without bias. f64 operands make integer sums below 2**53 exact."""
    if _is_matrix_product(node):
        return x @ w.T
    x = padded(node, x, 0)
    if node.groups == x.shape[1] == w.shape[0]:
        products = (window * w[None, :, 0, i, j, None, None] for i, j, window in taps(node, x))
        total = next(products).copy()
        for product in products:
            total += product
        return total
    group_in, group_out = x.shape[1] // node.groups, w.shape[0] // node.groups
    parts = [
        _dense(node, x[:, g * group_in : (g + 1) * group_in], w[g * group_out : (g + 1) * group_out])
        for g in range(node.groups)
    ]
    return np.concatenate(parts, axis=1)


def _dense(node: Node, x: NDArray, w: NDArray) -> NDArray:
    (kh, kw), (sh, sw), (dh, dw) = node.kernel, node.strides, node.dilations
    windows = sliding_window_view(x, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    n, c, oh, ow = windows.shape[:4]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * oh * ow, c * kh * kw)
    return (rows @ w.reshape(w.shape[0], -1).T).reshape(n, oh, ow, -1).transpose(0, 3, 1, 2)
