"""Orthogonality between layers: OMPQ's score, and its objective.

Y. Ma, T. Jin, X. Zheng, Y. Wang, H. Li, Y. Wu, G. Jiang, W. Zhang, R. Ji, "OMPQ: orthogonal mixed precision
quantization", AAAI 2023 (arXiv 2109.07865), in the form of the authors' code (MAC-AutoML/OMPQ, mixed_bit/ORM.py and
feature_extract.py). X_i holds what layer i gives on one batch, an image a row, behind its activation function; H
centres.

    K_i = H X_i X_iᵀ H        ORM(i, j) = <K_i, K_j> / (|K_i| |K_j|)                     (linear CKA)
    gamma_i = sum over j != i of ORM(i, j)        theta_i = exp(-beta * gamma_i)
    maximise  sum over i of b_i * mean over j >= i of theta_j     under the size

A layer whose result is added to something gives the sum, behind its activation function: the output of a residual block
belongs to the block's last layer. Where two layers are added, it is the one that more layers lead to; the other, on the
way around the block, has its own result, where the authors have no such layer and count its weights to the first.

form: the widths that the authors allow: ptq 2 to 4 bits for all layers, qat 4 to 8 and the first and last layer fixed
at the widest; None for all choices and both ends fixed. The score of b bits is minus the term that is maximised, which
makes the allocation an exact form of OMPQ's own; the authors' solver is in quantune.allocation.published. Score and
size are linear in bits, so that the exact optimum gives all layers but a few the least or the largest width.
Activations have one width for the whole network: the widest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network, Node
from quantune.allocation.base import Scores, Subject
from quantune.allocation.published import FORMS
from quantune.errors import UsageError
from quantune.quantization.bits import LayerBits

MEMORY_BYTES = 1 << 30
"""What the outputs of all layers on the batch may take; a batch of large images is cut to fit."""


@dataclass(frozen=True)
class Orthogonality:
    """OMPQ's score. images: the batch. beta: 10 in the authors' README, 1e-9 in their runs of MobileNetV2."""

    images: int = 32
    beta: float = 10.0
    form: str | None = None

    def __post_init__(self) -> None:
        if self.form not in (None, *FORMS):
            raise ValueError(f"form is '{self.form}'; expected one of {', '.join(FORMS)}")

    def __call__(self, subject: Subject) -> Scores:
        """Score every choice of every layer from one batch."""
        layers = subject.network.layers
        given = outputs(subject.network)
        per_image = sum(4 * int(np.prod(node.shape)) // node.shape[0] for node in layers)
        images = min(self.images, max(2, MEMORY_BYTES // per_image))
        rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in given.values()}
        for tensors in subject.observe([*rows], images):
            for name in rows:
                rows[name].append(tensors[name].reshape(-1))
        found = len(next(iter(rows.values())))
        if found < 2:
            raise UsageError(f"the orthogonality of layers needs 2 or more calibration images, there is {found}")
        of_layer = [np.stack(rows[given[node.name]]) for node in layers]
        worth = importance(orthogonality(of_layer), self.beta)
        return {
            node.name: {choice: -choice.weights * float(value) for choice in self._choices(subject, node)}
            for node, value in zip(layers, worth, strict=True)
        }

    def _choices(self, subject: Subject, node: Node) -> list[LayerBits]:
        """What a layer may have. UsageError where the form leaves nothing of it."""
        top, ends = max(subject.choices), (subject.network.layers[0], subject.network.layers[-1])
        if node in ends and self.form != "ptq":
            return [top]
        low, high = FORMS.get(self.form or "", (0, top.weights))
        kept = [c for c in subject.choices if low <= c.weights <= high and c.activations == top.activations]
        if not kept:
            raise UsageError(f"OMPQ's {self.form} form takes {low} to {high} bits, and none of them may be chosen")
        return kept


def outputs(network: Network) -> dict[str, str]:
    """Layer -> the tensor that is compared: behind the addition that ends its block, and behind the clamp."""
    depth: dict[str, int] = {}
    for node in network.nodes:
        depth[node.name] = max((depth[name] for name in node.inputs), default=0) + node.traits.weighted
    found = {}
    for node in network.layers:
        readers, tensor = network.consumers[node.name], node
        if len(readers) == 1 and readers[0].kind == "add":
            beside = [network.by_name[name] for name in readers[0].inputs if name != node.name]
            if all(not other.traits.weighted or depth[other.name] < depth[node.name] for other in beside):
                tensor = readers[0]
        found[node.name] = (network.fused_clamp(tensor) or tensor).name
    return found


def orthogonality(given: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The ORM matrix of layers' outputs, each [images, values]; 1 on the diagonal, symmetric, in [0, 1].

    A layer that gives the same for every image is orthogonal to all others.
    """
    grams = []
    for x in given:
        gram = (x @ x.T).astype(np.float64)
        centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
        norm = float(np.linalg.norm(centred))
        grams.append((centred / norm if norm > 0 else np.zeros_like(centred)).reshape(-1))
    stacked = np.stack(grams)
    return np.clip(stacked @ stacked.T, 0.0, 1.0)


def importance(orm: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """The weight of each layer's bits in the objective: the mean of theta over this and all later layers."""
    gamma = orm.sum(axis=1) - np.diag(orm)
    theta = np.exp(-beta * (gamma - gamma.min()))  # a common factor changes no allocation, and may underflow
    return np.cumsum(theta[::-1])[::-1] / np.arange(len(theta), 0, -1)
