"""From a model and its images to programs, numbers and artifacts, with everything cached."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.data.base import ImageSource
from quantune.data.splits import Split
from quantune.errors import PassFailed, UsageError
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.simulate import simulate
from quantune.quantization import calibration
from quantune.quantization.config import QuantConfig
from quantune.runtime.program import Program
from quantune.tuning import builder as builder_module
from quantune.tuning import calibrating, compiling
from quantune.tuning.builder import Builder

HOST = Target("cpu")
SYMMETRIC, KL = QuantConfig(calib=5, scheme="symmetric"), QuantConfig(calib=2, clip="kl", granularity="tensor")


class Noise(ImageSource):
    """Random images; the label is the sign of their sum."""

    name, classes = "noise", 2

    def __init__(self, count: int, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> None:
        self.shape = shape
        self.images = np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        return self.images[index], int(self.images[index].sum() > 0)


def _split(count: int = 5, **options: object) -> Split:
    return Split(Noise(count, **options), tuple(range(count)))  # type: ignore[arg-type]


def _model(batch: int = 2) -> ImportedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2))
    return import_module(net, torch.zeros(batch, 3, 8, 8), "net")


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    return _model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def builder(model: ImportedModel, cache: ArtifactCache) -> Builder:
    return Builder(model, HOST, calib=_split(), cache=cache, sizes=(2, 5))


def test_statistics_are_those_of_the_f32_network_also_of_a_last_incomplete_batch(builder: Builder) -> None:
    heard: list[tuple[int, int]] = []
    builder.calibration._on_image = lambda done, total: heard.append((done, total))
    statistics = builder.calibration.statistics
    assert heard in ([(i, 5) for i in range(1, 6)], [])  # nothing when another test came first
    assert statistics.available == 5
    images = _split().source.images  # type: ignore[attr-defined]
    pairs = [simulate(builder.model.network, {}, {}, images[[i, (i + 1) % 5]]) for i in (0, 2, 4)]
    for size in (2, 5):
        for name, histogram in statistics.at(size).items():
            values = np.concatenate([pair[name] for pair in pairs])[:size]
            assert histogram.count == values.size
            assert histogram.minimum == pytest.approx(values.min(), abs=1e-6)
            assert histogram.maximum == pytest.approx(values.max(), abs=1e-6)


def test_tensors_sampled_by_the_program_give_the_same_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 1), nn.AvgPool2d(20), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    model = import_module(net, torch.zeros(2, 3, 40, 40), "sampled")
    split = _split(calibration.POWER_IMAGES + 5, shape=(3, 40, 40))
    sampling = Builder(model, HOST, calib=split, cache=ArtifactCache(tmp_path / "a"), sizes=(1, 67, 1000))
    strides = sampling.calibration._strides(calibrating.observed(model.network))
    assert {1, 3, 5} <= set(strides)
    whole = Builder(model, HOST, calib=split, cache=ArtifactCache(tmp_path / "b"), sizes=(1, 67, 1000))
    monkeypatch.setattr(whole.calibration, "_strides", lambda tensors: ())
    assert sampling.calibration.statistics.to_bytes() == whole.calibration.statistics.to_bytes()
    assert not sampling.calibration._strides(("input",))
    one = Builder(model, HOST, calib=split, cache=ArtifactCache(tmp_path / "a"), sizes=(1,))
    assert (
        one.calibration._strides(calibrating.observed(model.network)) == strides
    )  # the same program, whatever is asked for
    few = split.first(calibration.POWER_IMAGES)
    whole = Builder(model, HOST, calib=few, cache=ArtifactCache(tmp_path / "a"), sizes=(1, 67, 1000))
    assert not whole.calibration._strides(calibrating.observed(model.network))


def test_statistics_are_collected_once_per_model_and_images(
    builder: Builder, model: ImportedModel, cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = builder.calibration.statistics

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("collected again")

    monkeypatch.setattr(calibrating.calibration, "collect", never)
    again = Builder(model, HOST, calib=_split(), cache=cache, sizes=(5, 2)).calibration.statistics
    assert dict(again.at(5)) == dict(first.at(5))
    for other in ({"calib": _split(seed=1), "sizes": (2, 5)}, {"calib": _split(), "sizes": (2,)}):
        with pytest.raises(AssertionError, match="collected again"):
            _ = Builder(model, HOST, cache=cache, **other).calibration.statistics  # type: ignore[arg-type]


def test_configurations_share_a_program_and_differ_in_numbers(builder: Builder) -> None:
    first, second = builder.build(SYMMETRIC), builder.build(KL)
    assert first.program.path == second.program.path
    assert second.seconds["compile"] == 0
    assert first.key != second.key
    assert builder.build(SYMMETRIC) is first
    again = Builder(builder.model, HOST, calib=_split(), cache=builder.cache, sizes=(2, 5)).build(SYMMETRIC)
    assert again is not first
    assert again.key == first.key
    assert first.numbers is not None
    assert first.size_bytes == first.program.path.stat().st_size + sum(a.nbytes for a in first.numbers.values())


def test_program_artifact_and_simulation_agree(builder: Builder, tmp_path: Path) -> None:
    images = np.random.default_rng(5).normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    plan = builder.plan(SYMMETRIC)
    assert plan is not None
    network = builder.model.network
    expected = simulate(network, plan.activations, plan.weights, images, shifts=plan.shifts)[network.outputs[0]]
    built, artifact = builder.build(SYMMETRIC), builder.artifact(SYMMETRIC)
    np.testing.assert_array_equal(Program(built.program.path, parameters=built.numbers)(images), expected)
    np.testing.assert_array_equal(artifact(images), expected)
    provenance = artifact.provenance
    assert provenance is not None
    assert provenance.configuration == str(SYMMETRIC)
    assert provenance.model == "net"
    assert provenance.fingerprint == builder.model.fingerprint
    assert provenance.data == {"calibration": _split().fingerprint}
    assert "quantune-lower-qdq-to-integer" in provenance.pipeline
    assert [(layer.layer, layer.precision) for layer in provenance.layers] == [("0", "i8"), ("4", "i8")]
    assert artifact.config == SYMMETRIC


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-5), ("f16", 1e-2)])
def test_float_configurations_need_no_images(
    model: ImportedModel, cache: ArtifactCache, precision: str, tolerance: float
) -> None:
    builder = Builder(model, HOST, cache=cache)
    config = QuantConfig(precision=precision)
    assert builder.plan(config) is None
    images = np.random.default_rng(5).normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    expected = simulate(model.network, {}, {}, images)[model.network.outputs[0]]
    built = builder.build(config)
    assert built.numbers is None
    np.testing.assert_allclose(Program(built.program.path)(images), expected, atol=tolerance)
    provenance = builder.artifact(config).provenance
    assert provenance is not None
    assert provenance.data == {}
    assert {layer.precision for layer in provenance.layers} <= {"f32", precision}
    with pytest.raises(UsageError, match="quantization needs calibration images"):
        builder.build(QuantConfig())


def test_images_of_another_shape_are_refused(model: ImportedModel, cache: ArtifactCache) -> None:
    with pytest.raises(UsageError, match=r"noise has images of shape \(3, 4, 4\), model 'net' takes \(3, 8, 8\)"):
        Builder(model, HOST, calib=_split(shape=(3, 4, 4)), cache=cache)


def test_sizes_that_were_not_collected_are_refused(builder: Builder) -> None:
    with pytest.raises(UsageError, match="calib=1000: statistics were collected for 2, 5 images"):
        builder.build(QuantConfig(calib=1000))


class Norm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).mean((2, 3))


def test_a_model_without_layers_has_nothing_to_quantize(cache: ArtifactCache) -> None:
    model = import_module(Norm(), torch.zeros(1, 3, 8, 8), "plain")
    builder = Builder(model, HOST, calib=_split(), cache=cache, sizes=(2, 5))
    with pytest.raises(UsageError, match=r"model 'plain' has no convolution or matrix product.*precision=f32"):
        builder.build(SYMMETRIC)
    assert builder.build(QuantConfig(precision="f32")).numbers is None


def test_failures_leave_a_reproducer_where_asked(model: ImportedModel, cache: ArtifactCache, tmp_path: Path) -> None:
    from quantune.compiler.pipelines import Debugging

    builder = Builder(
        model, HOST, calib=_split(), cache=cache, sizes=(2, 5), debugging=Debugging(reproducer_dir=tmp_path)
    )
    plan = builder.plan(SYMMETRIC)
    assert plan is not None
    plan.weights["nobody"] = plan.weights["0"]  # type: ignore[index]
    with pytest.raises(PassFailed, match="reproducer"):
        builder.build(SYMMETRIC)
    assert list(tmp_path.glob("reproducer-*.mlir"))


def test_what_is_prepared_is_built_before_it_is_asked_for(
    model: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(model, HOST, calib=_split(), cache=ArtifactCache(tmp_path), sizes=(5,))
    f32 = QuantConfig(precision="f32")
    builder.prepare([f32], calibration=True)
    builder._ahead.shutdown()  # waits for them
    monkeypatch.setattr(compiling, "compile_module", None)
    built = builder.build(f32)
    assert not built.program.cached
    monkeypatch.undo()
    assert builder.calibration.compile().cached
    builder.close()
    builder.prepare([QuantConfig(calib=3)])  # there are no such statistics: told by whoever builds it
    builder.close()
    with pytest.raises(UsageError, match="calib=3"):
        builder.build(QuantConfig(calib=3))


def test_a_program_is_not_compiled_twice_at_once(
    model: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(model, HOST, cache=ArtifactCache(tmp_path))
    f32 = QuantConfig(precision="f32")
    builder.prepare([f32, f32])
    assert builder.build(f32).program.sha256
    builder.close()
    assert len(list((tmp_path / "objects").rglob("*.vmfb"))) == 1
    monkeypatch.setattr(compiling, "compile_module", None)
    builder.prepare([f32])
    builder.close()


def test_stopping_waits_for_nothing_that_was_not_begun(
    model: ImportedModel, cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are at work and end when they are told to, the others wait for their turn: an error ended in a hang here."""
    builder = Builder(model, HOST, cache=cache)
    begun, told = threading.Semaphore(0), threading.Event()

    def build(config: QuantConfig) -> None:
        begun.release()
        assert told.wait(60)

    monkeypatch.setattr(builder, "build", build)
    monkeypatch.setattr(builder_module, "stop_all", told.set)
    builder.prepare([QuantConfig(precision="f32")] * 5)
    for _ in range(2):
        assert begun.acquire(timeout=60)
    closing = threading.Thread(target=lambda: builder.close(stop=True), daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert not begun.acquire(blocking=False)


def test_many_images_more_than_there_are_give_one_plan(model: ImportedModel, cache: ArtifactCache) -> None:
    builder = Builder(model, HOST, calib=_split(), cache=cache, sizes=(2, 5, 1000))
    plans = [builder.plan(QuantConfig(calib=calib, clip="kl")) for calib in (5, 1000)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0].to_json() == plans[1].to_json()
    assert set(builder.plans._ranges) == {5}


def test_bias_correction_shares_the_scales_and_is_another_configuration(builder: Builder) -> None:
    corrected = replace(KL, bias="fast")
    assert builder.plans.scales(corrected) is builder.plans.scales(KL)
    assert builder.identity(corrected) != builder.identity(KL)


@pytest.mark.parametrize("error", [None, ValueError()])
def test_what_is_prepared_ends_with_the_builder(
    model: ImportedModel, cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    builder, closed = Builder(model, HOST, cache=cache), []
    monkeypatch.setattr(builder, "close", lambda *, stop: closed.append(stop))
    with contextlib.suppress(ValueError), builder:
        if error is not None:
            raise error
    assert closed == [error is not None]
