from __future__ import annotations

import numpy as np

from quantune.search.kriging import SHARED, Kriging

PLACE = np.array([[a, b] for a in (0.0, 1.0) for b in (0.0, 0.25, 0.5, 1.0)])
NONE = np.zeros((len(PLACE), 0))
OWN = np.full(len(PLACE), -1)


def test_returns_what_was_measured_and_is_unsure_elsewhere() -> None:
    value = np.array([3.0, 1.0, -2.0, 0.5])
    model = Kriging(PLACE[:4], NONE[:4], OWN[:4], value, variance=2.0)
    mean, std = model.predict(PLACE, NONE, -1)
    np.testing.assert_allclose(mean[:4], value, atol=0.2)
    assert std[:4].max() < 0.5 * std[4:].min()


def test_other_models_move_the_mean_by_their_share() -> None:
    value = np.array([5.0, -5.0])
    model = Kriging(PLACE[[0, 7]], NONE[:2], np.array([0, 0]), value, variance=2.0)
    same, _ = model.predict(PLACE[[0, 7]], NONE[:2], 0)
    other, _ = model.predict(PLACE[[0, 7]], NONE[:2], -1)
    np.testing.assert_allclose((other[0] - other[1]) / (same[0] - same[1]), SHARED, atol=0.02)


def test_a_feature_is_used_and_unknown_or_constant_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    feature = rng.normal(size=len(PLACE))
    features = np.stack([feature, np.full(len(PLACE), 7.0), np.full(len(PLACE), np.nan)], axis=1)
    known = slice(0, 6)
    model = Kriging(PLACE[known], features[known], OWN[known], 10 * feature[known], variance=100.0)
    mean, std = model.predict(PLACE, features, -1)
    assert np.corrcoef(mean[6:], feature[6:])[0, 1] > 0.9
    assert np.all(np.isfinite(std))


def test_rows_without_noise_between_them_are_no_trouble() -> None:
    twice = np.repeat(PLACE, 2, axis=0)
    model = Kriging(twice, np.zeros((16, 0)), np.full(16, -1), np.ones(16), variance=1.0)
    mean, _ = model.predict(PLACE, NONE, -1)
    np.testing.assert_allclose(mean, 1.0)
