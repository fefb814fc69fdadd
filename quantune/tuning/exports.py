"""Formats of others in which a configuration can be handed out beside its artifact."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

from quantune.errors import UsageError, missing
from quantune.process import places
from quantune.quantization.config import QuantConfig
from quantune.tuning.builder import Builder
from quantune.versions import VERSION

logger = logging.getLogger(__name__)

FORMATS = {"qdq-onnx": ".onnx"}
"""Name -> how a file of the format ends."""


def check(name: str) -> None:
    """Raise UsageError for an unknown format, EnvironmentFailure where the package that writes it is not installed."""
    if name not in FORMATS:
        close = difflib.get_close_matches(str(name), FORMATS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"export '{name}': expected one of {', '.join(FORMATS)}{hint}")
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise missing(error, "onnx", "reads and writes ONNX files") from error


def check_model(name: str, builder: Builder) -> None:
    """Raise UsageError for a network that the format cannot hold, before any work: it is written once, in f32."""
    check(name)
    _contents(builder, QuantConfig(precision="f32"))


def write(name: str, builder: Builder, config: QuantConfig, path: Path) -> Path:
    """Write a configuration of the builder's model as a file of the format. Raises UsageError as ``check_model``.

    A configuration in f16 is written in f32, with a warning: Q/DQ says nothing about f16.
    """
    check(name)
    if config.precision == "f16":
        logger.warning("%s holds the network in f32: Q/DQ has no f16, which runtimes choose themselves", path.name)
    return places.write(path, _contents(builder, config), "export")


def _contents(builder: Builder, config: QuantConfig) -> bytes:
    from quantune.export.qdq import to_onnx

    notes = {
        "quantune.version": VERSION,
        "quantune.configuration": str(config),
        "quantune.model_fingerprint": builder.model.fingerprint,
    }
    return to_onnx(builder.model.bytecode, builder.plan(config), builder.model.name, notes)
