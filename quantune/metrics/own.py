"""A user's own metric: a function of outputs and labels."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantune.errors import UsageError
from quantune.metrics.base import Array, Metric, Rows
from quantune.user_code import load


class OwnMetric(Metric):
    """``PACKAGE.MODULE:FUNCTION``: FUNCTION(outputs, labels) gives a number for each image; their mean is the metric.

    outputs: [n, ...]. labels: [n, ...], or None for images without labels. More is better, unless the function has an
    attribute ``higher`` that is False.
    """

    def __init__(self, reference: str) -> None:
        self.name, self._function = reference, load(reference)
        self.higher = bool(getattr(self._function, "higher", True))  # type: ignore[misc]

    def identity(self) -> str:
        """Its reference and a hash of its source, so that another function of the same name is another metric."""
        return f"{self.name} {hashlib.sha256(_source(self._function).encode()).hexdigest()}"

    def check(self, shape: tuple[int, ...], label: tuple[int, ...] | None) -> None:
        """Nothing to check before the function is called."""

    def rows(self, outputs: Array, labels: NDArray[np.generic] | None, reference: Array | None) -> Rows:
        """What the function gives. Raises UsageError for what it raises and for anything but n finite numbers."""
        try:
            values = np.asarray(self._function(outputs, labels), np.float64)
        except Exception as error:
            text = " ".join(str(error).split())
            raise UsageError(f"metric {self.name} raised {type(error).__name__}: {text:.200}") from error
        if values.shape != (len(outputs),):
            raise UsageError(f"metric {self.name} gave shape {values.shape}, expected one number for each image")
        if not np.isfinite(values).all():
            raise UsageError(f"metric {self.name} gave numbers that are NaN or infinite")
        return values[:, None]


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
