"""Which way each weight is rounded: chosen by what a layer or a block answers on calibration images.

With d and u the integers next to w / s, below and above, and h in [0, 1] for each weight,

    q = d + h (u - d)       h = clamp(1.2 sigmoid(a) - 0.1)       a: so that s q = w at the beginning

gradient descent on a finds what makes a unit's answer most like the f32 network's. The unit reads what the quantized
network before it gives, the f32 one reads its own; the activation function is part of the unit. Of each step,

    n r(a) / r(nearest) + sum (1 - |2 h - 1|**beta)

is made smaller, r being the squared error of a few images, each channel's over its variance, n the number of weights.
beta falls from 20 to 2, which drives each h to 0 or 1; the first fifth of the steps goes without that sum. So neither
the size of a channel nor that of a unit matters. Whatever was found is compared with rounding to the nearest, which
stays where it is better.

adaround: each layer is a unit (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML
2020).
brecq: blocks are (Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR
2021), see quantune/refine/units.py; without its Fisher weights, for which labels are needed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.ops import Tensor
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan
from quantune.refine import bias, forward, twin, units
from quantune.refine.base import Task
from quantune.refine.units import Unit

if TYPE_CHECKING:
    import torch

STEPS = 400
"""Of descent, for each unit."""
RATE = 0.02
BATCH = 32
POSITIONS = 1 << 13
"""Of the widest layer that a step looks at, at most; fewer images then make a step, but FEWEST_IN_STEP."""
FEWEST_IN_STEP = 8
PARTS = 2
"""Into which a step's images are divided, each on a processor of its own: the same numbers on any machine."""
COMPARED = 128
"""Images on which what was found is compared with rounding to the nearest."""
BETAS = 20.0, 2.0
WARM = 0.2
FORCE = 1.0
FLOOR = 1e-3
"""Least variance of a channel, over that of all: what hardly varies hardly matters."""

_NO_PLAN = QuantizationPlan({}, {})


def adaround(task: Task) -> dict[str, Constant]:
    """Constants by layers."""
    return _refined(task, units.layers)


def brecq(task: Task) -> dict[str, Constant]:
    """Constants by blocks."""
    return _refined(task, units.blocks)


def _refined(task: Task, split: Callable[[units.Steps], list[Unit]]) -> dict[str, Constant]:
    found: dict[str, Constant] = {}
    with twin.workers() as pool, twin.alone():
        real = twin.Walk(task.subject, _NO_PLAN, task.count, pool)
        quantized = twin.Walk(task.subject, task.plan, task.count, pool)
        parts = split(quantized.order)
        work = [max(sum(node.macs for node in unit.layers), 1) for unit in parts]
        for i, unit in enumerate(parts):
            target = real.until(unit.output)

            def hear(share: float, i: int = i) -> None:
                task.on_layer(round(1000 * (sum(work[:i]) + share * work[i]) / sum(work)), 1000)

            known = task.store.read(unit.output)
            if known is None:
                known = _fitted(unit, quantized, target, task, pool, hear)
                task.store.write(unit.output, known)
            hear(1.0)
            _go_on(unit, quantized, real, task, known, found)
    return found


def _go_on(
    unit: Unit,
    quantized: twin.Walk,
    real: twin.Walk,
    task: Task,
    known: dict[str, Constant],
    found: dict[str, Constant],
) -> None:
    """Compute a unit with its constants, and correct its biases where that is wanted."""

    def adjust(node: Node, mean: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float32]:
        corrected = bias.corrected(real.means[node.name], mean, step)
        known[node.name] = Constant(known[node.name].weight if node.name in known else None, corrected)
        return corrected

    for _ in unit.steps:
        quantized.next(adjust if task.bias == "sequential" else None, known)
    found.update(known)


