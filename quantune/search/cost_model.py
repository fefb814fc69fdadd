"""The cost model: a small ensemble of gradient-boosted trees that predicts a value and how unsure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xgboost


@dataclass(frozen=True)
class CostModelOptions:
    """Ensemble settings.

    The rows are few (tens), so the trees are shallow and one thread is several times faster than many.
    """

    members: int = 4
    rounds: int = 60
    depth: int = 4
    learning_rate: float = 0.2
    regularization: float = 0.3
    column_fraction: float = 0.7


class CostModel:
    """Predicts values (larger or smaller is up to the caller) with mean and standard deviation.

    Every member sees the rows under random weights (the Bayesian bootstrap: unlike resampling it drops no row, which
    matters with five of them) and random columns. Where they disagree, the model is unsure. The same seed and rows give
    the same predictions.
    """

    def __init__(self, *, seed: int = 0, options: CostModelOptions | None = None) -> None:
        self._seed = seed
        self._options = options or CostModelOptions()
        self._boosters: list[xgboost.Booster] = []
        self._mean = 0.0
        self._scale = 0.0

    def fit(self, x: np.ndarray, y: np.ndarray) -> CostModel:
        """Learn from rows x (n, columns) and finite values y (n,); one row or constant values give a constant model."""
        if len(x) != len(y) or len(y) == 0:
            raise ValueError(f"{len(x)} rows and {len(y)} values: expected the same number, at least one")
        if not np.all(np.isfinite(y)):
            raise ValueError("values to learn from must be finite")
        self._mean = float(np.mean(y))
        self._scale = float(np.sqrt(np.mean((y - self._mean) ** 2)))
        self._boosters = []
        if self._scale <= 1e-12 * max(1.0, abs(self._mean)) or x.shape[1] == 0:
            self._scale = 0.0
            return self
        import xgboost

        rng = np.random.default_rng(self._seed)
        target = (y - self._mean) / self._scale
        for _ in range(self._options.members):
            data = xgboost.DMatrix(x, target, weight=rng.exponential(size=len(y)), nthread=1)
            self._boosters.append(xgboost.train(self._parameters(int(rng.integers(2**31))), data, self._options.rounds))
        return self

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the ensemble, each of shape (n,)."""
        if not self._boosters:
            return np.full(len(x), self._mean), np.zeros(len(x))
        import xgboost

        data = xgboost.DMatrix(x, nthread=1)
        members = np.stack([b.predict(data) for b in self._boosters]).astype(np.float64)
        return self._mean + self._scale * members.mean(axis=0), self._scale * members.std(axis=0)

    def _parameters(self, seed: int) -> dict[str, object]:
        o = self._options
        return {
            "objective": "reg:squarederror",
            "base_score": 0.0,
            "max_depth": o.depth,
            "eta": o.learning_rate,
            "lambda": o.regularization,
            "min_child_weight": 0.0,
            "colsample_bytree": o.column_fraction,
            "tree_method": "exact",
            "nthread": 1,
            "seed": seed,
            "verbosity": 0,
        }
