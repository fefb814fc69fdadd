"""Formats of weights end to end: artifacts equal numpy bit for bit, are smaller by them, and can be rebuilt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from quantized import Form, assert_same_bits, call, compiled, lower, plan_from_images, reference
from test_narrow import Labelled
from torch import nn

from quantune import api
from quantune.cache import ArtifactCache
from quantune.frontend.importer import import_module
from quantune.numerics import affine
from quantune.quantization.config import QuantConfig
from quantune.runtime.artifact import load

SHAPE = (1, 3, 10, 10)

FAMILIES = ("w2t", "w1", "w2q", "w3h", "w4f", "w4z", "w3c", "w4p", "w3r", "e2m1", "e2m3", "e3m2", "w3k", "w5")


class Families(nn.Module):
    """A layer for each family of formats: the first, depthwise, grouped and dense ones, and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        wide = nn.ModuleList([nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)])
        wide += [nn.Conv2d(32, 32, 3, padding=1, groups=4 if i == 1 else 1) for i in range(len(FAMILIES) - 3)]
        self.layers, self.head = wide, nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def _bits(names: tuple[str, ...]) -> str:
    layers = [*(f"layers.{i}" for i in range(len(names) - 1)), "head"]
    return "w8/" + "/".join(f"{name}:{layer}" for name, layer in zip(names, layers, strict=True))


@pytest.mark.parametrize(
    ("names", "settings", "outlined"),
    [
        (FAMILIES, "weight_clip=mse", False),
        pytest.param(FAMILIES[::-1], "scheme=symmetric_power2,granularity=tensor", False, marks=pytest.mark.slow),
        pytest.param(FAMILIES[5:] + FAMILIES[:5], "scheme=symmetric", True, marks=pytest.mark.slow),
    ],
)
def test_every_family_equals_numpy_bit_for_bit(names: tuple[str, ...], settings: str, outlined: bool) -> None:
    model = import_module(Families().eval(), torch.zeros(SHAPE), "families")
    rng = np.random.default_rng(0)
    calibration, x = rng.normal(0, 1, (2, *SHAPE)).astype(np.float32)
    plan = plan_from_images(model, calibration, QuantConfig.parse(f"bits={_bits(names)},{settings}"))
    for name, node in zip(names, model.network.layers, strict=True):
        assert node.weight is not None
        params = plan.weights[node.name]
        assert (params.levels is None) == (name == "w5")
        bits = QuantConfig.parse(f"bits={name}").bits.default.weights
        assert len(np.unique(affine.quantize(node.weight, params))) <= 2**bits
    lowered = lower(model, plan, Form("target", outlined))
    assert ("pack-weights" in lowered.pipeline) == (not outlined)
    assert_same_bits(call(compiled(lowered), x), reference(model, plan, x))


LINES = ("bits=w8", "bits=w2h", "bits=w1,bias=fast", "bits=w4p/w3k:2,weight_clip=mse")


def test_an_artifact_is_smaller_by_its_formats_runs_alone_and_is_rebuilt(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wide = nn.Sequential(
        nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9216, 10)
    )
    options, calib = api.ModelOptions(shape=SHAPE[1:]), Labelled10(4, 0)
    made = {line: api.quantize(wide, line, calib=calib, options=options) for line in LINES}
    eight, half, one, tables = (artifact.size_bytes for artifact in made.values())
    dense, head = 256 * 256 * 9, 9216 * 16
    # The head has fewer outputs than a vector has lanes: the zeros that fill it up are one integer more and cost a bit.
    assert abs((eight - half) - (dense * 6 + head * 5) / 8) < 0.02 * eight
    assert abs((eight - one) - (dense * 7 + head * 6) / 8) < 0.02 * eight
    assert abs((eight - tables) - (dense * 5 + head * 3) / 8) < 0.02 * eight
    x = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for line, artifact in made.items():
        path = artifact.save(tmp_path / "made.vmfb")
        again = load(path)
        assert again.config == QuantConfig.parse(line)
        command = ["iree-run-module", f"--module={path}", "--device=local-sync", f"--input=@{tmp_path}/x.npy"]
        command[0] = str(Path(sys.executable).parent / command[0])
        subprocess.run([*command, f"--output=@{tmp_path}/y.npy"], check=True, capture_output=True)
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), artifact(x))
    cache = ArtifactCache(tmp_path / "cache")  # nothing is known there
    rebuilt = api.quantize(wide, str(load(tmp_path / "made.vmfb").config), calib=calib, options=options, cache=cache)
    last = made[LINES[-1]]
    assert rebuilt.provenance is not None
    assert last.provenance is not None
    assert rebuilt.provenance.sha256 == last.provenance.sha256
    assert len({artifact.provenance.sha256 for artifact in made.values() if artifact.provenance}) == len(LINES)


class Labelled10(Labelled):
    """Noise of this test's size."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.shape = SHAPE[1:]
