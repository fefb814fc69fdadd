"""Refined plans: found once, kept by content, exact in the artifact, and nothing is compiled for them."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.data.base import ImageSource
from quantune.data.splits import Split
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.simulate import simulate
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import with_constants
from quantune.refine import bias, rounding
from quantune.refine.base import Task
from quantune.runtime.program import Program
from quantune.tuning import builder as builder_module
from quantune.tuning import refining
from quantune.tuning.builder import Builder

PLAIN = QuantConfig(calib=5, granularity="tensor")
REFINED = QuantConfig(calib=5, granularity="tensor", bias="sequential")


class Noise(ImageSource):
    """Random images of one class."""

    name, classes, shape = "noise", 2, (3, 8, 8)

    def __init__(self, seed: int = 0) -> None:
        self.images = np.random.default_rng(seed).normal(0.5, 1, (5, *self.shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        return self.images[index], index % 2


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2))
    return import_module(net, torch.zeros(2, 3, 8, 8), "net")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _builder(model: ImportedModel, folder: Path, seed: int = 0) -> Builder:
    split = Split(Noise(seed), tuple(range(5)))
    return Builder(model, Target("cpu"), calib=split, cache=ArtifactCache(folder), sizes=(5,))


ROUNDED = replace(PLAIN, rounding="brecq", bias="fast")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "STEPS", 40)


@pytest.mark.parametrize("config", [REFINED, ROUNDED], ids=["biases", "roundings"])
def test_the_program_is_the_same_and_answers_as_the_simulation_says(
    model: ImportedModel, folder: Path, config: QuantConfig
) -> None:
    builder = _builder(model, folder)
    plain, refined = builder.build(PLAIN), builder.build(config)
    assert plain.program.sha256 == refined.program.sha256
    assert plain.key != refined.key
    plan = builder.plan(config)
    assert plan is not None
    assert set(plan.constants) == {node.name for node in model.network.layers}
    assert all(constant.bias is not None for constant in plan.constants.values())
    assert any(constant.weight is not None for constant in plan.constants.values()) == (config is ROUNDED)
    x = Noise(3).images[:2]
    network = with_constants(model.network, plan.constants)
    expected = simulate(network, plan.activations, plan.weights, x)[network.outputs[0]]
    assert refined.numbers is not None
    np.testing.assert_array_equal(Program(refined.program.path, parameters=refined.numbers)(x), expected)


def test_nothing_is_compiled_and_nothing_is_found_twice(
    model: ImportedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = _builder(model, folder)
    _ = builder.build(PLAIN)  # the program that shows tensors, and the network's own

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("compiled")

    heard: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(builder_module.pipelines, "lower", never)
        fast = _builder(model, folder)
        fast.plans._on_refining = lambda done, total: heard.append((done, total))
        patch.setattr("quantune.compiler.iree.children", None)
        found = fast.plan(QuantConfig(calib=5, granularity="tensor", bias="fast"))
    assert found is not None
    assert heard[-1] == (5, 5)
    assert builder.plan(REFINED) is builder.plan(REFINED)
    known = builder.plan(REFINED)
    assert known is not None

    def again(task: Task) -> dict:
        raise AssertionError("refined again")

    monkeypatch.setitem(refining.BIASES, "sequential", again)
    kept = _builder(model, folder).plan(REFINED)
    assert kept is not None
    assert kept.digest() == known.digest()
    with pytest.raises(AssertionError, match="refined again"):
        _builder(model, folder, seed=1).plan(REFINED)  # other images, other numbers


def test_a_refinement_that_was_killed_goes_on_where_it_was(
    model: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PLAIN, rounding="adaround", bias="sequential")
    whole = _builder(model, tmp_path / "whole").plan(config)
    run, searched = rounding._Fit.run, []

    def once(self: rounding._Fit, hear: Any) -> Any:
        if searched:
            raise KeyboardInterrupt
        searched.append(self)
        return run(self, hear)

    with monkeypatch.context() as patch:
        patch.setattr(rounding._Fit, "run", once)
        with pytest.raises(KeyboardInterrupt):
            _builder(model, tmp_path / "killed").plan(config)
        searched.clear()
        resumed = _builder(model, tmp_path / "killed").plan(config)  # of two layers one is left
    assert whole is not None
    assert resumed is not None
    assert resumed.digest() == whole.digest()


def test_plans_refined_at_once_observe_the_network_once(
    model: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search refines two plans at a time in the background."""
    observe, asked, both = bias.layer_means, [], threading.Event()

    def means(*arguments: Any) -> dict[str, NDArray]:
        asked.append(arguments)
        if len(asked) > 1:
            both.set()
        both.wait(0.3)  # whoever else would observe may come
        return observe(*arguments)

    monkeypatch.setattr(bias, "layer_means", means)
    builder = _builder(model, tmp_path)
    builder.prepare([replace(PLAIN, bias=how) for how in ("fast", "sequential")])
    builder.close()
    # What was prepared and not begun is forgotten, which is no matter here.
    plans = [builder.plan(replace(PLAIN, bias=how)) for how in ("fast", "sequential")]
    assert len({plan.digest() for plan in plans if plan is not None}) == 2
    assert len(asked) == 1


def test_configurations_are_told_apart_without_being_refined(
    model: ImportedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refining, "BIASES", {})
    builder = _builder(model, folder / "none")
    configs = [QuantConfig(calib=5, bias=how) for how in ("none", "fast", "sequential")]
    assert len({builder.identity(config) for config in configs}) == 3
    scales = [builder.plans.scales(config) for config in configs]
    assert len({plan.digest() for plan in scales if plan is not None}) == 1
    assert builder.plan(QuantConfig(precision="f32")) is None


def test_a_damaged_entry_is_found_again(model: ImportedModel, folder: Path) -> None:
    first = _builder(model, folder).plan(REFINED)
    assert first is not None
    for path in (folder / "objects").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:-20])
    again = _builder(model, folder).plan(REFINED)
    assert again is not None
    assert again.digest() == first.digest()