def _fitted(
    unit: Unit, walk: twin.Walk, target: Tensor | None, task: Task, pool: Executor, hear: Callable[[float], None]
) -> dict[str, Constant]:
    """Weights of a unit's integer layers."""
    plan = task.plan
    layers = [node for node in unit.layers if node.name in plan.weights]
    if not layers or target is None or any(name not in walk.alive for name in unit.inputs):
        return {}
    if not all(forward.computes(node) for node, _ in unit.steps):
        return {}
    return _Fit(unit, layers, plan, {name: walk.alive[name] for name in unit.inputs}, target, pool).run(hear)


class _Rounding:
    """The roundings of one layer's weight."""

    def __init__(self, node: Node, params: QuantParams) -> None:
        import torch

        assert node.weight is not None
        self.node, self.params = node, params
        scale = affine.along(params.scale, node.weight.ndim, params.axis).astype(np.float32)
        self.scale = torch.from_numpy(np.ascontiguousarray(scale))
        below, above = (q.astype(np.float32) for q in affine.neighbours(node.weight, params))
        gap = above - below
        share = np.clip((node.weight / scale - below) / np.maximum(gap, 1), 0.0, 1.0)
        self.below, self.gap = torch.from_numpy(below), torch.from_numpy(gap)
        self.a = torch.from_numpy(-np.log(1.2 / (share + 0.1) - 1).astype(np.float32))
        self.nearest = torch.from_numpy(affine.quantize(node.weight, params).astype(np.float32)) * self.scale

    def h(self) -> tuple[torch.Tensor, torch.Tensor]:
        """How far each weight is from the integer below it to the one above, and the derivative of that by a."""
        import torch

        sigmoid = torch.sigmoid(self.a)
        h = sigmoid.mul(1.2).sub_(0.1)
        inside = (h > 0) & (h < 1)
        return h.clamp_(0, 1), sigmoid.mul_(1 - sigmoid).mul_(1.2).mul_(inside)

    def soft(self, h: torch.Tensor) -> torch.Tensor:
        return (self.below + h * self.gap).mul_(self.scale)

    def hard(self) -> torch.Tensor:
        return self.soft((self.a >= 0).float())

    def constant(self, weight: torch.Tensor) -> Constant:
        """The weight on its grid, to the last bit."""
        return Constant(affine.dequantize(affine.quantize(weight.numpy(), self.params), self.params))


