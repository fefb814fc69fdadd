"""A refiner: a plan whose scales are fixed -> weights and biases that answer better on the same grid.

Scales come first and stay as they are (``fit_to_bias`` included): a weight that was chosen on one grid would be rounded
again on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan

MEMORY_BYTES = 1 << 28
"""Bound of one layer's sums for all images; what is held besides is smaller."""
FEWEST_IMAGES, MOST_IMAGES = 16, 128
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


@dataclass(frozen=True, eq=False)
class Task:
    """What a refiner is given. count: of the images it is to use. means: of the f32 network, on these images."""

    subject: Images
    plan: QuantizationPlan
    count: int
    means: Means
    on_layer: Hook = lambda done, total: None


class Refiner(Protocol):
    """Finds constants for a plan; the same task gives the same numbers."""

    def __call__(self, task: Task) -> dict[str, Constant]:
        """Constants of integer layers, on the grid of the plan."""
        ...


def images_for(network: Network) -> int:
    """How many images a refiner uses for a network: what fits into MEMORY_BYTES, within bounds."""
    largest = max((4 * int(np.prod(node.shape[1:])) for node in network.layers), default=1)
    return min(max(MEMORY_BYTES // largest, FEWEST_IMAGES), MOST_IMAGES)
