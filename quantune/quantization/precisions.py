"""What an artifact multiplies: integers in all layers or most, or floats throughout."""

from __future__ import annotations

from dataclasses import dataclass

from mlir_passes.vocabulary import Vocabulary


@dataclass(frozen=True)
class Precision:
    """A precision.

    integers: which layers, in their order, multiply integers; None for a float artifact. is_half: whether the others
    have f16. simplicity: the smaller is preferred where measurements are equal.
    """

    name: str
    integers: slice | None
    simplicity: int
    is_half: bool = False

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.integers is None


PRECISIONS: Vocabulary[Precision] = Vocabulary("precision")
"""By the name in configurations."""

register = PRECISIONS.register
register(Precision("int8", slice(None), simplicity=2))
register(Precision("mixed", slice(1, -1), simplicity=3))
register(Precision("f32", None, simplicity=0))
register(Precision("f16", None, simplicity=1, is_half=True))

QUANTIZED = tuple(name for name, each in PRECISIONS.items() if not each.is_float)
"""Those that a search chooses from."""
