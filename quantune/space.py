"""The search space: which configurations a study may try, as a list and as Optuna distributions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantune.config import QuantConfig

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution

PARAMETERS: dict[str, tuple[Any, ...]] = {
    "calib": (1, 1000, 10000),
    "scheme": ("asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2"),
    "clip": ("max", "kl"),
    "granularity": ("tensor", "channel"),
    "precision": ("int8", "mixed"),
}
"""Level 1: the 3*4*2*2*2 = 96 points of the Quantune paper."""

LEVEL1: tuple[QuantConfig, ...] = tuple(
    QuantConfig(**dict(zip(PARAMETERS, values, strict=True))) for values in itertools.product(*PARAMETERS.values())
)

CALIBRATION_SIZES: tuple[int, ...] = PARAMETERS["calib"]


def distributions() -> dict[str, CategoricalDistribution]:
    """The level 1 space for ``study.ask``."""
    from optuna.distributions import CategoricalDistribution

    return {name: CategoricalDistribution(choices) for name, choices in PARAMETERS.items()}


def from_params(params: Mapping[str, Any]) -> QuantConfig:
    """The configuration of a trial's parameters."""
    return QuantConfig(**params)


def to_params(config: QuantConfig) -> dict[str, Any]:
    """A configuration as a trial's parameters."""
    return {name: getattr(config, name) for name in PARAMETERS}
