"""What quantized layers do to the output together: CLADO's measured pairs, and Gram, their Gauss-Newton form.

CLADO: Z. Deng, X. Wang, S. Sharify, M. Orshansky, "Mixed-precision quantization with cross-layer dependencies", 2023
(arXiv 2307.05657), in the form of the authors' code (JamesTuna/CLADO_MPQ). With L(S) the loss of the network in which
the layers of S have other choices than the widest,

    O_i = L({i}) - L({})       G_ii = 2 O_i
    O_ij = L({i, j}) - L({})   G_ij = O_ij - O_i - O_j      another layer; 0 for two choices of one
    negative eigenvalues of G become 0; minimise xᵀ G x

The loss is the mean divergence KL(f32 || quantized) of the class probabilities, which needs no labels; the authors use
it beside the cross entropy. Their widths are 2, 4 and 8 bits: pairs are many, 1 + LB + LB²(L-1)/2L runs.

Gram: with d_i = y({i}) - y({}) the difference that one choice makes to the outputs, [images, classes],

    G_ij = mean over images of d_iᵀ F d_j       F = (diag p - p pᵀ) / 2, p the class probabilities of f32

which is the second-order form of that divergence where outputs move by the sum of what the choices do alone. It is
positive semidefinite by construction and takes 1 + LB runs. ``metric="power"`` has F = I / sum y², whose diagonal is
the score of quantune.allocation.sqnr.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from quantune.allocation.base import Column, Interactions, Subject
from quantune.allocation.quadratic import positive
from quantune.quantization.bits import BitWidths, LayerBits


@dataclass(frozen=True)
class Gram:
    """Interactions from every choice of every layer alone. metric: kl or power."""

    images: int = 16
    metric: str = "kl"

    def __post_init__(self) -> None:
        if self.metric not in ("kl", "power"):
            raise ValueError(f"metric is '{self.metric}'; expected kl or power")

    def __call__(self, subject: Subject) -> Interactions:
        """Score every choice of every layer, and all pairs of them."""
        widest = max(subject.choices)
        columns = _columns(subject, subject.choices)
        flips = [column for column in columns if column[1] != widest]
        widths = [BitWidths(widest), *(BitWidths(widest, (column,)) for column in flips)]
        outputs = subject.logits(widths, self.images)
        exact = next(outputs)
        baseline = next(outputs)
        images = len(exact)
        differences = np.stack([(output - baseline).astype(np.float64).reshape(images, -1) for output in outputs])
        reference = exact.astype(np.float64).reshape(images, -1)
        return _filled(columns, flips, self._products(differences, reference))

    def _products(self, d: NDArray[np.float64], exact: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = d.reshape(len(d), -1)
        if self.metric == "power":
            return flat @ flat.T / max(float(np.square(exact).sum()), np.finfo(np.float64).tiny)
        p = softmax(exact, axis=1)
        root = (np.sqrt(p) * (d - (d * p).sum(axis=2, keepdims=True))).reshape(len(d), -1)
        return root @ root.T / (2 * len(exact))


@dataclass(frozen=True)
class Clado:
    """Interactions from every pair of choices of two layers. widths: of weights, beside the widest."""

    images: int = 16
    widths: tuple[int, ...] = (2, 4, 8)

    def __call__(self, subject: Subject) -> Interactions:
        """Measure every choice alone and every pair; layers may have the authors' widths only."""
        widest = max(subject.choices)
        kept = [c for c in subject.choices if c == widest or (c.weights in self.widths and _same_reads(c, widest))]
        columns = _columns(subject, kept)
        flips = [column for column in columns if column[1] != widest]
        pairs = [(i, j) for i, j in itertools.combinations(range(len(flips)), 2) if flips[i][0] != flips[j][0]]
        asked = [(), *((flip,) for flip in flips), *((flips[i], flips[j]) for i, j in pairs)]
        outputs = subject.logits([BitWidths(widest, layers) for layers in asked], self.images)
        exact = log_softmax(next(outputs).astype(np.float64), axis=1)
        losses = np.array([_divergence(exact, output) for output in outputs])
        alone, together = losses[1 : 1 + len(flips)] - losses[0], losses[1 + len(flips) :] - losses[0]
        matrix = np.diag(2 * alone)
        for (i, j), both in zip(pairs, together, strict=True):
            matrix[i, j] = matrix[j, i] = both - alone[i] - alone[j]
        return _filled(columns, flips, positive(matrix) / 2)  # halved: the divergence itself


def _same_reads(choice: LayerBits, widest: LayerBits) -> bool:
    return choice.activations == widest.activations


def _columns(subject: Subject, choices: Sequence[LayerBits]) -> tuple[Column, ...]:
    return tuple((node.name, choice) for node in subject.network.layers for choice in choices)


def _filled(columns: tuple[Column, ...], flips: Sequence[Column], products: NDArray[np.float64]) -> Interactions:
    """The matrix of all columns: the widest choice changes nothing."""
    matrix = np.zeros((len(columns), len(columns)))
    at = [columns.index(flip) for flip in flips]
    matrix[np.ix_(at, at)] = (products + products.T) / 2
    return Interactions(columns, matrix)


def _divergence(exact: NDArray[np.float64], output: NDArray[np.float32]) -> float:
    found = log_softmax(output.astype(np.float64), axis=1)
    return float((np.exp(exact) * (exact - found)).sum(axis=1).mean())
