"""Bit widths and formats, layer by layer: a value that prints to and parses from one word of a configuration's line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from quantune.errors import UsageError, hint
from quantune.numerics.formats import FORMATS
from quantune.numerics.formats.base import Format

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATION_BITS = (4, 8)

FLOAT_BITS = 32

_CHOICE = re.compile(r"(\w+?)(?:a(\d))?", re.ASCII)
_FLOAT = "f32"


@dataclass(frozen=True, order=True)
class LayerBits:
    """The bit widths of one layer: of its weight, 2 to 8, and of the activation that it reads, 4 or 8.

    32 for both is `F32`: the layer stays in float, whatever its neighbours do.
    format: the weight's, by its name in ``FORMATS``, where it is not the uniform one; it has so many bits.
    """

    weights: int = 8
    activations: int = 8
    format: str = ""

    def __post_init__(self) -> None:
        if self.is_float:
            return
        if self.format == f"w{self.weights}":
            object.__setattr__(self, "format", "" if self.weights in WEIGHT_BITS else self.format)
        named = FORMATS.get(self.format)
        if self.format and (named is None or named.bits != self.weights):
            raise UsageError(f"format '{self.format}' of {self.weights} bits: {_expected(self.format)}")
        for name, value, allowed in (
            ("weights", self.weights, (self.weights,) if self.format else WEIGHT_BITS),
            ("activations", self.activations, ACTIVATION_BITS),
        ):
            if type(value) is not int or value not in allowed:
                raise UsageError(f"{value!r} bits for {name}: expected one of {', '.join(map(str, allowed))}")

    @property
    def is_float(self) -> bool:
        """Whether the layer is not quantized."""
        return self.weights == self.activations == FLOAT_BITS

    def __str__(self) -> str:
        return _FLOAT if self.is_float else f"{self.form.name}a{self.activations}"

    @property
    def form(self) -> Format:
        """The weight's format; KeyError for a layer in float."""
        return FORMATS[self.format or f"w{self.weights}"]

    @classmethod
    def parse(cls, text: str) -> LayerBits:
        """Read ``w4a8``, ``w2ha8``, ``w4`` for activations of eight bits, or ``f32``; UsageError for anything else."""
        if text == _FLOAT:
            return F32
        found = _CHOICE.fullmatch(text)
        if found is None or found[1] not in FORMATS:
            raise UsageError(f"bits '{text}': {_expected(text if found is None else found[1])}")
        return cls(FORMATS[found[1]].bits, int(found[2] or 8), found[1])


def _expected(name: str) -> str:
    expected = "expected for example w4 or w4a8, a format of weights, such as w2h or e2m1, or f32"
    return expected + hint(name, FORMATS)


F32 = LayerBits(FLOAT_BITS, FLOAT_BITS)
"""A layer that stays in float."""


@dataclass(frozen=True)
class BitWidths:
    """The bit widths of a network: ``default``, and the layers that differ from it.

    Prints as ``w4a8/w8a8:features.0.0+classifier.1``: the default, then for each other choice the layers that have it;
    names are percent-encoded where they hold one of the separators. layers: (name, choice), sorted, none of them equal
    to the default; other entries are brought into this form. Raises UsageError where no layer is left in integers.
    """

    default: LayerBits = LayerBits()
    layers: tuple[tuple[str, LayerBits], ...] = ()

    def __post_init__(self) -> None:
        chosen: dict[str, LayerBits] = {}
        for name, choice in self.layers:
            if not name or chosen.setdefault(name, choice) != choice:
                raise UsageError(f"bits: layer '{name}' is given twice" if name else "bits: a layer has no name")
        kept = sorted((name, choice) for name, choice in chosen.items() if choice != self.default)
        object.__setattr__(self, "layers", tuple(kept))
        if self.default.is_float and not kept:
            raise UsageError("bits=f32: no layer is quantized; that is precision=f32")

    @classmethod
    def of_layers(cls, layers: Iterable[tuple[str, LayerBits]]) -> BitWidths:
        """The widths of the given layers; the default is what most of them have, the wider one of equals."""
        layers = tuple(layers)
        choices = [choice for _, choice in layers]
        default = max(set(choices), key=lambda choice: (choices.count(choice), choice), default=LayerBits())
        return cls(default, layers)

    @classmethod
    def parse(cls, text: str) -> BitWidths:
        """Read what ``str`` prints; raises UsageError that names the part it cannot read."""
        first, *others = text.split("/")
        layers: list[tuple[str, LayerBits]] = []
        for part in others:
            choice, colon, names = part.partition(":")
            if not colon:
                raise UsageError(f"bits '{part}': expected a choice and its layers, such as w8:features.0+classifier")
            layers += [(unquote(name), LayerBits.parse(choice)) for name in names.split("+")]
        return cls(LayerBits.parse(first), tuple(layers))

    @property
    def in_float(self) -> tuple[bool, frozenset[str]]:
        """Whether layers are float by default, and which layers differ from that: all that a program depends on."""
        default = self.default.is_float
        return default, frozenset(name for name, choice in self.layers if choice.is_float != default)

    def of(self, layer: str) -> LayerBits:
        """The widths of a layer, by the name of its node."""
        return dict(self.layers).get(layer, self.default)

    def __str__(self) -> str:
        grouped: dict[LayerBits, list[str]] = {}
        for name, choice in self.layers:
            grouped.setdefault(choice, []).append(quote(name, safe="#"))
        return "/".join([str(self.default), *(f"{c}:{'+'.join(names)}" for c, names in sorted(grouped.items()))])


UNIFORM_8 = BitWidths()
"""What a configuration has that says nothing of bits."""
