"""The search spaces: which configurations a study may try, as lists and as Optuna distributions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantune.errors import UsageError, hint
from quantune.numerics.clipping import CLIPS
from quantune.numerics.schemes import SCHEMES
from quantune.quantization.bits import UNIFORM_8, BitWidths
from quantune.quantization.config import CHOICES, LATER, QuantConfig
from quantune.quantization.precisions import QUANTIZED

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution

PARAMETERS: dict[str, tuple[Any, ...]] = {
    "calib": (1, 1000, 10000),
    "scheme": tuple(scheme.name for scheme in SCHEMES.values() if scheme.searched),
    "clip": tuple(rule.name for rule in CLIPS.values() if rule.searched),
    "granularity": ("tensor", "channel"),
    "precision": QUANTIZED,
}
"""Level 1: the 3*4*2*2*2 = 96 points of the Quantune paper."""

SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "paper": PARAMETERS,
    "wide": {
        **PARAMETERS,
        "clip": tuple(CLIPS),
        "weight_clip": tuple(CHOICES["weight_clip"]),
        "bias": tuple(CHOICES["bias"]),
    },
}
"""The spaces by name. wide has all clip rules, weight ranges and bias correction beside the paper's parameters."""

DEFAULT_SPACE = "paper"

CALIBRATION_SIZES: tuple[int, ...] = PARAMETERS["calib"]


def parameters(name: str) -> dict[str, tuple[Any, ...]]:
    """The parameters of a space and their values. Raises UsageError for a name that is none of ``SPACES``."""
    if not isinstance(name, str) or name not in SPACES:
        raise UsageError(f"space '{name}': expected one of {', '.join(SPACES)}{hint(name, SPACES)}")
    return SPACES[name]


def configs(name: str) -> tuple[QuantConfig, ...]:
    """All points of a space, with eight bits everywhere."""
    choices = parameters(name)
    return tuple(
        QuantConfig(**dict(zip(choices, point, strict=True))) for point in itertools.product(*choices.values())
    )


LEVEL1: tuple[QuantConfig, ...] = configs("paper")


def distributions(
    bits: Sequence[BitWidths] = (UNIFORM_8,),
    precisions: Sequence[str] = PARAMETERS["precision"],
    space: str = DEFAULT_SPACE,
) -> dict[str, CategoricalDistribution]:
    """A space of ``SPACES`` for ``study.ask``, and the bit widths to choose from where they are not eight everywhere.

    Raises UsageError for activations of fewer than eight bits, which gain neither size nor speed.
    """
    from optuna.distributions import CategoricalDistribution

    found = {name: CategoricalDistribution(choices) for name, choices in parameters(space).items()}
    found["precision"] = CategoricalDistribution(tuple(precisions))
    for each in bits:
        if any(choice.activations < 8 for choice in (each.default, *(choice for _, choice in each.layers))):
            raise UsageError(
                f"bits={each}: a search takes activations of eight bits, since fewer gain neither size nor speed; "
                "build this one with --config"
            )
    if tuple(bits) != (UNIFORM_8,):
        found["bits"] = CategoricalDistribution(tuple(map(str, bits)))
    return found


def completed(params: Mapping[str, Any], searched: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters of another space as a point of this one: what they do not name has its default, bit widths apart.

    None where they name what this space lacks, with a value that is not the default: that is no point of it.
    """
    foreign = {name: value for name, value in params.items() if name in LATER and name not in searched}
    if any(value != str(LATER[name]) for name, value in foreign.items()):
        return None
    missing = {name: default for name, default in LATER.items() if name in searched and name != "bits"}
    return {**missing, **{name: value for name, value in params.items() if name not in foreign}}


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