class _Fit:
    """The search for the roundings of one unit."""

    def __init__(
        self,
        unit: Unit,
        layers: Sequence[Node],
        plan: QuantizationPlan,
        inputs: dict[str, Tensor],
        target: Tensor,
        pool: Executor,
    ) -> None:
        import torch

        self._unit, self._plan, self._pool = unit, plan, pool
        self._roundings = [_Rounding(node, plan.weights[node.name]) for node in layers]
        self._inputs = {name: torch.from_numpy(x) for name, x in inputs.items()}
        self._target = torch.from_numpy(np.ascontiguousarray(target))
        spread = target.var(axis=(0, *range(2, target.ndim)), dtype=np.float64)
        spread = np.maximum(spread, FLOOR * spread.mean()) if spread.any() else np.ones_like(spread)
        shape = (1, -1, *[1] * (target.ndim - 2))
        self._weights = torch.from_numpy((1 / np.sqrt(spread)).astype(np.float32)).reshape(shape)
        self._fixed = {
            node.name: (torch.from_numpy(np.array(node.weight)), torch.from_numpy(np.array(node.bias)))
            for node in unit.layers
        }
        widest = max(int(np.prod(node.shape[2:])) for node in unit.layers)
        self._size = min(max(POSITIONS // widest, FEWEST_IN_STEP), BATCH, len(target))

    def run(self, hear: Callable[[float], None]) -> dict[str, Constant]:
        import torch

        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(self._unit.output.encode()).digest()[:8], "little"))
        compared = torch.from_numpy(rng.permutation(len(self._target))[:COMPARED])
        nearest = [rounding.nearest for rounding in self._roundings]
        before = self._error(compared, nearest)
        if before == 0:
            return {}
        count = sum(rounding.a.numel() for rounding in self._roundings)
        descent = torch.optim.Adam([rounding.a for rounding in self._roundings], RATE)
        for step in range(STEPS):
            images = torch.from_numpy(rng.choice(len(self._target), self._size, replace=False))
            shares = [rounding.h() for rounding in self._roundings]
            soft = [rounding.soft(h) for rounding, (h, _) in zip(self._roundings, shares, strict=True)]
            slopes = self._slopes(images, soft)
            beta = _beta(step)
            for rounding, (h, inside), slope in zip(self._roundings, shares, slopes, strict=True):
                gradient = slope.mul_(rounding.scale).mul_(rounding.gap).mul_(count / before)
                if beta:
                    side = 2 * h - 1
                    gradient -= FORCE * 2 * beta * side.abs().pow_(beta - 1).mul_(side.sign())
                rounding.a.grad = gradient.mul_(inside)
            descent.step()
            if step % 10 == 9:
                hear((step + 1) / STEPS)
        found = [rounding.hard() for rounding in self._roundings]
        if not self._error(compared, found) < before:
            return {}
        return {
            rounding.node.name: rounding.constant(weight)
            for rounding, weight in zip(self._roundings, found, strict=True)
        }

    def _slopes(self, images: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """The error's derivative by each weight."""
        import torch

        leaves = [weight.requires_grad_() for weight in weights]

        def part(some: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(self._loss(some, leaves) * (len(some) / len(images)), leaves)

        found = list(self._pool.map(part, images.split(-(-len(images) // PARTS))))
        return [functools.reduce(torch.add, slopes) for slopes in zip(*found, strict=True)]

    def _error(self, images: torch.Tensor, weights: list[torch.Tensor]) -> float:
        import torch

        def part(some: torch.Tensor) -> float:
            with torch.no_grad():
                return float(self._loss(some, weights)) * len(some)

        return sum(self._pool.map(part, images.split(FEWEST_IN_STEP))) / len(images)

    def _loss(self, images: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        """The squared error of the unit's answer, for each position the sum over channels."""
        answer = self._answer(images, weights)
        error = (answer - self._target[images]).mul_(self._weights).square_()
        return error.sum() / (answer.numel() / answer.shape[1])

    def _answer(self, images: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        known = dict(self._fixed)
        for rounding, weight in zip(self._roundings, weights, strict=True):
            known[rounding.node.name] = weight, known[rounding.node.name][1]
        tensors = {name: self._real(name, x[images]) for name, x in self._inputs.items()}
        for node, result in self._unit.steps:
            value = forward.compute(node, [tensors[name] for name in node.inputs], known)
            if result is not node:
                value = value.clamp(result.lo, result.hi)
            tensors[result.name] = _rounded(
                value, self._plan.activations.get(result.name), result.name != self._unit.output
            )
        return tensors[self._unit.output]

    def _real(self, name: str, x: torch.Tensor) -> torch.Tensor:
        import torch

        params = self._plan.activations.get(name)
        if params is None or x.dtype == torch.float32:
            return x
        return (x.float() - float(params.zero_point)) * float(params.scale)


def _rounded(x: torch.Tensor, params: QuantParams | None, rounds: bool) -> torch.Tensor:
    """Values within what integers can say, and rounded as they are; descent takes rounding for no change."""
    if params is None:
        return x
    scale, zero = float(params.scale), float(params.zero_point)
    x = x.clamp((params.qmin - zero) * scale, (params.qmax - zero) * scale)
    return x + (x.detach() / scale).round_().mul_(scale).sub_(x.detach()) if rounds else x


def _beta(step: int) -> float:
    """0 as long as nothing drives the roundings."""
    done = (step / STEPS - WARM) / (1 - WARM)
    return 0.0 if done < 0 else BETAS[1] + (BETAS[0] - BETAS[1]) * (1 - done)
