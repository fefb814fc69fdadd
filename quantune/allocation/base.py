"""The interface of the scorers: what they may look at, and what they return.

A score says what a choice of bit widths costs a layer in accuracy; smaller is better and only differences between
the choices of the layers matter. An allocation minimises the sum over the layers (see quantune.allocation.solve).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network
from quantune.numerics.affine import QuantParams
from quantune.quantization.bits import BitWidths, LayerBits

Scores = Mapping[str, Mapping[LayerBits, float]]
"""Layer -> choice -> score. A choice that is not there is none that the layer may have."""

Tensors = Mapping[str, NDArray[np.float32]]


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

    def weights(self, bits: int) -> Mapping[str, QuantParams]:
        """Layer -> the quantization of its weight with so many bits."""
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


class Scorer(Protocol):
    """One way to score."""

    @property
    def images(self) -> int:
        """How many calibration images it looks at."""
        ...

    def __call__(self, subject: Subject) -> Scores:
        """Score every choice of every layer."""
        ...
