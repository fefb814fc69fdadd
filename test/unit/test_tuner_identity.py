"""Configurations that compute the same: a search measures one of them."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from quantune.quantization import space as level1
from quantune.quantization.config import QuantConfig
from quantune.search.scores import Score
from quantune.search.strategies import SAMPLERS
from quantune.search.tuner import tune

SCHEMES = ("asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2")
ONE_AXIS = {n: CategoricalDistribution(v if n == "scheme" else v[:1]) for n, v in level1.PARAMETERS.items()}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _identity(config: QuantConfig) -> str:
    return "unsigned" if config.scheme in ("asymmetric", "symmetric_uint8") else config.scheme


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_of_them_is_measured(sampler: str, tmp_path: Path) -> None:
    seen: list[QuantConfig] = []

    def measure(config: QuantConfig) -> Score:
        seen.append(config)
        return Score(0.8 if config.is_float else 0.7 + 0.01 * SCHEMES.index(config.scheme), 1.0, 1, 1000)

    result = tune(measure, tmp_path, space=ONE_AXIS, sampler=sampler, identity=_identity, first=())
    quantized = [config for config in seen if not config.is_float]
    assert len({_identity(config) for config in quantized}) == len(quantized) == 3
    assert result.space_size == len(result.trials) == 3
    assert result.stopped == "every configuration was measured"
    assert [t.config for t in result.trials] == quantized
    if sampler in ("xgboost", "random", "grid"):  # the others may propose a point again, which is answered from memory
        assert [t.number for t in result.trials] == [0, 1, 2]


def test_they_take_no_trial_of_the_budget(tmp_path: Path) -> None:
    def measure(config: QuantConfig) -> Score:
        return Score(0.8 if config.is_float else 0.7, 1.0, 1, 1000)

    first = [QuantConfig(calib=1, clip="max", granularity="tensor", scheme=s) for s in SCHEMES[:3]]
    result = tune(measure, tmp_path, space=ONE_AXIS, identity=_identity, first=first, max_trials=3)
    assert {_identity(t.config) for t in result.trials} == {"unsigned", "symmetric", "symmetric_power2"}
