"""A refiner: a plan whose scales are fixed -> weights and biases that answer better on the same grid.

Scales come first and stay as they are (``fit_to_bias`` included): a weight that was chosen on one grid would be rounded
again on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan

MEMORY_BYTES = 1 << 28
"""Bound of one layer's sums for all images; what is held besides is smaller."""
FEWEST_IMAGES, MOST_IMAGES = 16, 128
ROUNDING_BYTES = 1 << 30
"""Bound of what the search for roundings holds of all images."""
MOST_IN_ROUNDING = 1024
AT_ONCE = 16
"""Images that are looked at together."""

Means = Mapping[str, NDArray[np.float64]]
"""Layer -> the mean of each output channel in the f32 network, bias included, activation function not."""

Hook = Callable[[int, int], None]
"""Hears how many layers are done, and of how many."""


class Images(Protocol):
    """What a refiner may look at, always the first images of the calibration set."""

    @property
    def network(self) -> Network:
        """The network in f32."""
        ...

    def images(self, count: int) -> NDArray[np.float32]:
        """f32[count, c, h, w], or fewer where there are no more."""
        ...

    def observe(self, tensors: Sequence[str], count: int) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The f32 network's tensors by name, f32[1, ...], image by image."""
        ...


class Store(Protocol):
    """Where a refiner keeps what is finished, so that one that is broken off goes on there."""

    def read(self, part: str) -> dict[str, Constant] | None:
        """What was kept of a part of the network."""
        ...

    def write(self, part: str, found: Mapping[str, Constant]) -> None:
        """Keep it."""
        ...


class Nothing:
    """A store that keeps nothing."""

    def read(self, part: str) -> dict[str, Constant] | None:
        """None."""

    def write(self, part: str, found: Mapping[str, Constant]) -> None:
        """Nothing."""


@dataclass(frozen=True, eq=False)
class Task:
    """What a refiner is given.

    count: of the images it is to use. means: of the f32 network, on these images; a refiner of roundings does without.
    on_layer: hears how far it is. bias: how biases are corrected, for a refiner that goes through the network anyway.
    store: keeps parts.
    """

    subject: Images
    plan: QuantizationPlan
    count: int
    means: Means
    on_layer: Hook = lambda done, total: None
    bias: str = "none"
    store: Store = field(default_factory=lambda: Nothing())


class Refiner(Protocol):
    """Finds constants for a plan; the same task gives the same numbers."""

    def __call__(self, task: Task) -> dict[str, Constant]:
        """Constants of integer layers, on the grid of the plan."""
        ...


def images_for_rounding(network: Network) -> int:
    """How many images the search for roundings uses: as many as fit into ROUNDING_BYTES, within bounds."""
    return min(max(ROUNDING_BYTES // bytes_of_walks(network), FEWEST_IMAGES), MOST_IN_ROUNDING)


def bytes_of_walks(network: Network) -> int:
    """What walks through the f32 and the quantized network hold of an image at most.

    That is each tensor which is still to be read, in f32 and quantized, and a layer's sums twice.
    """
    last_reader = {name: i for i, node in enumerate(network.nodes) for name in node.inputs}
    alive, most = 0, 1
    ends: dict[int, int] = {}
    for i, node in enumerate(network.nodes):
        size = int(np.prod(node.shape[1:]))
        alive += size
        most = max(most, (4 + 1) * alive + 8 * size)
        ends[last_reader.get(node.name, i)] = ends.get(last_reader.get(node.name, i), 0) + size
        alive -= ends.get(i, 0)
    return most


def images_for(network: Network) -> int:
    """How many images a refiner uses for a network: what fits into MEMORY_BYTES, within bounds."""
    largest = max((4 * int(np.prod(node.shape[1:])) for node in network.layers), default=1)
    return min(max(MEMORY_BYTES // largest, FEWEST_IMAGES), MOST_IMAGES)
