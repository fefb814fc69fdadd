"""Orthogonality between layers: OMPQ's score, and its objective.

Y. Ma, T. Jin, X. Zheng, Y. Wang, H. Li, Y. Wu, G. Jiang, W. Zhang, R. Ji, "OMPQ: orthogonal mixed precision
quantization", AAAI 2023 (arXiv 2109.07865), in the form of the authors' code (MAC-AutoML/OMPQ, mixed_bit/ORM.py and
feature_extract.py). X_i holds the outputs of layer i on one batch, an image a row; H centres.

    K_i = H X_i X_iᵀ H        ORM(i, j) = <K_i, K_j> / (|K_i| |K_j|)                     (linear CKA)
    gamma_i = sum over j != i of ORM(i, j)        theta_i = exp(-beta * gamma_i)
    maximise  sum over i of b_i * mean over j >= i of theta_j     under the size        first and last layer: 8 bits

The score of b bits is minus the term that is maximised, which makes the allocation an exact form of OMPQ's own. (The
authors solve it with continuous bits and round.) Activations have one width for the whole network: the widest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.allocation.base import Scores, Subject
from quantune.errors import UsageError

MEMORY_BYTES = 1 << 30
"""What the outputs of all layers on the batch may take; a batch of large images is cut to fit."""


@dataclass(frozen=True)
class Orthogonality:
    """OMPQ's score. images: the batch; beta: 10 in the authors' README, 1e-9 in their runs of MobileNetV2."""

    images: int = 32
    beta: float = 10.0

    def __call__(self, subject: Subject) -> Scores:
        """Score every choice of every layer from one batch."""
        layers = subject.network.layers
        per_image = sum(4 * int(np.prod(node.shape)) // node.shape[0] for node in layers)
        images = min(self.images, max(2, MEMORY_BYTES // per_image))
        rows: dict[str, list[NDArray[np.float32]]] = {node.name: [] for node in layers}
        for tensors in subject.observe([*rows], images):
            for name in rows:
                rows[name].append(tensors[name].reshape(-1))
        found = len(next(iter(rows.values())))
        if found < 2:
            raise UsageError(f"the orthogonality of layers needs 2 or more calibration images, there is {found}")
        worth = importance(orthogonality([np.stack(outputs) for outputs in rows.values()]), self.beta)
        widest = max(choice.activations for choice in subject.choices)
        choices = [choice for choice in subject.choices if choice.activations == widest]
        scores = {
            node.name: {choice: -choice.weights * float(value) for choice in choices}
            for node, value in zip(layers, worth, strict=True)
        }
        top = max(choices)
        for node in (layers[0], layers[-1]):
            scores[node.name] = {top: scores[node.name][top]}
        return scores


def orthogonality(outputs: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The ORM matrix of layers' outputs, each [images, values]; 1 on the diagonal, symmetric, in [0, 1].

    A layer that gives the same for every image is orthogonal to all others.
    """
    grams = []
    for x in outputs:
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
