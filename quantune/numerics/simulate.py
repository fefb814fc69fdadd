"""The whole integer network in numpy, layer by layer: what a compiled artifact must compute, bit for bit on CPU.

Works from the network and its plan alone, independently of the passes: it is the other side of the comparison. Integers
are those of the plan (u8 or s8); a tensor that is not quantized is f32. Everything between quantized tensors is exact,
and so is a layer or an average that ends in f32. Sums of f32 values are not: a layer's depend on an order that numpy
does not share with the compiled code, an addition's on whether the scaling before it is contracted with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mlir_passes.network import LAYERS, TRANSPARENT, Network, Node
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams

Tensor = NDArray[np.float32 | np.int8 | np.uint8]


class SimulationError(ValueError):
    """The network contains an operation that only the compiled artifact can compute; the message names it."""


def simulate(
    network: Network, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams], x: NDArray[np.float32]
) -> dict[str, Tensor]:
    """Run ``x`` f32[n, c, h, w] through the network; returns every tensor by name, quantized ones as integers.

    A layer named in ``weights`` computes in integers. Raises SimulationError at a float operation.
    """
    return dict(steps(network, activations, weights, x))


def steps(
    network: Network, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams], x: NDArray[np.float32]
) -> Iterator[tuple[str, Tensor]]:
    """As ``simulate``, one tensor at a time in execution order; tensors are dropped after their last reader."""
    waiting = {
        clamp.name: node
        for node in network.nodes
        if (clamp := network.fused_clamp(node)) is not None
        and clamp.name in activations
        and _is_integer(node, activations, weights)
    }
    held = {node.name for node in waiting.values()}  # computed with their clamps
    order = [(waiting.get(node.name, node), node) for node in network.nodes if node.name not in held]
    last_reader = {name: result.name for node, result in order for name in node.inputs}
    alive: dict[str, Tensor] = {}
    for node, result in order:
        if node.kind == "input":
            value: Tensor = np.asarray(x, np.float32)
        else:
            value = _compute(node, result, activations, weights, [alive[name] for name in node.inputs])
        params = activations.get(result.name)
        if params is not None and value.dtype == np.float32:
            value = affine.quantize(np.asarray(value, np.float32), params)
        alive[result.name] = value
        yield result.name, value
        for name in (*node.inputs, result.name):
            if last_reader.get(name, result.name) == result.name:
                alive.pop(name, None)


def _compute(
    node: Node,
    result: Node,
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    inputs: list[Tensor],
) -> Tensor:
    """The tensor ``result``: that of ``node``, or of the clamp behind it."""
    target = activations.get(result.name)
    if _is_integer(node, activations, weights):
        specs = [activations[name] for name in node.inputs]
        if node.kind in LAYERS:
            return _integer_layer(node, inputs[0], specs[0], weights[node.name], target, result)
        if node.kind == "add" and target is not None:
            return _integer_add(inputs, specs, target, result)
        if node.kind == "avgpool":
            return _integer_average(node, inputs[0], specs[0], target, result)
        if node.kind in TRANSPARENT and target is not None and all(spec == target for spec in specs):
            return _moved(node, inputs, target)
    return _real(node, [_as_real(v, activations.get(n)) for v, n in zip(inputs, node.inputs, strict=True)])


def _is_integer(node: Node, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams]) -> bool:
    if node.kind in ("input", "float") or (node.kind in LAYERS and node.name not in weights):
        return False
    return all(name in activations for name in node.inputs)


def _as_real(value: Tensor, params: QuantParams | None) -> NDArray[np.float32]:
    if value.dtype == np.float32:
        return value  # type: ignore[return-value]
    assert params is not None
    return affine.dequantize(value, params)  # type: ignore[arg-type]


def bounds(result: Node, params: QuantParams) -> tuple[int, int]:
    """The integers between which a result may lie: the storage range, cut by the real bounds of a clamp."""
    scale, zero_point = np.float32(params.scale), int(params.zero_point)

    def bound(value: float, fallback: int) -> int:
        if result.kind != "clamp" or not math.isfinite(value):
            return fallback
        with np.errstate(over="ignore"):  # an overflow is an infinity, which saturates
            steps = np.rint(np.float32(value) / scale)
        return int(np.clip(steps + zero_point, params.qmin, params.qmax))

    return bound(result.lo, params.qmin), bound(result.hi, params.qmax)


def _integer_layer(
    node: Node, x: Tensor, s_x: QuantParams, s_w: QuantParams, target: QuantParams | None, result: Node
) -> Tensor:
    assert node.weight is not None
    assert node.bias is not None
    w = affine.quantize(node.weight, s_w).astype(np.float64)
    centred = x.astype(np.float64) - float(s_x.zero_point)  # padding with the zero point is padding with 0 here
    acc = _layer(node, centred, w).astype(np.int64)
    scale = np.broadcast_to(s_w.scale, node.bias.shape)
    acc = acc + _along_channels(affine.quantize_bias(node.bias, s_x.scale, scale), acc.ndim)
    acc = acc.astype(np.int32)
    if target is None:
        return acc.astype(np.float32) * _along_channels(affine.multiplier(s_x.scale, scale, 1.0), acc.ndim)
    lo, hi = bounds(result, target)
    if all(np.all(np.frexp(s)[0] == 0.5) for s in (s_x.scale, s_w.scale, target.scale)):
        shift = _along_channels(affine.shift_of(s_x.scale, scale, target.scale), acc.ndim)
        return _cut(affine.requantize_shift(acc, shift, target.zero_point, target.qmin, target.qmax), lo, hi)
    m = _along_channels(affine.multiplier(s_x.scale, scale, target.scale), acc.ndim)
    return _cut(affine.requantize(acc, m, target.zero_point, target.qmin, target.qmax), lo, hi)


def _integer_add(inputs: list[Tensor], specs: list[QuantParams], target: QuantParams, result: Node) -> Tensor:
    a, b = specs
    lo, hi = bounds(result, target)
    params = affine.add_params(float(a.scale), float(b.scale), float(target.scale))
    za, zb = int(a.zero_point), int(b.zero_point)
    out = affine.add(inputs[0], za, inputs[1], zb, params, int(target.zero_point), target.qmin, target.qmax)  # type: ignore[arg-type]
    return _cut(out, lo, hi)


def _integer_average(node: Node, x: Tensor, s_x: QuantParams, target: QuantParams | None, result: Node) -> Tensor:
    centred = x.astype(np.int32) - int(s_x.zero_point)
    total = _reduce(node, centred, np.add, 0).astype(np.int32).reshape(node.shape)
    if target is None:
        return total.astype(np.float32) * affine.multiplier(s_x.scale, 1.0, node.divisor)
    lo, hi = bounds(result, target)
    m = affine.multiplier(s_x.scale, 1.0, np.float64(target.scale) * node.divisor)
    return _cut(affine.requantize(total, m, target.zero_point, target.qmin, target.qmax), lo, hi)


def _cut(q: Tensor, lo: int, hi: int) -> Tensor:
    return np.clip(q, lo, hi)


def _moved(node: Node, inputs: list[Tensor], params: QuantParams) -> Tensor:
    """Selects and moves integers; ``params`` is shared by the inputs and the result."""
    if node.kind == "clamp":
        return _cut(inputs[0], *bounds(node, params))
    return _select(node, inputs, lowest=params.qmin)


def _real(node: Node, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The f32 form of a node."""
    if node.kind in LAYERS:
        assert node.weight is not None
        assert node.bias is not None
        return _layer(node, inputs[0], node.weight).astype(np.float32) + _along_channels(node.bias, len(node.shape))
    if node.kind == "clamp":
        return np.clip(inputs[0], np.float32(node.lo), np.float32(node.hi))
    if node.kind == "add":
        return inputs[0] + inputs[1]
    if node.kind == "avgpool":
        return (_reduce(node, inputs[0], np.add, 0.0) / np.float32(node.divisor)).reshape(node.shape).astype(np.float32)
    return _select(node, inputs, lowest=-math.inf)


