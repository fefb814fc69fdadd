"""Distances of an artifact's outputs from those of the f32 network: no labels are needed, any output shape will do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quantune.metrics.base import Array, Metric, Rows


class _Distance(Metric):
    compared: ClassVar[bool] = True

    def check(self, shape: tuple[int, ...], label: tuple[int, ...] | None) -> None:
        """Nothing to check: labels are not looked at."""


class Divergence(_Distance):
    """KL(p || q) in nats, the mean over images and places; p, q are the softmax over classes of f32 and artifact.

    Outputs [n, classes, ...] before the softmax.
    """

    name = "kl"
    higher: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """The divergence of each image, f64[n, 1]."""
        from scipy.special import log_softmax  # whoever only runs artifacts has no scipy

        assert reference is not None
        p, q = (log_softmax(values.astype(np.float64), axis=1) for values in (reference, outputs))
        each = (np.exp(p) * (p - q)).sum(axis=1)
        return each.reshape(len(each), -1).mean(axis=1, keepdims=True)


class SignalToNoise(_Distance):
    """10·log10(sum of squares of f32's outputs / sum of squares of the differences) in dB, over all images at once."""

    name = "sqnr"
    unit: ClassVar[str] = "dB"

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """Signal and noise of each image, f64[n, 2]."""
        assert reference is not None
        exact = reference.astype(np.float64).reshape(len(reference), -1)
        noise = exact - outputs.astype(np.float64).reshape(len(outputs), -1)
        return np.stack([np.square(exact).sum(axis=1), np.square(noise).sum(axis=1)], axis=1)

    def value(self, means: Rows) -> NDArray[np.float64]:
        """In dB, 100 at most: less noise than f32's own rounding is none."""
        signal, noise = means[..., 0], means[..., 1]
        least = np.maximum(signal, np.finfo(np.float64).tiny) * 1e-10
        return 10 * np.log10(np.maximum(signal, least) / np.maximum(noise, least))


class Cosine(_Distance):
    """The cosine of the angle between the outputs of artifact and f32, the mean over images."""

    name = "cosine"

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """The cosine of each image, f64[n, 1]; 1 where both outputs are 0, 0 where one is."""
        assert reference is not None
        a, b = (values.astype(np.float64).reshape(len(values), -1) for values in (outputs, reference))
        sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        products = np.divide((a * b).sum(axis=1), sizes, out=np.zeros(len(a)), where=sizes > 0)
        both_zero = ~a.any(axis=1) & ~b.any(axis=1)
        return np.where(both_zero, 1.0, np.clip(products, -1, 1))[:, None]
