"""Whole networks as ONNX: what ONNX Runtime computes from the file against the compiled artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from quantune.api import make_builder
from quantune.quantization.config import QuantConfig
from quantune.tuning import exports

IMAGES = 1000
LINES = ("scheme=asymmetric,granularity=channel", "scheme=symmetric_power2,granularity=channel")


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("squeezenet1_1_digits", "builtin:digits"),
        ("shufflenet_v2_x1_0_shapes", "builtin:shapes"),
        ("mobilenet_v2_shapes", "builtin:shapes"),
    ],
)
def test_onnx_runtime_answers_as_the_artifact(name: str, data: str, line: str, tmp_path: Path) -> None:
    config = QuantConfig.parse(f"calib=100,{line}")
    with make_builder(f"builtin:{name}", calib=data, target="cpu", sizes=(config.calib,)) as builder:
        path = exports.write("qdq-onnx", builder, config, tmp_path / "net.onnx")
        artifact, images = builder.artifact(config), builder.calibration.images(IMAGES)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = np.concatenate([np.asarray(session.run(None, {"input": x[None]})[0]) for x in images])
    expected = np.concatenate([np.asarray(artifact(x[None])) for x in images])
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    off, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    print(f"{name} {line}: {same} of {len(images)} classes agree, outputs differ by up to {off:.2g} of {largest:.3g}")
    assert same >= 0.999 * len(images)
    assert off <= (0.1 * largest if config.scheme != "symmetric_power2" else 1e-4 * largest)
