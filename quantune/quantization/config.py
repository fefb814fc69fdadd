"""One point of the quantization space, as a value that prints to and parses from one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from quantune.errors import UsageError, hint
from quantune.numerics.clipping import CLIPS
from quantune.numerics.schemes import SCHEMES
from quantune.numerics.weight_ranges import RULES
from quantune.quantization.bits import UNIFORM_8, BitWidths
from quantune.quantization.precisions import PRECISIONS

CHOICES: Mapping[str, Collection[str]] = {
    "scheme": SCHEMES.keys(),
    "clip": CLIPS.keys(),
    "granularity": ("tensor", "channel"),
    "precision": PRECISIONS.keys(),
    "weight_clip": RULES,
    "bias": ("none", "fast", "sequential"),
    "rounding": ("nearest", "adaround", "brecq"),
}


@dataclass(frozen=True)
class QuantConfig:
    """How a network is quantized.

    calib: number of calibration images asked for; fewer are used, and said so, when the set is smaller.
    scheme: how a range becomes a scale and a zero point (numerics/schemes.py). clip: how an observed range is cut
    (numerics/clipping.py).
    granularity: one weight scale per tensor or per output channel (activations stay per tensor).
    precision: int8, mixed (first and last layer stay f32), or a float artifact (the other fields then mean nothing).
    bits: how wide the integers of each layer are (see bits.py); a line without it means eight bits everywhere.
    weight_clip: how a weight's range is cut (see quantune.numerics.weight_ranges).
    bias: how biases are corrected for the means that quantization moves (see quantune.refine.bias).
    rounding: which way weights are rounded (see quantune.refine.rounding).
    Of bits and the fields behind it a line names only what is not the default.
    """

    calib: int = 1000
    scheme: str = "asymmetric"
    clip: str = "max"
    granularity: str = "channel"
    precision: str = "int8"
    bits: BitWidths = UNIFORM_8
    weight_clip: str = "max"
    bias: str = "none"
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if not isinstance(self.calib, int) or isinstance(self.calib, bool) or self.calib < 1:
            raise UsageError(f"calib={self.calib}: expected a number of images, 1 or more")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name}={value}: expected one of {', '.join(allowed)}{hint(value, allowed)}")
        if not isinstance(self.bits, BitWidths):
            raise UsageError(f"bits={self.bits!r}: expected BitWidths, such as BitWidths.parse('w4a8')")

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return PRECISIONS[self.precision].is_float

    @property
    def refinement(self) -> str:
        """What finds other weights or biases than the network's own, in a word; empty for nothing."""
        rounding = () if self.rounding == "nearest" else (self.rounding,)
        return "+".join((*rounding, *(() if self.bias == "none" else (self.bias,))))

    @property
    def unrefined(self) -> QuantConfig:
        """The same with the network's own weights and biases."""
        return replace(self, bias="none", rounding="nearest")

    @classmethod
    def parse(cls, line: str) -> QuantConfig:
        """Read ``key=value,key=value``; keys left out keep their defaults. UsageError names the bad part."""
        names = tuple(f.name for f in fields(cls))
        values: dict[str, str | int | BitWidths] = {}
        for item in filter(None, (part.strip() for part in line.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals:
                raise UsageError(f"configuration '{line}': '{item}' is not of the form key=value")
            if key not in names:
                raise UsageError(
                    f"configuration '{line}': unknown key '{key}', expected one of {', '.join(names)}{hint(key, names)}"
                )
            if key in values:
                raise UsageError(f"configuration '{line}': key '{key}' is given twice")
            if key == "calib" and not (value.isascii() and value.isdigit() and len(value) < 10):
                raise UsageError(f"configuration '{line}': calib={value}: expected a number of images, 1 or more")
            values[key] = value
            if key == "calib":
                values[key] = int(value)
            if key == "bits":
                values[key] = BitWidths.parse(value)
        if not values:
            raise UsageError(
                "the configuration is empty; expected for example scheme=asymmetric,clip=kl,precision=int8"
            )
        return cls(**values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.is_float:
            return f"precision={self.precision}"
        return ",".join(f"{name}={value}" for name, value in self.options().items())

    @property
    def brief(self) -> str:
        """The line for tables: layers with bits of their own are counted, not named."""
        if self.is_float or not self.bits.layers:
            return str(self)
        count = len(self.bits.layers)
        short = f"bits={self.bits.default} but for {count} layer{'s' if count > 1 else ''}"
        return str(replace(self, bits=UNIFORM_8)) + "," + short

    def options(self) -> dict[str, str | int]:
        """The fields by name as they are written in a line; of bits and what came later, only what is no default."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: str(v) if k == "bits" else v for k, v in values.items() if k not in LATER or v != LATER[k]}


LATER: dict[str, Any] = {f.name: f.default for f in fields(QuantConfig)[5:]}
"""The fields that came after the first version, which a line names only where they are not these defaults."""
