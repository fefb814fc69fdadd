"""The search space: which configurations a study may try, as a list and as Optuna distributions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantune.bits import UNIFORM_8, BitWidths
from quantune.config import LATER, QuantConfig
from quantune.numerics.clipping import CLIPS
from quantune.numerics.schemes import SCHEMES

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution

PARAMETERS: dict[str, tuple[Any, ...]] = {
    "calib": (1, 1000, 10000),
    "scheme": tuple(scheme.name for scheme in SCHEMES.values() if scheme.searched),
    "clip": tuple(rule.name for rule in CLIPS.values() if rule.searched),
    "granularity": ("tensor", "channel"),
    "precision": ("int8", "mixed"),
}
"""Level 1: the 3*4*2*2*2 = 96 points of the Quantune paper."""

LEVEL1: tuple[QuantConfig, ...] = tuple(
    QuantConfig(**dict(zip(PARAMETERS, values, strict=True))) for values in itertools.product(*PARAMETERS.values())
)

CALIBRATION_SIZES: tuple[int, ...] = PARAMETERS["calib"]


def distributions(
    bits: Sequence[BitWidths] = (UNIFORM_8,), precisions: Sequence[str] = PARAMETERS["precision"]
) -> dict[str, CategoricalDistribution]:
    """The space for ``study.ask``: level 1, and the bit widths to choose from where they are not eight everywhere."""
    from optuna.distributions import CategoricalDistribution

    space = {name: CategoricalDistribution(choices) for name, choices in PARAMETERS.items()}
    space["precision"] = CategoricalDistribution(tuple(precisions))
    if tuple(bits) != (UNIFORM_8,):
        space["bits"] = CategoricalDistribution(tuple(map(str, bits)))
    return space


def from_params(params: Mapping[str, Any]) -> QuantConfig:
    """The configuration of a trial's parameters."""
    values = dict(params)
    if "bits" in values:
        values["bits"] = BitWidths.parse(values["bits"])
    return QuantConfig(**values)


def to_params(config: QuantConfig) -> dict[str, Any]:
    """A configuration as a trial's parameters."""
    later = {name: value for name, value in config.options().items() if name in LATER}
    return {name: getattr(config, name) for name in PARAMETERS} | later
