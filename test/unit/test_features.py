from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from quantune.quantization import space
from quantune.search.features import Encoder, enumerate_space, key_of

SPACE = {
    "calib": CategoricalDistribution((1, 100, 10000)),
    "clip": CategoricalDistribution(("max", "kl")),
    "x": FloatDistribution(-1.0, 1.0),
    "n": IntDistribution(1, 1000),
}


def test_encoding() -> None:
    rows = [{"calib": 100, "clip": "kl", "x": 0.0, "n": 1000}, {"calib": 1, "clip": "max", "x": -1.0, "n": 1}]
    encode = Encoder(SPACE)
    np.testing.assert_allclose(encode.configuration(rows), [[0.5, 0, 1, 0.5, 1], [0, 1, 0, 0, 0]], atol=1e-6)
    crossed = encode(rows)[:, 5:]  # (1, max), (1, kl), (100, max), (100, kl), …
    assert crossed.tolist() == [[0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_distance_of_places_counts_parameters() -> None:
    row = {"calib": 1, "clip": "max", "x": -1.0, "n": 1}
    others = [row | {"clip": "kl"}, row | {"calib": 10000}, row | {"clip": "kl", "x": 1.0}, row | {"x": 0.0}]
    places = Encoder(SPACE).place([row, *others])
    assert np.abs(places[1:] - places[0]).sum(axis=1).tolist() == [1.0, 1.0, 2.0, 0.5]


def test_hook_gets_constants_and_its_gaps_are_missing_values() -> None:
    encode = Encoder({"x": SPACE["x"]}, lambda p: [p["x"] + p["c"], math.inf], {"c": 2.0})
    table = encode([{"x": 1.0}])
    assert table[0, :2].tolist() == [1.0, 3.0]
    assert np.isnan(table[0, 2])


def test_level1_has_96_distinct_points_and_codes() -> None:
    points = enumerate_space(space.distributions())
    assert points is not None
    assert {space.from_params(p) for p in points} == set(space.LEVEL1)
    assert len({row.tobytes() for row in Encoder(space.distributions())(points)}) == 96


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (IntDistribution(3, 9, step=2), [3, 5, 7, 9]),
        (FloatDistribution(0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (FloatDistribution(2.0, 2.0), [2.0]),
    ],
)
def test_enumeration(distribution, expected) -> None:
    points = enumerate_space({"x": distribution})
    assert points is not None
    assert [p["x"] for p in points] == pytest.approx(expected)


@pytest.mark.parametrize("distribution", [FloatDistribution(0, 1), IntDistribution(0, 10**6)])
def test_endless_or_huge_spaces_are_not_listed(distribution) -> None:
    assert enumerate_space({"x": distribution}) is None


def test_keys_tell_points_apart() -> None:
    points = enumerate_space(space.distributions()) or []
    assert len({key_of(p, space.distributions()) for p in points}) == 96
