"""Quantized CNNs, tuned and compiled: a PyTorch model, calibration images and a target in, the best artifact out.

The names below are loaded when they are first used, so that importing quantune loads neither torch nor a compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from quantune.versions import VERSION as __version__

if TYPE_CHECKING:
    from quantune.api import compile, quantize
    from quantune.exporting import export
    from quantune.quantization.config import QuantConfig
    from quantune.rebuilding import rebuild
    from quantune.runtime.artifact import Artifact, load
    from quantune.runtime.benchmark import benchmark
    from quantune.tuning.outcome import Result

__all__ = [
    "Artifact", "QuantConfig", "Result", "__version__", "benchmark", "compile", "export", "load", "quantize", "rebuild",
]  # fmt: skip

_HOMES = {
    "Artifact": "quantune.runtime.artifact",
    "QuantConfig": "quantune.quantization.config",
    "Result": "quantune.tuning.outcome",
    "benchmark": "quantune.runtime.benchmark",
    "compile": "quantune.api",
    "export": "quantune.exporting",
    "load": "quantune.runtime.artifact",
    "quantize": "quantune.api",
    "rebuild": "quantune.rebuilding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quantune' has no attribute '{name}'")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        from quantune.errors import missing

        raise missing(error) from error
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
