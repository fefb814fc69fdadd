"""The error that a layer's quantized weight adds to the layer's own output, on the activations of the f32 network.

S. Houache, Y. Traonmilin, J.-F. Aujol, "Layerwise error attribution for fast and robust mixed-precision post-training
quantization", 2026, equations (15) and (16), for a block g of layers and an image x:

    P_g,b(x) = sum over the layers l of g of |(W_l - Q_b(W_l)) S_(l-1)(x)|_2          S: activations of the f32 network
    score_g(b) = mean of P_g,b + (sample standard deviation of P_g,b) / sqrt(0.05)    over the images

One pass over the images scores every width. Here every layer is its own block. The paper leaves activations in f32;
where there is more than one width to choose for them, |W (S - Q_a(S))|_2 is added to P (this package's addition).

The errors of all layers are compared as they are, so that a function-preserving scaling of channels from one layer to
the next changes the score. The relative form divides each by |W_l S_(l-1)(x)|_2, the layer's own output without bias
(this package's addition too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from quantune.allocation.base import Scores, Subject
from quantune.numerics import affine
from quantune.numerics.ops.layer import columns
from quantune.quantization.bits import LayerBits

DELTA = 0.05
"""delta_score of the paper: the weight of the deviation, not a confidence level."""


@dataclass(frozen=True)
class OutputNorm:
    """The output-error score. images: the paper takes 256; the score settles with far fewer. relative: see above."""

    images: int = 16
    relative: bool = False

    def __call__(self, subject: Subject) -> Scores:
        """Score every choice of every layer in one pass over the images."""
        layers = subject.network.layers
        widths = sorted({(choice.weights, choice.format) for choice in subject.choices})
        inputs = sorted({choice.activations for choice in subject.choices})
        errors = {node.name: _weight_errors(node, subject, widths) for node in layers}
        quantized = {bits: subject.activations(bits) for bits in inputs} if len(inputs) > 1 else {}
        seen: dict[str, list[dict[LayerBits, float]]] = {node.name: [] for node in layers}
        for tensors in subject.observe([*dict.fromkeys(node.inputs[0] for node in layers)], self.images):
            for node in layers:
                x = tensors[node.inputs[0]]
                unit = self._unit(node, x)
                of_weights = {b: e / unit for b, e in zip(widths, norms(node, x, errors[node.name]), strict=True)}
                of_inputs = {
                    bits: _input_error(node, x, params[node.inputs[0]]) / unit for bits, params in quantized.items()
                }
                seen[node.name].append(
                    {c: of_weights[c.weights, c.format] + of_inputs.get(c.activations, 0.0) for c in subject.choices}
                )
        return {name: {c: bound([row[c] for row in rows]) for c in subject.choices} for name, rows in seen.items()}

    def _unit(self, node: Node, x: NDArray[np.float32]) -> float:
        """What errors on an image are measured in."""
        if not self.relative:
            return 1.0
        assert node.weight is not None
        return max(norms(node, x, node.weight[None])[0], float(np.finfo(np.float32).tiny))


def bound(values: Sequence[float]) -> float:
    """Mean plus sample standard deviation over sqrt(DELTA); the value itself when there is one."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)) + deviation / math.sqrt(DELTA)


def norms(node: Node, x: NDArray[np.float32], weights: NDArray[np.float32]) -> list[float]:
    """The norms of the layer's outputs on one image, without bias, for each of several weights [k, *weight's shape].

    |W C|_2 for the columns C that the weight meets. Where a group has few inputs, as in depthwise layers, it is cheaper
    as the sum of w (C Cᵀ) wᵀ over the rows w.
    """
    cols = columns(node, x)  # [groups, inputs of a group, positions]
    groups, reads, positions = cols.shape
    count, outputs = len(weights), weights.shape[1] // groups
    rows = weights.reshape(count, groups, outputs, reads)
    if reads * (positions + count * outputs) < count * outputs * positions:
        gram = cols @ cols.transpose(0, 2, 1)
        squares = np.einsum("bgor,bgor->b", rows @ gram[None], rows, dtype=np.float64)
    else:
        flat = rows.transpose(1, 0, 2, 3).reshape(groups, count * outputs, reads) @ cols
        squares = np.einsum("gbop,gbop->b", *[flat.reshape(groups, count, outputs, positions)] * 2, dtype=np.float64)
    return [math.sqrt(max(float(square), 0.0)) for square in squares]


def _weight_errors(node: Node, subject: Subject, widths: Sequence[tuple[int, str]]) -> NDArray[np.float32]:
    assert node.weight is not None
    params = [subject.weights(*width)[node.name] for width in widths]
    return np.stack([node.weight - affine.dequantize(affine.quantize(node.weight, p), p) for p in params])


def _input_error(node: Node, x: NDArray[np.float32], params: affine.QuantParams) -> float:
    assert node.weight is not None
    return norms(node, x - affine.dequantize(affine.quantize(x, params), params), node.weight[None])[0]
