"""``export``: one configuration of a model as a file of another format, without a search and without a compiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantune.api import ModelOptions, Progress, make_builder
from quantune.process import places
from quantune.quantization.config import QuantConfig
from quantune.tuning import exports

if TYPE_CHECKING:
    from quantune.api import ModelLike
    from quantune.cache import ArtifactCache
    from quantune.data.choice import Images


def export(
    model: ModelLike,
    config: QuantConfig | str,
    path: Path | str,
    *,
    calib: Images | None = None,
    eval: Images | None = None,
    format: str = "qdq-onnx",
    options: ModelOptions | None = None,
    cache: ArtifactCache | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a configuration of ``model`` to ``path``: weights, scales and zero points are those of its artifact.

    format: qdq-onnx, ONNX with quantize/dequantize pairs (docs/formats.md). The rest is as in `quantune.quantize`.
    Raises UsageError for a network that the format cannot hold.
    """
    config = QuantConfig.parse(config) if isinstance(config, str) else config
    exports.check(format)
    path = places.file(path, "export")
    builder = make_builder(
        model, calib=calib, eval=eval, target="cpu", sizes=(config.calib,), options=options, cache=cache,
        progress=progress,
    )  # fmt: skip
    return exports.write(format, builder, config, path)
