"""torchvision's classification networks through everything: import, plan, passes, compiler, runtime, numpy.

Weights are random, batch norms calibrated to them (quantune.frontend.models does both).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantized import (
    Form,
    assert_same_bits,
    call,
    compile_to,
    executions,
    integer_share,
    load,
    lower,
    plan_from_images,
    reference,
    sqnr_db,
)

from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.data.base import ImageSource
from quantune.data.splits import Split
from quantune.frontend import models
from quantune.frontend.imported import ImportedModel
from quantune.frontend.models import ModelRequest, load_model
from quantune.quantization.config import QuantConfig
from quantune.runtime.program import Program
from quantune.torchvision_compat import torchvision
from quantune.tuning.builder import Builder

SIX = ("mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "googlenet", "resnet50")


def _images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, 3, size, size)).astype(np.float32)


def _in_torch(name: str, size: int, x: np.ndarray) -> np.ndarray:
    """What the f32 network of the same random weights gives."""
    request = ModelRequest(f"torchvision:{name}", shape=(3, size, size))
    with torch.no_grad():
        return models._torchvision_model(request, name)(torch.from_numpy(x)).numpy()


def _check(name: str, size: int, folder: Path, *, least_db: float, f32: bool) -> None:
    model = load_model(ModelRequest(f"torchvision:{name}", shape=(3, size, size)))
    assert [node.name for node in model.network.nodes if node.kind == "float"] == []
    calibration, x = np.split(_images(2, size), 2)
    plan = plan_from_images(model, calibration, QuantConfig())
    lowered = lower(model, plan, Form())
    module = compile_to(lowered, folder)
    (actual,) = call(load(module, lowered), x)
    assert_same_bits([actual], reference(model, plan, x))
    exact = _in_torch(name, size, x)
    assert sqnr_db(exact, actual) >= least_db
    assert integer_share(executions(model, module)) == 1
    if f32:
        float_lowered = lower(model, None, Form(), "f32")
        float_module = compile_to(float_lowered, folder / "f32")
        np.testing.assert_allclose(
            call(load(float_module, float_lowered), x)[0], exact, atol=1e-3 * np.abs(exact).max()
        )
        assert module.path.stat().st_size < 0.4 * float_module.path.stat().st_size


def test_mobilenet_v2(tmp_path: Path) -> None:
    _check("mobilenet_v2", 64, tmp_path, least_db=3, f32=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_six_networks_at_full_size(name: str, tmp_path: Path) -> None:
    _check(name, 224, tmp_path, least_db=10, f32=True)


# Every other one

SIZES = {"alexnet": 224, "inception": 299, "vgg": 224}
"""What a family is tried at; 64 elsewhere. Smaller images make these pool adaptively, which is a gather."""

FLOAT_PARTS: dict[str, tuple[str, ...]] = {
    "convnext": (  # layer norms (variances in f64) and the gather of the average pool to one pixel
        "arith.addf", "arith.subf", "arith.mulf", "arith.divf", "arith.extf", "arith.truncf",
        "a gather from places that are not known",
    ),
}  # fmt: skip
"""Families with f32 operations, and the arithmetic of these. Everything else must run in integers."""

EXPECTED_FAILURES: dict[str, str] = {}
"""Networks that do not get through, and why. One that does get through fails the test: remove it here."""


def _names() -> list[str]:
    known = torchvision().models
    names = known.list_models(module=known)
    return [name for name in names if not name.startswith(("vit", "swin", "maxvit")) and name not in SIX]


def _of_family(name: str, table: dict) -> object | None:
    return next((value for family, value in table.items() if name.startswith(family)), None)


class _Noise(ImageSource):
    def __init__(self, size: int) -> None:
        self.name, self.classes, self.shape = "noise", None, (3, size, size)
        self.images = _images(2, size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], 0


def _through_everything(name: str, folder: Path) -> tuple[ImportedModel, float, float]:
    """The model, the SQNR of its int8 program and the share of multiplications in integers."""
    size = int(_of_family(name, SIZES) or 64)  # type: ignore[call-overload]
    model = load_model(ModelRequest(f"torchvision:{name}", shape=(3, size, size)))
    source = _Noise(size)
    builder = Builder(model, Target("cpu"), calib=Split(source, (0,)), cache=ArtifactCache(folder), sizes=(1,))
    built = builder.build(QuantConfig(calib=1))
    x = source.images[1:]
    (actual,) = call(Program(built.program.path, parameters=built.numbers), x)
    plan = builder.plan(QuantConfig(calib=1))
    assert plan is not None
    if not any(node.kind == "float" for node in model.network.nodes):
        assert_same_bits([actual], reference(model, plan, x))
    layers = builder.artifact(QuantConfig(calib=1)).layers
    return model, sqnr_db(_in_torch(name, size, x), actual), integer_share(layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", _names())
def test_every_other_network(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if reason := _of_family(name, EXPECTED_FAILURES):
        request.applymarker(pytest.mark.xfail(reason=str(reason), strict=True))
    model, quality, share = _through_everything(name, tmp_path)
    found = {part for node in model.network.nodes if node.kind == "float" for part in node.detail.split(" + ")}
    assert found == set(_of_family(name, FLOAT_PARTS) or ())  # type: ignore[call-overload]
    assert share >= 0.99
    assert quality >= 5
