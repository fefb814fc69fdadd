"""The integer network on many images at once: layers by torch, everything else by the numpy rooms of the simulation.

A layer's integers are held as f32, in which their sums are exact below 2**24; beyond that the last bit may differ from
the artifact's. What numpy does not compute (a float operation, and what reads one) is taken from the f32 network where
the plan has its statistics, so that the layers behind it are reached; the error made before it is not in what they see.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import INPUT, Network, Node
from quantune.numerics import affine, simulate
from quantune.numerics.affine import QuantParams
from quantune.numerics.ops import Tensor, room_of
from quantune.quantization.plan import QuantizationPlan, observed
from quantune.refine.base import AT_ONCE, Images

if TYPE_CHECKING:
    import torch

Adjust = Callable[[Node, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float32]]
"""(layer, mean of each channel's integer sums without bias, what one step of them is worth) -> the layer's bias."""


@contextlib.contextmanager
def workers() -> Iterator[Executor]:
    """Threads for torch, one a processor, each of which computes alone.

    Threads that share one product wait for each other actively, which takes twenty times as long on a busy machine.
    """
    import torch

    with ThreadPoolExecutor(os.cpu_count() or 1, "quantune-twin", torch.set_num_threads, (1,)) as pool:
        yield pool


def run(subject: Images, plan: QuantizationPlan, count: int, adjust: Adjust) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the quantized network in execution order, [count, ...], integers where the plan has them.

    adjust: is asked for the bias of each integer layer once the layer's sums are known.
    """
    network, activations = subject.network, plan.activations
    order = simulate.schedule(network, activations, plan.weights)
    taken = _taken(subject, order, activations, count)
    last_reader = {name: result.name for node, result in order for name in node.inputs}
    alive: dict[str, Tensor] = {}
    with workers() as pool:
        for node, result in order:
            if node.kind == INPUT:
                value: Tensor = subject.images(count)
            elif result.name in taken:
                value = taken.pop(result.name)
            elif any(name not in alive for name in node.inputs):
                continue
            elif node.traits.weighted:
                value = _layer(node, result, alive[node.inputs[0]], plan, adjust, pool)
            else:
                value = _other(network, node, result, [alive[name] for name in node.inputs], plan)
            value = _quantized(value, activations.get(result.name))
            alive[result.name] = value
            yield result.name, value
            for name in (*node.inputs, result.name):
                if last_reader.get(name, result.name) == result.name:
                    alive.pop(name, None)


def own_bias(node: Node, mean: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float32]:
    """An `Adjust` that leaves a layer its own bias."""
    assert node.bias is not None
    return node.bias


def _quantized(value: Tensor, params: QuantParams | None) -> Tensor:
    return affine.quantize(value, params) if params is not None and value.dtype == np.float32 else value  # type: ignore[arg-type]


def _taken(
    subject: Images, order: list[tuple[Node, Node]], activations: Mapping[str, QuantParams], count: int
) -> dict[str, Tensor]:
    """What has to come from the f32 network: results that cannot be computed, as far as they were observed."""
    known, made, names = observed(subject.network), set[str](), []
    for node, result in order:
        computable = node.kind == INPUT or room_of(node.kind) is not None
        if not computable or any(name not in made for name in node.inputs):
            if result.name not in known:
                continue
            names.append(result.name)
        made.add(result.name)
    if not names:
        return {}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for tensors in subject.observe(names, count):
        for name in names:
            found[name].append(_quantized(tensors[name], activations.get(name)))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _other(network: Network, node: Node, result: Node, inputs: list[Tensor], plan: QuantizationPlan) -> Tensor:
    """Any operation but a layer, a batch of the network's size at a time."""
    size, count = network.inputs[0].shape[0], len(inputs[0])
    parts = []
    for first in range(0, count, size):
        batch = [simulate.full_batch(x[first : first + size], size) for x in inputs]
        made = simulate.compute(node, result, plan.activations, plan.weights, batch, shifts=plan.shifts)
        parts.append(made[: count - first])
    return np.concatenate(parts)


def _layer(node: Node, result: Node, x: Tensor, plan: QuantizationPlan, adjust: Adjust, pool: Executor) -> Tensor:
    if node.name not in plan.weights:
        params = plan.activations.get(node.inputs[0])
        real = x if params is None else affine.dequantize(x, params)  # type: ignore[arg-type]
        return np.concatenate(list(pool.map(functools.partial(_real, node), _parts(real))))
    s_x, s_w, target = plan.activations[node.inputs[0]], plan.weights[node.name], plan.activations.get(result.name)
    weight = integers(node, plan)
    parts = list(pool.map(lambda part: sums(node, _centred(part, s_x), weight), _parts(x)))
    mean = np.sum(list(pool.map(_total, parts)), axis=0) / (len(x) * parts[0][0, 0].numel())
    step = step_of(node, plan)
    bias = affine.quantize_bias(adjust(node, mean, step), s_x.scale, np.broadcast_to(s_w.scale, step.shape))
    m = affine.multiplier(s_x.scale, np.broadcast_to(s_w.scale, step.shape), 1.0 if target is None else target.scale)
    limits = None if target is None else simulate.bounds(result, target)

    def scaled(total: torch.Tensor) -> Tensor:
        total.add_(_along(bias, node)).mul_(_along(m, node))
        if target is None or limits is None:
            return total.numpy()
        return total.round_().add_(float(target.zero_point)).clamp_(*limits).numpy().astype(target.dtype)

    return np.concatenate(list(pool.map(scaled, parts)))


def _real(node: Node, x: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    assert node.bias is not None
    return (sums(node, torch.from_numpy(x), node.weight) + _along(node.bias, node)).numpy()


def step_of(node: Node, plan: QuantizationPlan) -> NDArray[np.float64]:
    """What one step of a layer's sums is worth, for each output channel."""
    assert node.bias is not None
    scale = np.broadcast_to(plan.weights[node.name].scale, node.bias.shape).astype(np.float64)
    return scale * float(plan.activations[node.inputs[0]].scale)


def integers(node: Node, plan: QuantizationPlan) -> NDArray[np.float32]:
    """A layer's integer weight, as f32."""
    assert node.weight is not None
    return affine.quantize(node.weight, plan.weights[node.name]).astype(np.float32)


def mean_sums(node: Node, x: Tensor, plan: QuantizationPlan) -> NDArray[np.float64]:
    """The mean of each channel's integer sums, without bias, for integers x [n, ...] that the layer reads."""
    s_x = plan.activations[node.inputs[0]]
    return _mean(sums(node, _centred(x, s_x), integers(node, plan)))


def mean_outputs(node: Node, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean of each output channel in f32, bias included."""
    import torch

    assert node.bias is not None
    return _mean(sums(node, torch.from_numpy(x), node.weight)) + node.bias


def sums(node: Node, x: torch.Tensor, weight: NDArray[np.float32] | None) -> torch.Tensor:
    """Convolution or matrix product without bias, f32."""
    import torch
    from torch.nn import functional

    assert weight is not None
    kernel = torch.from_numpy(np.ascontiguousarray(weight))
    with torch.no_grad():
        if weight.ndim == 2:
            return functional.linear(x, kernel)
        top, left, bottom, right = node.pads
        if any(node.pads):
            x = functional.pad(x, (left, right, top, bottom))
        found = functional.conv2d(x, kernel, stride=node.strides, dilation=node.dilations, groups=node.groups)
        return found[:, :, : node.shape[2], : node.shape[3]]


def _centred(x: Tensor, params: QuantParams) -> torch.Tensor:
    import torch

    return torch.from_numpy(x).float().sub_(float(params.zero_point))


def _parts(x: Tensor) -> Iterator[NDArray]:
    for first in range(0, len(x), AT_ONCE):
        yield np.ascontiguousarray(x[first : first + AT_ONCE])


def _mean(total: torch.Tensor) -> NDArray[np.float64]:
    """Of each channel."""
    return _total(total) / (total.numel() / total.shape[1])


def _total(values: torch.Tensor) -> NDArray[np.float64]:
    import torch

    return values.sum(dim=[d for d in range(values.ndim) if d != 1], dtype=torch.float64).numpy()


def _along(values: NDArray, node: Node) -> torch.Tensor:
    import torch

    shape = (1, -1, *[1] * (len(node.shape) - 2))
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(shape)
