"""Fewer bits end to end: mixed widths are exact, artifacts hold them packed, and a search allocates them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized import (
    LAYOUTS,
    Form,
    assert_same_bits,
    call,
    compile_to,
    compiled,
    executions,
    load,
    lower,
    plan_from_images,
    reference,
)
from torch import nn

from quantune import api
from quantune.cache import ArtifactCache
from quantune.data.base import ImageSource
from quantune.frontend.importer import import_module
from quantune.numerics import affine
from quantune.quantization.bits import BitWidths, LayerBits
from quantune.quantization.config import QuantConfig
from quantune.runtime.artifact import load as load_artifact
from quantune.runtime.engines import LocalRunner

SHAPE = (1, 3, 12, 12)


class Mixed(nn.Module):
    """Dense, depthwise and pointwise layers, a residual addition, a pool and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 48, 3, padding=1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.expand, self.project = nn.Conv2d(48, 192, 1), nn.Conv2d(192, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = nn.functional.relu6(self.depthwise(x))
        z = x + self.project(torch.relu(self.expand(y)))
        return self.head(z.mean((2, 3)))


WIDTHS = BitWidths.parse("w4a8/w2a8:stem/w3a4:depthwise/w7a8:expand/w5a4:project/w8a4:head")


@pytest.fixture(scope="module")
def model() -> api.ImportedModel:
    return import_module(Mixed().eval(), torch.zeros(SHAPE), "mixed")


@pytest.mark.parametrize(
    ("scheme", "layout", "outlined"),
    [
        ("asymmetric", "target", False),
        *(
            pytest.param(scheme, layout, outlined, marks=pytest.mark.slow)
            for scheme in ("asymmetric", "symmetric_power2")
            for layout in LAYOUTS
            for outlined in (False, True)
            if (scheme, layout, outlined) != ("asymmetric", "target", False)
        ),
    ],
)
def test_mixed_widths_equal_numpy_bit_for_bit(
    model: api.ImportedModel, scheme: str, layout: str, outlined: bool
) -> None:
    rng = np.random.default_rng(0)
    calibration, x = rng.normal(0, 1, (2, *SHAPE)).astype(np.float32)
    plan = plan_from_images(model, calibration, QuantConfig(scheme=scheme, bits=WIDTHS))
    for name, (weight, activation) in {"stem": (2, 8), "depthwise": (3, 4), "expand": (7, 8), "head": (8, 4)}.items():
        node = model.network.by_name[name]
        assert node.weight is not None
        assert plan.weights[name].qmax == 2 ** (weight - 1) - 1
        integers = affine.quantize(node.weight, plan.weights[name])
        assert np.abs(integers).max() <= 2 ** (weight - 1) - 1
        read = plan.activations[node.inputs[0]]
        assert read.qmax - read.qmin == 2**activation - 1
    lowered = lower(model, plan, Form(layout, outlined))
    assert ("pack-weights" in lowered.pipeline) == (layout == "target" and not outlined)
    assert_same_bits(call(compiled(lowered), x), reference(model, plan, x))


class Dyadic(Mixed):
    """The same with weights, and biases that are multiples of 1/64: its f32 sums are exact in any order."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.round(parameter * 64) / 64)


@pytest.mark.parametrize(
    ("bits", "integer"),
    [
        ("w8/f32:depthwise+project", {"stem", "expand", "head"}),
        ("w4/f32:stem+expand/w8:head", {"depthwise", "project", "head"}),
        ("f32/w3:expand/w8:head", {"expand", "head"}),
    ],
)
def test_layers_that_stay_float_anywhere_equal_numpy_bit_for_bit(bits: str, integer: set[str]) -> None:
    model = import_module(Dyadic().eval(), torch.zeros(SHAPE), "dyadic")
    calibration, x = np.round(np.random.default_rng(0).normal(0, 1, (2, *SHAPE)) * 16).astype(np.float32) / 16
    plan = plan_from_images(model, calibration, QuantConfig(scheme="symmetric_power2", bits=BitWidths.parse(bits)))
    assert set(plan.weights) == integer
    with tempfile.TemporaryDirectory() as folder:
        lowered = lower(model, plan, Form())
        module = compile_to(lowered, Path(folder))
        assert {row.layer for row in executions(model, module) if row.is_integer} == integer
        assert_same_bits(call(load(module, lowered), x), reference(model, plan, x))


class Labelled(ImageSource):
    """Noise with labels."""

    def __init__(self, count: int, seed: int) -> None:
        self.name, self.shape, self.classes = f"noise {seed}", SHAPE[1:], 10
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng((self._seed, index))
        return rng.standard_normal(self.shape, np.float32), int(rng.integers(10))


LINES = ("bits=w8", "bits=w3", "bits=w4/w2:2")


def test_an_artifact_shows_its_bits_and_is_smaller_by_them(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wide = nn.Sequential(
        nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 512, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32768, 10)
    )
    options = api.ModelOptions(shape=SHAPE[1:])
    calib = Labelled(4, 0)
    made = {line: api.quantize(wide, line, calib=calib, options=options) for line in LINES}
    weights = [3 * 256 * 9, 256 * 512 * 9, 32768 * 16]
    eight, three, mixed = (artifact.size_bytes for artifact in made.values())
    assert abs((eight - three) - sum(weights) * 5 / 8) < 0.02 * eight
    assert abs((eight - mixed) - (weights[1] * 6 + (weights[0] + weights[2]) * 4) / 8) < 0.02 * eight
    path = made["bits=w4/w2:2"].save(tmp_path / "mixed.vmfb")
    rebuilt = api.quantize(wide, "bits=w4/w2:2", calib=calib, options=options, cache=ArtifactCache(tmp_path / "cache"))
    assert rebuilt.provenance is not None
    assert made["bits=w4/w2:2"].provenance is not None
    assert rebuilt.provenance.sha256 == made["bits=w4/w2:2"].provenance.sha256
    again = load_artifact(path)
    assert again.config is not None
    assert again.config.bits.of("2") == LayerBits(2)
    x = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    np.testing.assert_array_equal(again(x), made["bits=w4/w2:2"](x))


@pytest.mark.parametrize(
    "score", ["sqnr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("output-error", "gram", "clado"))]
)
def test_a_budget_s_allocation_is_measured_beside_the_uniform_width_that_fits(score: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = api.compile(
        Mixed().eval(), calib=Labelled(8, 0), eval=Labelled(6, 1), size_budget="0.6x", score=score, max_trials=2,
        max_drop=None, out=tmp_path, options=api.ModelOptions(shape=SHAPE[1:]),
    )  # fmt: skip
    tried = [trial.config.bits for trial in result.tuning.trials]
    assert len(set(tried)) == 2
    assert len({str(replace(trial.config, bits=BitWidths())) for trial in result.tuning.trials}) == 1
    assert BitWidths(LayerBits(4)) in tried
    assert {trial.config.precision for trial in result.tuning.trials} == {"int8"}
    assert result.best is not None
    rows = {row["name"]: row for row in result.report["layers"]}
    for name, row in rows.items():
        assert row["weight_bits"] == result.best.config.bits.of(name).weights
    assert any("stored packed in" in note for note in result.report["notes"])


class Answered(Labelled):
    """Noise around colours of their own, whose labels are what a network answers."""

    def __init__(self, net: nn.Module, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self._net = net

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, _ = super().__getitem__(index)
        image = image + np.random.default_rng(index).normal(0, 4, (3, 1, 1)).astype(np.float32)
        with torch.no_grad():
            return image, int(self._net(torch.from_numpy(image[None])).argmax())


@pytest.mark.slow
def test_the_smallest_within_a_bound_is_walked_to_measured_and_walked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the walk it does not measure again what it had, and ends with the same artifact."""
    net, runs = Mixed().eval(), []
    run = LocalRunner.run

    def counted(self: LocalRunner, *arguments: Any) -> Any:
        if len(runs) == limit:
            raise KeyboardInterrupt
        runs.append(arguments)
        return run(self, *arguments)

    monkeypatch.setattr(LocalRunner, "run", counted)

    def search(out: Path, cache: str) -> api.Result:
        return api.compile(
            net, calib=Answered(net, 8, 0), eval=Answered(net, 40, 1), smallest_within=0.2, out=out, transfer=False,
            options=api.ModelOptions(shape=SHAPE[1:]), cache=ArtifactCache(tmp_path / cache), propose="greedy",
            score="parameters",
        )  # fmt: skip

    limit = 4
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "stopped", "one")
    limit = -1
    result = search(tmp_path / "stopped", "one")
    count = len(runs)
    whole = search(tmp_path / "whole", "two")
    assert len(runs) - count == count  # as many in one go
    for each in (result, whole):
        assert each.feasible
        assert each.best is not None
        assert each.best.score is not None
        assert each.best.score.accuracy >= 0.8
        assert each.best.config == result.best.config  # type: ignore[union-attr]
        kept = [t.score.size_bytes for t in each.tuning.trials if t.score is not None and t.score.accuracy >= 0.8]
        assert each.best.score.size_bytes == min(kept)
        assert any("allocations, from wide to narrow" in note for note in each.report["notes"])
    assert 0 < result.best.config.bits.default.weights < 8  # type: ignore[union-attr]
