"""What an image's label may be: the number of a class, or an array of numbers such as a mask; or nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantune.data.text import one_line
from quantune.errors import UsageError

Label = int | NDArray[np.generic]

UNLABELLED = -1
"""The label of an image that has none; good enough for calibration, and for metrics that need no labels."""

_WHOLE = ", expected a whole number"


def any_label(value: object, where: str) -> Label:
    """``value`` as a class number where it is a whole number, as an array where it is another number or several.

    None is ``UNLABELLED``. Raises UsageError opening with ``where`` for what is no number, for NaN and infinities.
    """
    if value is None:
        return UNLABELLED
    array = _array(value, where)
    if array.size == 1 and array.dtype.kind in "biu":
        return whole_label(value, where)
    if array.dtype.kind not in "biuf" or array.size == 0:
        text = one_line(repr(value))[:60]
        raise UsageError(f"{where}: label {text}, expected a number, an array of numbers, or nothing")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{where}: the label holds numbers that are NaN or infinite")
    return array


def whole_label(value: object, where: str) -> int:
    """``value`` as a class number: an integer or a boolean of Python, numpy or torch, or an array of just one.

    Floats are refused, 3.0 too: they are what a regression is trained on. Raises UsageError opening with ``where``.
    """
    if type(value) is int:
        number = value
    else:
        array = _array(value, where)
        if array.size != 1 or array.dtype.kind not in "biu":
            raise UsageError(f"{where}: label {one_line(repr(value))[:60]}{_WHOLE}")
        number = int(array.reshape(())[()])
    if not -(1 << 63) <= number < 1 << 63:
        raise UsageError(f"{where}: label {number:.3g}{_WHOLE} that fits 64 bits")
    return number


def label_bytes(value: object, where: str) -> bytes:
    """What tells a label from another one, for fingerprints."""
    label = any_label(value, where)
    if isinstance(label, int):
        return str(label).encode() + b";"
    return f"{label.dtype.str}{label.shape};".encode() + np.ascontiguousarray(label).tobytes()


def _array(value: object, where: str) -> NDArray[np.generic]:
    try:
        return np.asarray(value)
    except Exception as error:
        raise UsageError(f"{where}: label of type {type(value).__name__} ({one_line(error)}){_WHOLE}") from error
