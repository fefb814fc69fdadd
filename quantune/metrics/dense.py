"""Metrics of dense outputs: the label is an array, a class or a number for each place."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quantune.errors import UsageError
from quantune.metrics.base import Array, Metric, Rows, same_shape

IGNORED = 255
"""Places of a mask that count for nothing, as in the masks of Pascal VOC and Cityscapes; negative classes too."""


class MeanIoU(Metric):
    """Intersection over union of each class over all images, averaged over the classes that occur.

    Outputs [n, classes, height, width], of which the highest is the answer; labels int[n, height, width].
    """

    name = "mIoU"
    fraction: ClassVar[bool] = True

    def check(self, shape: tuple[int, ...], label: tuple[int, ...] | None) -> None:
        """Expects a score of each class at each place, and masks of the same height and width."""
        if len(shape) != 3 or shape[0] < 2:
            raise UsageError(
                f"metric {self.name}: the outputs of an image have shape {shape}, expected (classes, h, w)"
            )
        if label != shape[1:]:
            has = "have no labels" if label is None else f"have labels of shape {label}"
            raise UsageError(f"metric {self.name}: the images {has}, expected masks of shape {shape[1:]}")

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """Places of the intersection and of the union of each class, f64[n, 2 * classes]."""
        assert labels is not None
        mask, classes = np.asarray(labels, np.int64), outputs.shape[1]
        counted = (mask != IGNORED) & (mask >= 0)
        if mask[counted].max(initial=0) >= classes:
            raise UsageError(f"metric {self.name}: a mask has class {mask[counted].max()}, the model {classes} classes")
        found = outputs.argmax(axis=1)
        both, either = np.empty((2, len(outputs), classes))
        for number in range(classes):
            a, b = (found == number) & counted, (mask == number) & counted
            both[:, number], either[:, number] = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
        return np.concatenate([both, either], axis=1)

    def value(self, means: Rows) -> NDArray[np.float64]:
        """The mean over classes of intersection / union; a class that is nowhere does not count."""
        both, either = np.split(means, 2, axis=-1)
        occurs = either > 0
        shares = np.divide(both, either, out=np.zeros_like(both), where=occurs)
        return shares.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)


class MeanSquaredError(Metric):
    """The mean over images and places of (output - label)²."""

    name = "mse"
    higher: ClassVar[bool] = False

    def check(self, shape: tuple[int, ...], label: tuple[int, ...] | None) -> None:
        """Expects labels of the outputs' shape."""
        same_shape(self.name, shape, label)

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """The mean squared error of each image, f64[n, 1]."""
        error = outputs.astype(np.float64) - np.asarray(labels, np.float64)
        return np.square(error).reshape(len(error), -1).mean(axis=1, keepdims=True)


class PeakSignalToNoise(MeanSquaredError):
    """10·log10(1 / mean squared error) in dB, over all images at once, of outputs whose range is [0, 1]."""

    name = "psnr"
    higher: ClassVar[bool] = True
    unit: ClassVar[str] = "dB"

    def value(self, means: Rows) -> NDArray[np.float64]:
        """In dB; outputs that equal the labels are as good as a mean squared error of 1e-15."""
        return -10 * np.log10(np.maximum(means[..., 0], 1e-15))
