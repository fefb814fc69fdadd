"""A Gaussian process over configurations: what neighbours in the space and in other models say of a point."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

CORRELATION = 0.7
"""Between the values of two configurations of a model that differ in one parameter."""
SHARED = 0.5
"""Part of the variance that is common to all models; the rest is a model's own."""
NOISE = 0.005
"""Variance of what no neighbour explains, in parts of the variance of the values."""
LEVEL = 5.0
"""Variance of the unknown mean, in the same parts: wide."""
SLOPE = 0.1
"""Variance of the weight of each feature (scaled to deviation 1), in the same parts."""


class Kriging:
    """Predicts a model's values from its own rows and from those of other models.

    The covariance of two rows is `CORRELATION` to the number of parameters in which they differ; rows of different
    models share `SHARED` of it. Features enter linearly, with weights common to all models. Nothing is fitted but the
    posterior: with a handful of models, learned length scales were no better than these in replays.

    place: (n, k), positions whose Manhattan distance counts differing parameters. features: (n, f), NaN where unknown.
    own: (n,) bool, rows of the model to predict. study: (n,) numbers of the models. value: (n,). variance: of values.
    """

    def __init__(
        self, place: np.ndarray, features: np.ndarray, study: np.ndarray, value: np.ndarray, variance: float
    ) -> None:
        self._place, self._study, self._variance = place, study, variance
        known = np.isfinite(features)
        counts = np.maximum(known.sum(axis=0), 1)
        self._center = np.where(known, features, 0.0).sum(axis=0) / counts
        spread = np.sqrt((np.where(known, features - self._center, 0.0) ** 2).sum(axis=0) / counts)
        self._spread = np.where(spread > 1e-9, spread, np.inf)  # a constant feature says nothing
        self._features = self._standard(features)
        covariance = self._covariance(place, self._features, study) + NOISE * variance * np.eye(len(value))
        self._factor = cho_factor(covariance, lower=True)
        self._mean = float(value.mean())
        self._weights = cho_solve(self._factor, value - self._mean)

    def predict(self, place: np.ndarray, features: np.ndarray, study: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of points (n, k) of one model, each of shape (n,)."""
        scaled = self._standard(features)
        cross = self._covariance(place, scaled, np.full(len(place), study))
        prior = self._variance * (1.0 + LEVEL + SLOPE * np.square(scaled).sum(axis=1))
        left = prior - np.einsum("ij,ji->i", cross, cho_solve(self._factor, cross.T))
        return self._mean + cross @ self._weights, np.sqrt(np.maximum(left, 1e-6 * self._variance))

    def _covariance(self, place: np.ndarray, features: np.ndarray, study: np.ndarray) -> np.ndarray:
        """Of the given rows with the known ones."""
        near = CORRELATION ** cdist(place, self._place, "cityblock")
        same = study[:, None] == self._study[None, :]
        near *= np.where(same, 1.0, SHARED)
        return self._variance * (near + LEVEL + SLOPE * features @ self._features.T)

    def _standard(self, features: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(features), (features - self._center) / self._spread, 0.0)
