"""The Quantune paper's searches: its features, its models and its XGBoost, as its authors' scripts run them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from quantune.quantization.space import PARAMETERS

if TYPE_CHECKING:
    from search_replay_lib.tables import ModelTable

# Nodes, convolutions, batch norms, activations, skips, depthwise and pointwise convolutions, megabytes.
ARCHITECTURES: dict[str, tuple[float, ...]] = {
    "MobileNet": (83, 53, 0, 36, 10, 16, 35, 17),
    "ShuffleNet": (202, 49, 49, 33, 16, 16, 32, 5.5),
    "SqueezeNet": (65, 26, 0, 26, 0, 0, 17, 4.7),
    "googlenet_slim_v4": (854, 149, 0, 149, 25, 0, 93, 163),
    "resnet18": (71, 20, 20, 17, 8, 0, 3, 45),
    "resnet50": (175, 53, 53, 49, 16, 0, 36, 98),
}
F32: dict[str, float] = {
    "MobileNet": 0.7181,
    "ShuffleNet": 0.6396,
    "SqueezeNet": 0.5380,
    "googlenet_slim_v4": 0.7039,
    "resnet18": 0.7067,
    "resnet50": 0.7608,
}

ROUNDS = 200
SETTINGS = {"objective": "reg:squarederror", "eta": 0.15, "gamma": 3.0, "tree_method": "exact", "nthread": 1}


def encode(table: ModelTable) -> np.ndarray:
    """One-hot choices and the model's architecture, shape (n, columns).

    The paper's 16 one-hot columns are the 13 choices of the space and three that are always 0, which trees ignore.
    """
    onehot = [[float(p[k] == c) for k, choices in PARAMETERS.items() for c in choices] for p in table.points]
    own = np.tile(np.asarray(table.architecture, dtype=np.float64), (len(table.points), 1))
    return np.hstack([np.asarray(onehot), own])


class PaperSearch:
    """XGB-T, or XGB, on one table with the other models' tables; one instance serves all seeds.

    Each round trains from scratch and measures the unmeasured point of the largest prediction; the seed only breaks
    ties, so predictions are kept by what was measured. XGB-T (`transfer`) learns from the other models all the time,
    XGB only for its first point. The authors' early stopping watches the training error and so never stops early.
    """

    def __init__(self, table: ModelTable, others: list[ModelTable], *, transfer: bool) -> None:
        self._x = encode(table)
        self._y = 100 * table.accuracy
        width = self._x.shape[1]
        usable = [o for o in others if encode(o).shape[1] == width]
        self._other_x = np.vstack([encode(o) for o in usable]) if usable else self._x[:0]
        self._other_y = np.concatenate([100 * o.accuracy for o in usable]) if usable else self._y[:0]
        self._transfer = transfer
        self._known: dict[frozenset[int], np.ndarray] = {}

    def order(self, seed: int) -> Iterator[int]:
        """Indices of points in the order in which they are measured."""
        rng = np.random.default_rng(seed)
        left, measured = set(range(len(self._y))), []
        while left:
            predicted = self._predict(frozenset(measured))
            best = max(predicted[i] for i in left)
            ties = sorted(i for i in left if predicted[i] == best)
            point = ties[int(rng.integers(len(ties)))]
            left.remove(point)
            measured.append(point)
            yield point

    def _predict(self, measured: frozenset[int]) -> np.ndarray:
        if measured not in self._known:
            rows = sorted(measured)
            from_others = self._transfer or not rows
            x = np.vstack([self._other_x, self._x[rows]]) if from_others else self._x[rows]
            y = np.concatenate([self._other_y, self._y[rows]]) if from_others else self._y[rows]
            self._known[measured] = self._train(x, y)
        return self._known[measured]

    def _train(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if len(y) == 0:
            return np.zeros(len(self._y))
        import xgboost

        booster = xgboost.train(SETTINGS, xgboost.DMatrix(x, y, nthread=1), ROUNDS)
        return booster.predict(xgboost.DMatrix(self._x, nthread=1))