def _select(node: Node, inputs: list, lowest: float) -> NDArray:
    movers: dict[str, Callable[[], NDArray]] = {
        "maxpool": lambda: _reduce(node, inputs[0], np.maximum, lowest),
        "reshape": lambda: inputs[0].reshape(node.shape),
        "transpose": lambda: inputs[0].transpose(node.permutation),
        "concat": lambda: np.concatenate(inputs, axis=node.axis),
        "slice": lambda: inputs[0][tuple(slice(o, o + s) for o, s in zip(node.offsets, node.shape, strict=True))],
    }
    if node.kind not in movers:
        raise SimulationError(
            f"'{node.name}' ({node.detail or node.kind}) runs in f32 in the artifact; numpy does not compute it"
        )
    return movers[node.kind]()


def columns(node: Node, x: NDArray) -> NDArray:
    """What a layer's weight meets in one image ``x`` [1, ...]: [groups, inputs of a group, positions].

    With the weight as [groups, outputs of a group, inputs of a group], their product is the layer's result.
    """
    if node.kind == "matmul":
        return x.reshape(1, -1, 1)
    x = _pad(node, x, 0)
    taps = [window for _, _, window in _window_slices(node, x)]
    stacked = taps[0][0, :, None] if len(taps) == 1 else np.stack([tap[0] for tap in taps], axis=1)
    return stacked.reshape(node.groups, x.shape[1] // node.groups * len(taps), -1)


def _along_channels(values: NDArray, ndim: int) -> NDArray:
    return values if values.ndim == 0 else values.reshape(1, -1, *[1] * (ndim - 2))


def _pad(node: Node, x: NDArray, value: float) -> NDArray:
    top, left, bottom, right = node.pads
    if not any(node.pads):
        return x
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _window_slices(node: Node, x: NDArray) -> Iterator[tuple[int, int, NDArray]]:
    """For each tap of the kernel, the strided view of ``x`` that it meets."""
    (kh, kw), (sh, sw), (dh, dw) = node.kernel, node.strides, node.dilations
    oh, ow = (*node.shape, 1, 1)[2:4]  # ceil mode pads more than the windows reach
    for i in range(kh):
        for j in range(kw):
            yield i, j, x[:, :, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]


def _reduce(node: Node, x: NDArray, combine: np.ufunc, start: float) -> NDArray:
    result: NDArray | None = None
    for _, _, window in _window_slices(node, _pad(node, x, start)):
        result = window.copy() if result is None else combine(result, window)
    assert result is not None
    return result


def _layer(node: Node, x: NDArray, w: NDArray) -> NDArray:
    """Convolution or matrix product without bias. f64 operands make integer sums below 2**53 exact."""
    if node.kind == "matmul":
        return x @ w.T
    x = _pad(node, x, 0)
    if node.groups == x.shape[1] == w.shape[0]:
        taps = (window * w[None, :, 0, i, j, None, None] for i, j, window in _window_slices(node, x))
        total = next(taps).copy()
        for tap in taps:
            total += tap
        return total
    group_in, group_out = x.shape[1] // node.groups, w.shape[0] // node.groups
    parts = [
        _dense_conv(node, x[:, g * group_in : (g + 1) * group_in], w[g * group_out : (g + 1) * group_out])
        for g in range(node.groups)
    ]
    return np.concatenate(parts, axis=1)


def _dense_conv(node: Node, x: NDArray, w: NDArray) -> NDArray:
    (kh, kw), (sh, sw), (dh, dw) = node.kernel, node.strides, node.dilations
    windows = sliding_window_view(x, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    n, c, oh, ow = windows.shape[:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * oh * ow, c * kh * kw)
    return (columns @ w.reshape(w.shape[0], -1).T).reshape(n, oh, ow, -1).transpose(0, 3, 1, 2)
