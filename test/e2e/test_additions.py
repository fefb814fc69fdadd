"""A target, a score, a source of images and a strategy from outside: each works where it is asked for by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from torch import nn
from tuner_bench import SMALL, measure

from mlir_passes.network import Node
from quantune.allocation.base import Scores, Subject
from quantune.allocation.table import SCORERS
from quantune.artifact.targets import DEVICES
from quantune.cache import ArtifactCache
from quantune.compiler import targets
from quantune.compiler.targets import BACKENDS, Backend, Target
from quantune.data.base import ImageSource
from quantune.data.choice import calibration_images
from quantune.data.sources import SOURCES, Source
from quantune.errors import UsageError
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.simulate import simulate
from quantune.quantization.bits import LayerBits
from quantune.quantization.config import QuantConfig
from quantune.runtime.artifact import Artifact
from quantune.search.strategies import SAMPLERS
from quantune.search.tuner import tune
from quantune.tuning.bits_wanted import BitsWanted
from quantune.tuning.builder import Builder

SHAPE = (2, 3, 8, 8)


class _Toy(Backend):
    """This machine's processor in plain loops, behind a pass that changes nothing."""

    on_processor = True

    def flags(self, detail: str) -> tuple[str, ...]:
        return ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu",
                f"--iree-llvmcpu-target-cpu={detail}", "--iree-opt-level=O1")  # fmt: skip

    def passes(self, detail: str, precision: str) -> tuple[str, ...]:
        return ("cse",)


class _Ramps(ImageSource):
    """Images that rise from left to right, by what follows the colon."""

    name, classes, shape = "ramps", 2, SHAPE[1:]

    def __init__(self, steepness: float) -> None:
        self._steepness = steepness

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        ramp = np.linspace(-index, self._steepness, 8, dtype=np.float32)
        return np.broadcast_to(ramp, self.shape).copy(), index % 2


def _last_first(subject: Subject) -> Scores:
    """The later a layer, the more its bits matter."""
    layers: tuple[Node, ...] = tuple(subject.network.layers)
    return {node.name: {c: float((8 - c.weights) * 100**i) for c in subject.choices} for i, node in enumerate(layers)}


@pytest.fixture
def _entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "toy", DEVICES["cpu"])
    toy = _Toy("toy", "cpu", "a processor", "--toy-chip", "NAME", "chip of the toy target")
    monkeypatch.setitem(BACKENDS, "toy", toy)
    monkeypatch.setitem(SCORERS, "toy", _last_first)  # type: ignore[misc]
    monkeypatch.setitem(SOURCES, "ramps", Source(lambda asked, options, role: _Ramps(float(asked.target))))
    monkeypatch.setitem(SAMPLERS, "toy", lambda seed: optuna.samplers.RandomSampler(seed=seed))


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(8, 2))
    return import_module(net, torch.zeros(SHAPE), "net")


@pytest.mark.usefixtures("_entered")
def test_an_artifact_is_compiled_and_run_for_a_target_and_with_images_from_outside(
    model: ImportedModel, tmp_path: Path
) -> None:
    target, config = targets.parse("toy:generic"), QuantConfig(calib=4)
    split = calibration_images("ramps:3?count=4", None)
    assert len(split) == 4
    builder = Builder(model, target, calib=split, cache=ArtifactCache(tmp_path), sizes=(4,))
    made = Artifact(builder.artifact(config).save(tmp_path / "a.vmfb").read_bytes())
    assert made.provenance is not None
    assert (made.provenance.target, made.device) == ("toy:generic", "local-sync")
    assert made.provenance.pipeline.endswith(",cse")
    plan = builder.plan(config)
    assert plan is not None
    x = np.random.default_rng(1).normal(0, 2, SHAPE).astype(np.float32)
    expected = simulate(model.network, plan.activations, plan.weights, x)[model.network.outputs[0]]
    np.testing.assert_array_equal(made(x), expected)


@pytest.mark.usefixtures("_entered")
def test_a_score_from_outside_decides_which_layer_keeps_its_bits(model: ImportedModel, tmp_path: Path) -> None:
    builder = Builder(model, Target("cpu"), cache=ArtifactCache(tmp_path))
    wanted = BitsWanted(size_budget="0.5x", score="toy")
    first, last = (node.name for node in model.network.layers)
    bits = wanted.candidates(builder, QuantConfig())[0]
    assert bits.of(last) == LayerBits(8)
    assert bits.of(first).weights < 8


@pytest.mark.usefixtures("_entered")
def test_a_strategy_from_outside_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def sampler(seed: int) -> BaseSampler:
        asked.append(seed)
        return optuna.samplers.RandomSampler(seed=seed)

    monkeypatch.setitem(SAMPLERS, "toy", sampler)
    result = tune(measure, tmp_path, space=SMALL, sampler="toy", max_trials=3, first=())
    assert len(result.trials) == 3
    assert len(set(asked)) >= 3


def test_none_of_them_is_known_otherwise() -> None:
    with pytest.raises(UsageError, match="target 'toy': expected one of cpu, vulkan, cuda"):
        targets.parse("toy:generic")
    with pytest.raises(UsageError, match="score 'toy': expected one of"):
        BitsWanted(size_budget="0.5x", score="toy")
    with pytest.raises(UsageError, match="sampler 'toy': expected one of"):
        tune(measure, Path("out"), sampler="toy")
    with pytest.raises(UsageError, match="data 'ramp:1=': expected builtin"):
        calibration_images("ramp:1=", None)
