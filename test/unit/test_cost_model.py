from __future__ import annotations

import numpy as np
import pytest

from quantune.search.cost_model import CostModel

RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, (40, 6)).astype(np.float32)
Y = X @ np.array([3.0, -2.0, 1.0, 0.0, 0.0, 0.0]) + 50


def test_learns_an_additive_table() -> None:
    mean, std = CostModel(seed=1).fit(X, Y).predict(X)
    assert np.corrcoef(mean, Y)[0, 1] > 0.98
    assert np.all(std >= 0)
    assert std.max() > 0


def test_same_seed_same_prediction() -> None:
    first, second, other = (CostModel(seed=s).fit(X, Y).predict(X)[0] for s in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_is_less_sure_of_what_it_has_not_seen() -> None:
    seen = X[:, 0] == 0
    noisy = Y + RNG.normal(0, 0.5, len(Y))
    model = CostModel(seed=0).fit(X[seen][:5], noisy[seen][:5])
    assert np.median(model.predict(X[seen][5:])[1]) > np.median(model.predict(X[seen][:5])[1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows(count: int) -> None:
    mean, std = CostModel().fit(X[:count], Y[:count]).predict(X)
    assert np.all(np.isfinite(mean))
    assert np.all(np.isfinite(std))
    assert Y[:count].min() - 1 <= mean.min() <= mean.max() <= Y[:count].max() + 1


def test_constant_values_and_missing_features() -> None:
    mean, std = CostModel().fit(X, np.full(40, 7.0)).predict(X)
    assert np.all(mean == 7.0)
    assert np.all(std == 0.0)
    gaps = X.copy()
    gaps[:, 1] = np.nan
    assert np.all(np.isfinite(CostModel().fit(gaps, Y).predict(gaps)[0]))


@pytest.mark.parametrize(("x", "y"), [(X[:0], Y[:0]), (X[:2], Y[:3]), (X[:2], np.array([1.0, np.nan]))])
def test_refuses(x: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"rows and|finite"):
        CostModel().fit(x, y)
