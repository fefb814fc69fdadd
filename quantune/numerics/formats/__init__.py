"""Formats of weights by their names in ``bits=``: one table that everything asks; a new one is a call of `register`."""

from __future__ import annotations

from mlir_passes.vocabulary import Vocabulary
from quantune.numerics.formats import grids, tables
from quantune.numerics.formats.base import Format, Uniform

FORMATS: Vocabulary[Format] = Vocabulary("format")
"""By the name in configurations."""


def register(form: Format) -> Format:
    """Enter a format; ValueError for a name that is taken or unreadable in a configuration, or bits not in 1 to 8."""
    if not form.name.isalnum() or not form.name.isascii() or form.name[-2:-1] == "a" or form.name == "f32":
        raise ValueError(f"format '{form.name}': expected letters and digits, not ending as in w4a8, and not f32")
    if not 1 <= form.bits <= 8:
        raise ValueError(f"format '{form.name}' has {form.bits} bits; expected 1 to 8")
    return FORMATS.register(form)


for _form in (*(Uniform(f"w{bits}", bits) for bits in range(2, 9)), *grids.ALL, *tables.ALL):
    register(_form)
