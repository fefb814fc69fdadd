"""The whole integer network in numpy, layer by layer: what a compiled artifact must compute, bit for bit on CPU.

Works from the network and its plan alone, independently of the passes: it is the other side of the comparison. Integers
are those of the plan (u8 or s8); a tensor that is not quantized is f32. Everything between quantized tensors is exact,
and so is a layer or an average that ends in f32. Sums of f32 values are not: a layer's depend on an order that numpy
does not share with the compiled code, an addition's on whether the scaling before it is contracted with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import INPUT, Network, Node
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.ops import Operands, Tensor, room_of


class SimulationError(ValueError):
    """The network contains an operation that only the compiled artifact can compute; the message names it."""


def simulate(
    network: Network,
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    x: NDArray[np.float32],
    *,
    shifts: bool = False,
) -> dict[str, Tensor]:
    """Run ``x`` f32[n, c, h, w] through the network; returns every tensor by name, quantized ones as integers.

    A layer named in ``weights`` computes in integers. shifts: whether layers requantize by shifts. Raises
    SimulationError at a float operation.
    """
    return dict(steps(network, activations, weights, x, shifts=shifts))


def full_batch(batch: NDArray, size: int) -> NDArray:
    """A batch of a program's size: filled up with its first image."""
    return batch if len(batch) == size else np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])


def steps(
    network: Network,
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    x: NDArray[np.float32],
    *,
    shifts: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """As ``simulate``, one tensor at a time in execution order; tensors are dropped after their last reader."""
    order = schedule(network, activations, weights)
    last_reader = {name: result.name for node, result in order for name in node.inputs}
    alive: dict[str, Tensor] = {}
    for node, result in order:
        if node.kind == INPUT:
            value: Tensor = np.asarray(x, np.float32)
        else:
            value = compute(node, result, activations, weights, [alive[name] for name in node.inputs], shifts=shifts)
        params = activations.get(result.name)
        if params is not None and value.dtype == np.float32:
            value = affine.quantize(np.asarray(value, np.float32), params)
        alive[result.name] = value
        yield result.name, value
        for name in (*node.inputs, result.name):
            if last_reader.get(name, result.name) == result.name:
                alive.pop(name, None)


def schedule(
    network: Network, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams]
) -> list[tuple[Node, Node]]:
    """What is computed, in execution order: a node and the node of its result, which is a clamp that it takes over."""
    waiting = {
        clamp.name: node
        for node in network.nodes
        if (clamp := network.fused_clamp(node)) is not None
        and clamp.name in activations
        and _is_integer(node, activations, weights)
    }
    held = {node.name for node in waiting.values()}  # computed with their clamps
    return [(waiting.get(node.name, node), node) for node in network.nodes if node.name not in held]


def compute(
    node: Node,
    result: Node,
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    inputs: list[Tensor],
    *,
    shifts: bool,
) -> Tensor:
    """The tensor ``result``: that of ``node``, or of the clamp behind it."""
    room, target = room_of(node.kind), activations.get(result.name)
    if room is None:
        raise SimulationError(
            f"'{node.name}' ({node.detail or node.kind}) runs in f32 in the artifact; numpy does not compute it"
        )
    if _is_integer(node, activations, weights):
        specs = [activations[name] for name in node.inputs]
        if not node.traits.hands_on or node.traits.requantizes or all(spec == target for spec in specs):
            limits = (0, 0) if target is None else bounds(result, target)
            found = room.integer(node, Operands(inputs, specs, target, *limits, weights.get(node.name), shifts))
            if found is not None:
                return found
    return room.real(node, [_as_real(v, activations.get(n)) for v, n in zip(inputs, node.inputs, strict=True)])


def _is_integer(node: Node, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams]) -> bool:
    if not node.traits.integers or (node.traits.weighted and node.name not in weights):
        return False
    return all(name in activations for name in node.inputs)


def _as_real(value: Tensor, params: QuantParams | None) -> NDArray[np.float32]:
    if value.dtype == np.float32:
        return value  # type: ignore[return-value]
    assert params is not None
    return affine.dequantize(value, params)  # type: ignore[arg-type]


def bounds(result: Node, params: QuantParams) -> tuple[int, int]:
    """The integers between which a result may lie: the storage range, cut by the real bounds that a clamp has."""
    scale, zero_point = np.float32(params.scale), int(params.zero_point)

    def bound(value: float, fallback: int) -> int:
        if not math.isfinite(value):
            return fallback
        with np.errstate(over="ignore"):  # an overflow is an infinity, which saturates
            steps = np.rint(np.float32(value) / scale)
        return int(np.clip(steps + zero_point, params.qmin, params.qmax))

    return bound(result.lo, params.qmin), bound(result.hi, params.qmax)
