"""Bias correction: each channel's mean is what it is in the f32 network.

Rounding and saturation of weights and activations move the mean of a layer's outputs, and the layers behind it see that
as a signal. With y the f32 layer's output before its activation function, x the integers that the layer reads, q its
integer weight, s what a step of their sums is worth, and E the mean over images and positions,

    b = E[y] - s E[sum (x - z) q]

puts the mean right, up to the rounding of b, which is of i32 at scale s.

fast: x are the f32 network's own values, quantized: each layer is put right by itself (Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, in its empirical form).
sequential: x are what the corrected layers before it really give, in execution order, so that what is left of their
errors is put right too (as AIMET's empirical bias correction and NNCF's BiasCorrection do).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network, Node
from quantune.numerics import affine
from quantune.quantization.constants import Constant
from quantune.refine import twin
from quantune.refine.base import AT_ONCE, Hook, Images, Means, Task


def layer_means(subject: Images, count: int, on_image: Hook = lambda done, total: None) -> dict[str, NDArray]:
    """`Means` of the f32 network on the first ``count`` images."""
    return _average(subject, count, subject.network.layers, twin.mean_outputs, on_image)


def fast(task: Task) -> dict[str, Constant]:
    """Constants that put each layer right by itself."""
    plan = task.plan

    def mean(node: Node, x: NDArray[np.float32]) -> NDArray[np.float64]:
        return twin.mean_sums(node, affine.quantize(x, plan.activations[node.inputs[0]]), plan)

    layers = [node for node in task.subject.network.layers if node.name in plan.weights]
    means = _average(task.subject, task.count, layers, mean, task.on_layer)
    return {
        node.name: Constant(bias=corrected(task.means[node.name], means[node.name], twin.step_of(node, plan)))
        for node in layers
    }


def sequential(task: Task) -> dict[str, Constant]:
    """Constants that put each layer right behind those before it."""
    found: dict[str, Constant] = {}

    def adjust(node: Node, mean: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float32]:
        bias = corrected(task.means[node.name], mean, step)
        found[node.name] = Constant(bias=bias)
        task.on_layer(len(found), len(task.plan.weights))
        return bias

    for _ in twin.run(task.subject, task.plan, task.count, adjust):
        pass
    return found


def corrected(wanted: NDArray[np.float64], mean: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float32]:
    """The bias with which sums of this mean have the wanted one; at most what fits into i32 (``affine.BIAS_LIMIT``)."""
    limit = affine.BIAS_LIMIT * step
    return np.clip(wanted - step * mean, -limit, limit).astype(np.float32)


def _average(
    subject: Images,
    count: int,
    layers: Sequence[Node],
    mean: Callable[[Node, NDArray[np.float32]], NDArray[np.float64]],
    on_image: Hook,
) -> dict[str, NDArray[np.float64]]:
    """What ``mean`` says of each layer and the tensor it reads in f32, averaged over images."""
    names = tuple(dict.fromkeys(node.inputs[0] for node in layers))
    total = {node.name: np.zeros(len(node.bias) if node.bias is not None else 0) for node in layers}
    seen = 0
    with twin.workers() as pool:
        for batch in _batches(subject.observe(names, count)):
            size = len(batch[names[0]])
            found = pool.map(lambda node, batch=batch: mean(node, batch[node.inputs[0]]), layers)
            for node, values in zip(layers, found, strict=True):
                total[node.name] += size * values
            seen += size
            on_image(seen, count)
    return {name: values / max(seen, 1) for name, values in total.items()}


def _batches(images: Iterable[dict[str, NDArray[np.float32]]]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Some images at a time, [n, ...]."""
    images = iter(images)
    while group := list(itertools.islice(images, AT_ONCE)):
        yield {name: np.concatenate([tensors[name] for tensors in group]) for name in group[0]}


def check_means(means: Means, network: Network) -> None:
    """Raise ValueError unless there is a mean for each output of each layer."""
    for node in network.layers:
        if node.bias is None or means.get(node.name, np.empty(0)).shape != node.bias.shape:
            raise ValueError(f"means: expected one for each output of '{node.name}'")
