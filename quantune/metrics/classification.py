"""Metrics of classification: the label is the number of a class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quantune.errors import UsageError
from quantune.metrics.base import Array, Metric, Rows


class TopK(Metric):
    """The share of images whose class is among the ``k`` highest outputs; equal outputs are ranked by class number."""

    fraction: ClassVar[bool] = True
    binary: ClassVar[bool] = True

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"top-{k}"

    def check(self, shape: tuple[int, ...], label: tuple[int, ...] | None) -> None:
        """Expects one output a class, more classes than ``k``, and class numbers as labels."""
        if len(shape) != 1:
            raise UsageError(f"metric {self.name}: the outputs of an image have shape {shape}, expected one per class")
        if shape[0] <= self.k:
            many = "one number" if shape[0] == 1 else f"{shape[0]} numbers"
            raise UsageError(
                f"metric {self.name}: the model gives {many} an image, expected {self.k + 1} classes or more"
            )
        if label != ():
            has = "have no labels" if label is None else f"have labels of shape {label}"
            raise UsageError(f"metric {self.name}: the images {has}, expected class numbers")

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """1 for an image that is answered right, else 0."""
        assert labels is not None
        if self.k == 1:
            return (outputs.argmax(axis=1) == labels).astype(np.float64)[:, None]
        first = np.argsort(-outputs, axis=1, kind="stable")[:, : self.k]
        return (first == np.asarray(labels)[:, None]).any(axis=1).astype(np.float64)[:, None]
