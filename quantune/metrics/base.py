"""What a metric is: numbers of each image that are averaged over images, and a value of the averages.

So any part of the images has a value, and how sure the value of all is follows from the images without drawing again:
with the images' numbers x_i and the metric's value v(mean of x), the pseudo-values of the jackknife,

    p_i = n v(x) - (n - 1) v(x without i)

behave like independent measurements of v whose spread is that of one image (Tukey, "Bias and confidence in not quite
large samples", 1958). Where v is the mean itself they are the x_i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quantune.errors import UsageError

Array = NDArray[np.floating]
Rows = NDArray[np.float64]


class Metric(ABC):
    """Compares outputs with labels, or with the outputs of the f32 network.

    name: what requests and reports call it. higher: whether more is better. fraction: a share of 1, told in per cent
    and points. unit: told behind the number otherwise. compared: with the outputs of f32. binary: an image is right or
    wrong, and labels are class numbers.
    """

    name: str
    higher: ClassVar[bool] = True
    fraction: ClassVar[bool] = False
    compared: ClassVar[bool] = False
    binary: ClassVar[bool] = False
    unit: ClassVar[str] = ""

    def identity(self) -> str:
        """What decides the numbers: equal for metrics that measure the same."""
        return self.name

    @abstractmethod
    def check(self, shape: tuple[int, ...], label: tuple[int, ...] | None) -> None:
        """Raise UsageError where outputs of an image, of this shape, do not compare with labels of shape ``label``.

        label: () for a class number; None for images without labels.
        """

    @abstractmethod
    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """The numbers of each image, f64[n, k].

        outputs: [n, ...]. labels: [n, ...]. reference: the f32 network's outputs, given where ``compared``.
        """

    def value(self, means: Rows) -> NDArray[np.float64]:
        """The metric of numbers averaged over images: f64[..., k] -> f64[...]."""
        return means[..., 0]

    def text(self, value: float) -> str:
        """A value as people read it."""
        return f"{value:.2%}" if self.fraction else f"{value:.4g}{self.unit and ' '}{self.unit}"

    def better(self, a: float, b: float) -> bool:
        """Whether the value ``a`` is better than ``b``."""
        return a > b if self.higher else a < b


def value_of(metric: Metric, rows: Rows) -> float:
    """The metric of images, from their numbers, f64[n, k]."""
    return float(metric.value(rows.mean(axis=0)))


def pseudo_values(metric: Metric, rows: Rows) -> NDArray[np.float64]:
    """The jackknife's pseudo-values, f64[n]; their mean estimates the value, their spread is that of one image."""
    count = len(rows)
    if count == 1:
        return metric.value(rows)
    total = rows.sum(axis=0)
    without = metric.value((total - rows) / (count - 1))
    return count * metric.value(total / count) - (count - 1) * without


def same_shape(metric: str, outputs: tuple[int, ...], labels: tuple[int, ...] | None) -> None:
    """Raise UsageError unless labels have the shape of the outputs of an image."""
    if labels != outputs:
        has = "none" if labels is None else f"labels of shape {labels}"
        raise UsageError(f"metric {metric}: the outputs of an image have shape {outputs}, and the images {has}")
