"""The interface of scorers and proposers: what they may look at, and what they return.

A score says what a choice of bit widths costs in accuracy; smaller is better and only differences between choices
matter. Separable scores are summed over the layers; interactions also say what two choices cost together. A proposer
turns either into an allocation within budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network
from quantune.numerics.affine import QuantParams
from quantune.quantization.bits import BitWidths, LayerBits

Scores = Mapping[str, Mapping[LayerBits, float]]
"""Layer -> choice -> score. A choice that is not there is none that the layer may have."""

Tensors = Mapping[str, NDArray[np.float32]]

Column = tuple[str, LayerBits]
"""A layer and a choice for it."""

Costs = Mapping[str, Mapping[LayerBits, float]]
"""Layer -> choice -> what it costs: bytes of packed weights, milliseconds, …"""


@dataclass(frozen=True, eq=False)
class Interactions:
    """What choices cost together: an allocation x, one column a layer, costs xᵀ G x.

    matrix: G, symmetric and positive semidefinite, [columns, columns]. ValueError for another shape.
    """

    columns: tuple[Column, ...]
    matrix: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.columns)
        if self.matrix.shape != (count, count) or not np.allclose(self.matrix, self.matrix.T):
            raise ValueError(f"interactions of {count} columns: expected a symmetric matrix of that many rows")

    @property
    def separable(self) -> Scores:
        """The scores that are left where choices are taken for independent: the diagonal."""
        found: dict[str, dict[LayerBits, float]] = {}
        for (layer, choice), value in zip(self.columns, np.diag(self.matrix), strict=True):
            found.setdefault(layer, {})[choice] = float(value)
        return found


@dataclass(frozen=True)
class Budget:
    """An upper bound for the sum of costs. name: what is limited, for messages; unit: behind numbers."""

    costs: Costs
    limit: float
    name: str = "size"
    unit: str = "bytes"


@dataclass(frozen=True)
class Allocation:
    """A choice for each layer. score: what it costs by the scores. costs: sums by budget's name.

    gap: by how much the score may at most exceed the best possible, 0 where it is proven best, None where nothing is
    known.
    """

    bits: BitWidths
    score: float
    costs: Mapping[str, float]
    gap: float | None = 0.0


@dataclass(frozen=True)
class Problem:
    """What a proposer is to solve.

    agree: groups of layers that must have one width of activations, because they read the same tensor.
    """

    scores: Scores | Interactions
    budgets: Sequence[Budget]
    agree: Sequence[Sequence[str]] = ()

    @property
    def separable(self) -> Scores:
        """The scores without interactions."""
        return self.scores.separable if isinstance(self.scores, Interactions) else self.scores


class Subject(Protocol):
    """A network to be scored, on its calibration images."""

    @property
    def network(self) -> Network:
        """The network; all of its layers are to have bit widths."""
        ...

    @property
    def choices(self) -> Sequence[LayerBits]:
        """What each layer may have."""
        ...

    def weights(self, bits: int, form: str = "") -> Mapping[str, QuantParams]:
        """Layer -> the quantization of its weight with so many bits, of a format where it is not the uniform one."""
        ...

    def activations(self, bits: int) -> Mapping[str, QuantParams]:
        """Tensor -> its quantization with so many bits, for every tensor that a layer reads."""
        ...

    def observe(self, tensors: Sequence[str], images: int) -> Iterator[Tensors]:
        """For each of the first calibration images: tensors of the f32 network by name, f32[1, ...]."""
        ...

    def logits(self, widths: Sequence[BitWidths], images: int) -> Iterator[NDArray[np.float32]]:
        """For f32 and then for each of the widths: the network's first result on the first images, f32[images, ...]."""
        ...

    def alone(self, columns: Sequence[Column], images: int) -> Iterator[NDArray[np.float32]]:
        """The same of the f32 network, and of those in which one layer alone is quantized, by a choice."""
        ...


class Scorer(Protocol):
    """One way to score: separable or with interactions."""

    @property
    def images(self) -> int:
        """How many calibration images it looks at."""
        ...

    def __call__(self, subject: Subject) -> Scores | Interactions:
        """Score every choice of every layer."""
        ...


class Proposer(Protocol):
    """One way to allocate within budgets. UsageError, with the least possible, where one cannot be kept."""

    def __call__(self, problem: Problem) -> Allocation:
        """The allocation that is proposed."""
        ...
