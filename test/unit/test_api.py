"""The Python entry points: what they take, and the one line that each wrong argument gets."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quantune import api
from quantune.api import ModelOptions
from quantune.artifact.records import Processor
from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.errors import EnvironmentFailure, UsageError
from quantune.runtime.host import this_host
from quantune.tuning.measuring import check_measurable

SHAPE = ModelOptions(shape=(3, 8, 8))
MLIR = "func.func @main(%x: tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> { return %x : tensor<1x3x4x4xf32> }"


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def _pairs(count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(seed)
    return [(random.normal(size=(3, 8, 8)).astype(np.float32), i % 3) for i in range(count)]


class Dataset:
    """What a torch dataset looks like."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(_pairs(5)[index][0]), index


@pytest.mark.parametrize("images", [_pairs(5), Dataset()], ids=["list", "dataset"])
def test_any_sequence_of_pairs_calibrates(images: Any, tmp_path: Path) -> None:
    builder = api.make_builder(
        _net(), calib=images, target="cpu", sizes=(5,), options=SHAPE, cache=ArtifactCache(tmp_path)
    )
    assert builder.calib is not None
    assert len(builder.calib) == 5
    assert builder.calib.fingerprint


def test_sequences_that_share_an_image_are_refused() -> None:
    with pytest.raises(UsageError, match=r"share 5 images, for example calibration images, image \d and evaluation im"):
        api.compile(_net(), calib=_pairs(5), eval=_pairs(5), options=SHAPE)


def test_float_artifacts_take_the_shape_of_the_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "calib.npz", images=np.zeros((2, 3, 8, 8), np.float32))
    (tmp_path / "shape_nets.py").write_text("from torch import nn\ndef tiny():\n    return nn.Conv2d(3, 2, 1)\n")
    monkeypatch.chdir(tmp_path)
    artifact = api.quantize("shape_nets:tiny", "precision=f32", calib="npz:calib.npz", cache=ArtifactCache(tmp_path))
    assert artifact(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 2, 8, 8)


def test_models_may_be_paths(tmp_path: Path) -> None:
    path = tmp_path / "net.mlir"
    path.write_text(MLIR)
    assert api.make_builder(path, calib=None, target="cpu", sizes=(1,)).model.name == "net"


def _import(model: Any, options: ModelOptions = SHAPE) -> Callable[[Path], object]:
    return lambda folder: api.import_any(model, options, ArtifactCache(folder))


def _quantize(**changes: Any) -> Callable[[Path], object]:
    given = {"model": _net(), "config": "clip=max", "calib": _pairs(2), "options": SHAPE} | changes
    return lambda folder: api.quantize(given.pop("model"), given.pop("config"), **given, cache=ArtifactCache(folder))


def _compile(**changes: Any) -> Callable[[Path], object]:
    """A search that would fail at once, if it got so far, for want of a model."""
    return lambda folder: api.compile("none.pt2", **{"calib": "npz:none", "eval": "npz:none", "out": folder} | changes)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (_import(None), "model: got NoneType, expected a reference, a torch module or exported program"),
        (_import(nn.ReLU), "model: got type, expected"),
        (_import(nn.ReLU(), ModelOptions(weights=Path("w.pth"))), "weights does not apply to a model of type ReLU"),
        (_import(nn.ReLU(), ModelOptions(classes=3)), "classes does not apply to a model of type ReLU, which fixes it"),
        (_import("a.mlir", ModelOptions(shape=(3, 8, 8))), "--image-shape does not apply to model 'a.mlir'"),
        (_quantize(calib=5), "calibration images: got int, expected a sequence of images or of (image, label) pairs"),
        (_quantize(calib=Path("calib.npz")), "calibration images: got PosixPath, expected a sequence"),
        (_quantize(calib=[]), "calibration images: got no images"),
        (_quantize(calib=np.zeros((4, 3, 8), np.float32)), "calibration images, image 0: shape (3, 8), expected"),
        (_quantize(config=None), "configuration None: expected a QuantConfig or a line such as"),
        (_quantize(config="calib=" + "9" * 5000), "expected a number of images, 1 or more"),
        (_compile(threads=0), "threads 0: expected a whole number, 1 or more"),
        (_compile(max_trials=0), "number of trials 0: expected a whole number, 1 or more"),
        (_compile(max_trials=1.5), "number of trials 1.5: expected a whole number, 1 or more"),
        (_compile(time_budget_s=float("nan")), "time budget nan s: expected more than 0"),
        (_compile(sampler="xgbost"), "sampler 'xgbost': expected one of xgboost"),
        (_compile(space="wde"), "space 'wde': expected one of paper, wide (did you mean wide?)"),
        (_compile(space=[]), "space '[]': expected one of paper, wide"),
        (_compile(seed="x"), "seed 'x': expected a whole number"),
    ],
)
def test_wrong_arguments_are_one_line(call: Callable[[Path], object], line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        call(tmp_path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch": 0}, "batch 0: expected a whole number, 1 or more"),
        ({"batch": "4"}, "batch '4': expected a whole number"),
        ({"classes": -1}, "classes -1: expected a whole number"),
        ({"shape": (8, 8)}, "image shape (8, 8): expected (channels, height, width)"),
        ({"shape": (3, 0, 8)}, "image shape (3, 0, 8): expected"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelOptions(**options)
    assert line in str(caught.value)


def test_weights_may_be_named_by_a_string() -> None:
    assert ModelOptions(weights="w.pth").weights == Path("w.pth")  # type: ignore[arg-type]


class Unread(Dataset):
    """Images that may not be read."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        raise AssertionError("an image was read before the request was refused")


def test_a_processor_that_cannot_measure_here_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    other = "neoverse-n1" if platform.machine() == "x86_64" else "skylake"
    with pytest.raises(EnvironmentFailure) as caught:
        api.compile(
            "none.pt2", calib=Unread(), eval=Unread(), target=f"cpu:{other}", out=tmp_path / "out",
            cache=ArtifactCache(tmp_path / "cache"),
        )  # fmt: skip
    assert f"target cpu:{other}: a search measures its programs, which are compiled for " in str(caught.value)
    assert "or build one configuration here with --config LINE" in str(caught.value)


def test_features_that_this_processor_lacks_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def needed(target: Target, cache: ArtifactCache) -> Processor:
        return Processor(platform.machine(), "future", ("sse2", "avx1024"))

    monkeypatch.setattr("quantune.tuning.measuring.needed_processor", needed)
    here = replace(this_host(), features={"sse2": True, "avx1024": False})
    monkeypatch.setattr("quantune.tuning.measuring.this_host", lambda: here)
    with pytest.raises(EnvironmentFailure, match=r"processor \(future\) with avx1024, which this machine lacks"):
        check_measurable(Target("cpu", cpu="generic"), ArtifactCache(tmp_path))


def test_an_unknown_processor_is_told_before_the_model_is_imported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target cpu:znver99: IREE knows no such processor"):
        api.compile("none.pt2", calib=Unread(), eval=Unread(), target="cpu:znver99", out=tmp_path / "out",
                    cache=ArtifactCache(tmp_path / "cache"))  # fmt: skip
