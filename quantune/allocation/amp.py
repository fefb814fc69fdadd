"""AIMET's automatic mixed precision: a list of choices, the least harmful first, walked until a metric fails.

N. Pandey, M. Nagel, M. van Baalen, Y. Huang, C. Patel, T. Blankevoort, "A practical mixed precision algorithm for
post-training quantization", 2023 (arXiv 2302.05397), and AIMET's aimet_torch/amp, aimet_common/amp.

Phase 1 scores each choice of each layer with everything else in f32, by the outputs y of the f32 network and y' of the
other, batch by batch, and takes the mean over the images:

    SQNR = mean y² / (mean (y - y')² + 1e-4)

`Alone` is its inverse, so that smaller is better as everywhere here. The outputs come from a simulation in which one
layer, and what it reads, is quantized. AIMET takes 128 images, and groups of quantizers that must agree where
activations have several widths; here activations have one.

Phase 2 sorts all choices by their score, then the wider ones first, and lowers layers in that order: each prefix of the
list is an allocation. The last one whose metric is still good is the answer; how it is found without measuring them all
is in quantune.allocation.walk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantune.allocation.base import Allocation, Column, Problem, Scores, Subject
from quantune.allocation.controls import walked
from quantune.quantization.bits import BitWidths

EPSILON = 1e-4
BATCH = 16
"""Images whose SQNR is one ratio."""


@dataclass(frozen=True)
class Alone:
    """AIMET's first phase; every choice of every layer costs a simulation over the images."""

    images: int = 16

    def __call__(self, subject: Subject) -> Scores:
        """Score every choice of every layer, all others in f32."""
        columns: list[Column] = [(n.name, choice) for n in subject.network.layers for choice in subject.choices]
        outputs = subject.alone(columns, self.images)
        exact = next(outputs)
        scores: dict[str, dict] = {node.name: {} for node in subject.network.layers}
        for (layer, choice), output in zip(columns, outputs, strict=True):
            scores[layer][choice] = 1 / sqnr(exact, output)
        return scores


def sqnr(exact: np.ndarray, output: np.ndarray) -> float:
    """AIMET's ratio of outputs [images, ...]: the mean over the images of those of their batches."""
    total = 0.0
    for first in range(0, len(exact), BATCH):
        y = exact[first : first + BATCH].astype(np.float64)
        noise = y - output[first : first + BATCH]
        total += len(y) * float(np.square(y).mean()) / (float(np.square(noise).mean()) + EPSILON)
    return total / len(exact)


def prefixes(problem: Problem) -> list[BitWidths]:
    """Every allocation on the list, the widest everywhere first."""
    scores = problem.separable
    now = {layer: max(row) for layer, row in scores.items()}
    entries = [
        (value, -choice.weights, layer, choice) for layer, row in scores.items() for choice, value in row.items()
    ]
    found = [BitWidths.of_layers(now.items())]
    for _, _, layer, choice in sorted(entries):
        if choice < now[layer]:
            now[layer] = choice
            found.append(BitWidths.of_layers(now.items()))
    return found


def from_list(problem: Problem) -> Allocation:
    """The first allocation on the list within the budgets."""
    return walked(problem, prefixes(problem))
