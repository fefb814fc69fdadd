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
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import INPUT, Node
from quantune.numerics import affine, simulate
from quantune.numerics.affine import QuantParams
from quantune.numerics.ops import Tensor, room_of
from quantune.quantization.constants import Constant, Constants
from quantune.quantization.plan import QuantizationPlan, observed
from quantune.refine import forward
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


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The same for this thread, as long as the context lasts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Walk:
    """The quantized network, one step of its schedule after the other; a tensor is dropped behind its last reader.

    order: what is computed, see ``simulate.schedule``. alive: the tensors that a later step reads, [count, ...],
    integers where the plan has them. means: of each layer in f32 so far, see ``Means``.
    """

    def __init__(self, subject: Images, plan: QuantizationPlan, count: int, pool: Executor) -> None:
        self.order = simulate.schedule(subject.network, plan.activations, plan.weights)
        self.alive: dict[str, Tensor] = {}
        self.means: dict[str, NDArray[np.float64]] = {}
        self._subject, self._plan, self._count, self._pool = subject, plan, count, pool
        self._taken = _taken(subject, self.order, plan.activations, count)
        self._last_reader = {name: result.name for node, result in self.order for name in node.inputs}
        self._ahead = iter(self.order)
        self._batch = subject.network.inputs[0].shape[0]

    def until(self, name: str) -> Tensor | None:
        """Go on until a tensor is computed; None where it cannot be."""
        for node, result in self._ahead:
            value = self._step(node, result, None, {})
            if result.name == name:
                return value
        raise ValueError(f"the network computes no '{name}' from here on")

    def next(self, adjust: Adjust | None = None, constants: Constants | None = None) -> Tensor | None:
        """The next tensor; None where it cannot be computed.

        adjust: is asked for the bias of an integer layer once its sums are known; without it the layer keeps the one it
        has. constants: what layers get in place of what the plan has.
        """
        node, result = next(self._ahead)
        return self._step(node, result, adjust, constants or {})

    def _step(self, node: Node, result: Node, adjust: Adjust | None, constants: Constants) -> Tensor | None:
        plan, params = self._plan, self._plan.activations.get(result.name)
        constant = replace(plan.constants.get(node.name, Constant()), **constants.get(node.name, Constant()).parts)
        if node.kind == INPUT:
            value: Tensor = self._subject.images(self._count)
        elif result.name in self._taken:
            value = self._taken.pop(result.name)
        elif any(name not in self.alive for name in node.inputs):
            return None
        elif node.traits.weighted and node.name in plan.weights:
            value = _layer(node, result, self.alive[node.inputs[0]], plan, constant, adjust, self._pool)
        elif node.traits.weighted:
            value = self._real(node, self.alive[node.inputs[0]])
        else:
            inputs = [self.alive[name] for name in node.inputs]
            value = _other(node, result, inputs, plan, self._batch, self._pool)
        value = _quantized(value, params)
        self.alive[result.name] = value
        for name in (*node.inputs, result.name):
            if self._last_reader.get(name, result.name) == result.name:
                self.alive.pop(name, None)
        return value

    def _real(self, node: Node, x: Tensor) -> Tensor:
        params = self._plan.activations.get(node.inputs[0])
        real = x if params is None else affine.dequantize(x, params)  # type: ignore[arg-type]
        parts = list(self._pool.map(functools.partial(_real, node), _parts(real)))
        found = np.concatenate(parts)
        self.means[node.name] = found.mean(axis=(0, *range(2, found.ndim)), dtype=np.float64)
        return found


def run(
    subject: Images, plan: QuantizationPlan, count: int, adjust: Adjust | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the quantized network in execution order, see ``Walk``."""
    with workers() as pool:
        walk = Walk(subject, plan, count, pool)
        for _, result in walk.order:
            value = walk.next(adjust)
            if value is not None:
                yield result.name, value


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


def _other(
    node: Node, result: Node, inputs: list[Tensor], plan: QuantizationPlan, batch: int, pool: Executor
) -> Tensor:
    """Any operation but a layer, some images at a time; as many as a batch has where it may look across images."""
    apart, count = forward.computes(node), len(inputs[0])
    size = AT_ONCE if apart else batch

    def part(first: int) -> Tensor:
        images = [x[first : first + size] for x in inputs]
        if apart:
            resized = replace(node, shape=(len(images[0]), *node.shape[1:]))
            return simulate.compute(resized, result, plan.activations, plan.weights, images, shifts=plan.shifts)
        full = [simulate.full_batch(x, size) for x in images]
        made = simulate.compute(node, result, plan.activations, plan.weights, full, shifts=plan.shifts)
        return made[: count - first]

    return np.concatenate(list(pool.map(part, range(0, count, size))))


def _layer(
    node: Node,
    result: Node,
    x: Tensor,
    plan: QuantizationPlan,
    constant: Constant,
    adjust: Adjust | None,
    pool: Executor,
) -> Tensor:
    s_x, s_w, target = plan.activations[node.inputs[0]], plan.weights[node.name], plan.activations.get(result.name)
    weight = integers(node, plan, constant)
    parts = list(pool.map(lambda part: sums(node, _centred(part, s_x), weight), _parts(x)))
    mean = np.sum(list(pool.map(_total, parts)), axis=0) / (len(x) * parts[0][0, 0].numel())
    step = step_of(node, plan)
    own = node.bias if constant.bias is None else constant.bias
    assert own is not None
    bias = affine.quantize_bias(
        own if adjust is None else adjust(node, mean, step), s_x.scale, np.broadcast_to(s_w.scale, step.shape)
    )
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


def integers(node: Node, plan: QuantizationPlan, constant: Constant | None = None) -> NDArray[np.float32]:
    """A layer's integer weight, as f32: of the constant, or of the plan's, or of the network's own."""
    given = constant or plan.constants.get(node.name, Constant())
    weight = node.weight if given.weight is None else given.weight
    assert weight is not None
    return affine.quantize(weight, plan.weights[node.name]).astype(np.float32)


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

    assert weight is not None
    with torch.no_grad():
        return forward.product(node, x, torch.from_numpy(np.ascontiguousarray(weight)))


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
