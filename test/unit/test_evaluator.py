"""Scores of configurations: accuracy, latency and size of what was compiled, measured once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from quantune.artifact.provenance import Measured, split
from quantune.cache import ArtifactCache
from quantune.compiler.targets import Target
from quantune.data.base import ImageSource, hashed_order
from quantune.data.splits import Split
from quantune.errors import RunFailed, UsageError
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.simulate import simulate
from quantune.quantization.config import QuantConfig
from quantune.runtime.artifact import load
from quantune.search.result import TuningTrial
from quantune.search.scores import Score, unpack_correct
from quantune.search.stopping import FEWEST, Floor
from quantune.tuning import evaluator as evaluator_module
from quantune.tuning.builder import Builder
from quantune.tuning.describe import describe, measured
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.judging import Run
from quantune.tuning.measuring import Measuring

HOST = Target("cpu")
F32, INT8 = QuantConfig(precision="f32"), QuantConfig(calib=3)


class Noise(ImageSource):
    """Random images; the label is whether their sum is positive, counted from ``first``."""

    name = "noise"

    def __init__(self, count: int, seed: int, shape: tuple[int, int, int] = (3, 4, 4), first: int = 0) -> None:
        self.shape, self.first, self.classes = shape, first, first + 2
        self.images = np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        return self.images[index], self.first + int(self.images[index].sum() > 0)


def _split(count: int, seed: int, **options: object) -> Split:
    return Split(Noise(count, seed, **options), tuple(range(count)))  # type: ignore[arg-type]


def _model(*tail: nn.Module, name: str = "net") -> ImportedModel:
    """Sums each image; the second output is the sum."""
    conv = nn.Conv2d(3, 2, 4)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1)
        conv.bias[:] = 0.1
    return import_module(nn.Sequential(conv, *tail), torch.zeros(1, 3, 4, 4), name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def evaluator(cache: ArtifactCache) -> Iterator[Evaluator]:
    builder = Builder(_model(nn.Flatten()), HOST, calib=_split(3, 1), cache=cache, sizes=(3, 1000))
    with Evaluator(builder, _split(20, 2)) as made:
        yield made


def _answers(score: Score) -> NDArray[np.bool_]:
    assert score.correct is not None
    return unpack_correct(score.correct, score.images)


def _expected(evaluator: Evaluator, config: QuantConfig) -> NDArray[np.bool_]:
    plan, network = evaluator.builder.plan(config), evaluator.builder.model.network
    activations, weights = ({}, {}) if plan is None else (plan.activations, plan.weights)
    images, labels = zip(*map(evaluator.split.source.__getitem__, hashed_order(len(evaluator.split))), strict=True)
    logits = [simulate(network, activations, weights, image[None])[network.outputs[0]] for image in images]
    return np.concatenate(logits).argmax(axis=1) == np.array(labels)


@pytest.mark.parametrize("config", [F32, INT8], ids=["f32", "int8"])
def test_scores(evaluator: Evaluator, config: QuantConfig) -> None:
    score = evaluator(config)
    expected = _expected(evaluator, config)
    assert score.accuracy == expected.mean()
    assert score.images == 20
    assert score.latency_ms > 0
    assert score.size_bytes == evaluator.builder.build(config).size_bytes
    np.testing.assert_array_equal(_answers(score), expected)


def test_configurations_that_compute_the_same_are_measured_once(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluator(INT8)
    monkeypatch.setattr(evaluator._runner, "run", None)
    assert evaluator(INT8) is first
    monkeypatch.setattr(evaluator.builder, "build", None)
    # More images than there are: the same plan, and so the same score without building.
    same = QuantConfig(calib=1000)
    assert evaluator.builder.identity(same) == evaluator.builder.identity(INT8)
    assert evaluator(same) is first
    assert evaluator.builder.identity(QuantConfig(calib=3, precision="mixed")) != evaluator.builder.identity(INT8)


def test_answers_are_the_outputs_on_other_images(evaluator: Evaluator) -> None:
    images, builder = _split(7, 5), evaluator.builder
    plan, network = builder.plan(INT8), builder.model.network
    assert plan is not None
    given = images.source.images  # type: ignore[attr-defined]
    activations, weights, output = plan.activations, plan.weights, network.outputs[0]
    expected = [simulate(network, activations, weights, x[None], shifts=plan.shifts)[output] for x in given]
    np.testing.assert_array_equal(evaluator.answers(INT8, images), np.concatenate(expected))
    assert evaluator.answers(F32, images).shape == (7, 2)


def test_one_latency_serves_a_program(evaluator: Evaluator) -> None:
    other = QuantConfig(calib=3, scheme="symmetric")
    assert evaluator(other).latency_ms == evaluator(INT8).latency_ms
    assert evaluator(other).program == evaluator(INT8).program


def test_artifacts_are_verified_by_another_process(evaluator: Evaluator, tmp_path: Path) -> None:
    path = evaluator.builder.artifact(INT8).save(tmp_path / "a.vmfb")
    assert evaluator.verify(path) == evaluator(INT8).accuracy


def test_an_artifact_is_verified_though_nothing_was_measured_before(evaluator: Evaluator, tmp_path: Path) -> None:
    path = evaluator.builder.artifact(INT8).save(tmp_path / "a.vmfb")
    with Evaluator(evaluator.builder, _split(20, 2)) as fresh:
        assert fresh.verify(path) == evaluator(INT8).accuracy


def test_an_artifact_and_its_recipe_say_what_was_measured(evaluator: Evaluator, tmp_path: Path) -> None:
    trial = TuningTrial(0, INT8, "complete", evaluator(INT8))
    assert trial.score is not None
    path = evaluator.builder.artifact(INT8, measured(evaluator, trial)).save(tmp_path / "a.vmfb")
    record = load(path).provenance
    assert record is not None
    fingerprint = evaluator.split.fingerprint
    assert record.measured == Measured(trial.score.accuracy, 20, fingerprint, trial.score.latency_ms, 1)
    recipe = describe(evaluator.builder, evaluator, trial, load(path), evaluator.verify(path))
    assert recipe["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert recipe["program_sha256"] == hashlib.sha256(split(path.read_bytes()).program).hexdigest() == record.sha256
    half = TuningTrial(1, INT8, "complete", replace(trial.score, images=10))
    assert measured(evaluator, half) is None  # an estimate is no measurement


def test_wrong_images_and_labels(cache: ArtifactCache) -> None:
    builder = Builder(_model(nn.Flatten()), HOST, cache=cache)
    with pytest.raises(UsageError, match=r"noise has images of shape \(3, 5, 5\), model 'net' takes \(3, 4, 4\)"):
        Evaluator(builder, _split(3, 2, shape=(3, 5, 5)))
    with (
        Evaluator(builder, _split(3, 2, first=7)) as evaluator,
        pytest.raises(UsageError, match=r"image \d: label [78], expected 0 to 1"),
    ):
        evaluator(F32)


def test_a_regression_has_no_top1(cache: ArtifactCache) -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 4), nn.Flatten())
    builder = Builder(import_module(net, torch.zeros(1, 3, 4, 4), "net"), HOST, cache=cache)
    with pytest.raises(UsageError, match="metric top-1: the model gives one number an image, expected 2"):
        Evaluator(builder, _split(3, 2))


class Reciprocal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / (x.flatten(1) * 0)


def test_results_that_are_no_logits(cache: ArtifactCache) -> None:
    builder = Builder(_model(nn.Identity()), HOST, cache=cache)
    with pytest.raises(UsageError, match=r"metric top-1: the outputs of an image have shape \(2, 1, 1\)"):
        Evaluator(builder, _split(3, 2))


def test_results_that_are_not_finite(cache: ArtifactCache) -> None:
    builder = Builder(_model(Reciprocal()), HOST, cache=cache)
    with (
        Evaluator(builder, _split(3, 2)) as evaluator,
        pytest.raises(UsageError, match=r"^evaluation image \d of noise: tensor '\S+' of the f32 model is not finite"),
    ):
        evaluator(F32)


@pytest.mark.parametrize(("config", "end"), [(F32, "not finite, and the network's is"), (INT8, "is not finite")])
def test_a_program_whose_results_alone_are_not_finite(
    config: QuantConfig, end: str, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is named by its number in the set, not by its place among those shown."""
    evaluator.builder.build(config)
    other = Split(evaluator.split.source, evaluator.split.indices[1:])  # its answers are in no cache
    with Evaluator(evaluator.builder, other) as wrong:
        answers = np.zeros((len(other), 4), np.float32)
        answers[3, 1] = np.nan
        monkeypatch.setattr(wrong._runner, "run", lambda *arguments: answers)
        image = other.indices[hashed_order(len(other))[3]]
        with pytest.raises(RunFailed, match=rf"^evaluation image {image} of noise: the artifact's output .*{end}$"):
            wrong(config)


def test_answers_are_found_again_by_another_session(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    score = evaluator(INT8)
    with Evaluator(evaluator.builder, _split(20, 2)) as later:
        monkeypatch.setattr(later._runner, "run", None)
        again = later(INT8)
    assert (again.accuracy, again.images, again.size_bytes) == (score.accuracy, score.images, score.size_bytes)
    assert again.correct == score.correct


def _reversed(path: Path) -> bytes:
    """The file with its images (or labels) in the opposite order: no reader can tell but by a digest."""
    values = np.load(path)[::-1].copy()
    np.save(path, values)
    return path.read_bytes()


@pytest.mark.parametrize("part", ["*.npy", "*.labels.npy"])
def test_reversed_images_in_the_cache_change_no_accuracy(
    evaluator: Evaluator, tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither are they used, nor is what was counted on others taken for an answer on these."""
    cache = ArtifactCache(tmp_path)
    builder = Builder(_model(nn.Flatten()), HOST, calib=_split(3, 1), cache=cache, sizes=(3, 1000))
    with Evaluator(builder, _split(20, 2)) as first:
        first.take_up()  # written, and nothing was measured on them
    damaged = _reversed(sorted((tmp_path / "images").glob(part))[-1])
    with Evaluator(builder, _split(20, 2)) as second:
        score = second(INT8)
        assert second.take_up().images.read_bytes() != damaged
    assert "is damaged (its content does not fit its digest)" in caplog.text
    assert score.correct == evaluator(INT8).correct
    with Evaluator(builder, _split(20, 2)) as third:
        assert third(INT8).correct == score.correct


@pytest.mark.parametrize("entry", [b"", b"AAAAAA==", b"not base64", b"\xff", b"AAD/"])
def test_answers_that_cannot_be_of_these_images_are_counted_again(
    evaluator: Evaluator, tmp_path: Path, entry: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluator(INT8).correct
    cache = evaluator.builder.cache
    key = evaluator_module.content_key("answers", evaluator.builder.build(INT8).key, evaluator._taken_up.digest)
    assert cache.get_bytes(key, ".correct") == expected.encode()
    for path in cache._candidates(key, ".correct"):
        path.unlink()
    cache.put(key, entry, ".correct")
    with Evaluator(evaluator.builder, _split(20, 2)) as later:
        assert later(INT8).correct == expected
    assert cache.get_bytes(key, ".correct") == expected.encode()


def test_labels_of_one_class_are_told(cache: ArtifactCache, caplog: pytest.LogCaptureFixture) -> None:
    class Same(Noise):
        def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
            return super().__getitem__(index)[0], 1

    builder = Builder(_model(nn.Flatten()), HOST, cache=cache)
    with Evaluator(builder, Split(Same(4, 2), (0, 1, 2, 3))) as made, caplog.at_level("WARNING"):
        made.take_up()
    assert "noise: all 4 evaluation images have the label 1" in caplog.text


def test_a_hopeless_trial_stops_early_and_is_measured_in_full_when_asked(cache: ArtifactCache) -> None:
    images = 16 * FEWEST
    builder = Builder(_model(nn.Flatten()), HOST, calib=_split(3, 1), cache=cache, sizes=(3,))
    with Evaluator(builder, _split(images, 5)) as evaluator:
        full = evaluator(INT8)
        assert full.images == images
        assert full.stopped_of is None
        right = _answers(full)
        other = QuantConfig(calib=3, scheme="symmetric")
        evaluator.set_floor(Floor(np.ones(images, bool)))
        counted = evaluator._judge.rows

        def halved(labels: np.ndarray, first: int, end: int, run: Run) -> np.ndarray:
            return counted(labels, first, end, run) * (np.arange(first, end) % 2 == 0)[:, None]

        evaluator._judge.rows = halved
        stopped = evaluator(other)
        assert stopped.images == images // 8
        assert stopped.stopped_of == images
        assert len(_answers(stopped)) == stopped.images
        evaluator._judge.rows = counted
        assert evaluator(other) is stopped  # the floor only rises
        evaluator.set_floor(Floor(right, allowed=images))
        evaluator._by_content.clear()
        evaluator._by_identity.clear()
        assert evaluator(other).images == images
        evaluator.set_floor(None)
        assert evaluator(other).images == images


@pytest.mark.parametrize("workers", [1, 3])
def test_an_accuracy_in_parts_is_that_of_each_image_with_its_own_label(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("quantune.runtime.engines.processors", lambda: workers)
    images = 8 * FEWEST
    builder = Builder(_model(nn.Flatten()), HOST, calib=_split(3, 1), cache=cache, sizes=(3,))
    with Evaluator(builder, _split(images, 20 + workers)) as evaluator:
        parts, run = [], evaluator._runner.run
        monkeypatch.setattr(evaluator._runner, "run", lambda *job: parts.append(job[-2:]) or run(*job))
        evaluator.set_floor(Floor(np.ones(images, bool), allowed=images))  # looks, and never stops
        score, expected = evaluator(INT8), _expected(evaluator, INT8)
    assert parts == [(0, images // 8), (images // 8, images // 4), (images // 4, images // 2), (images // 2, images)]
    assert 0 < expected.sum() < images
    assert (score.accuracy, score.images) == (expected.mean(), images)
    np.testing.assert_array_equal(_answers(score), expected)


def test_a_stopped_trial_has_the_accuracy_that_the_floor_estimates(cache: ArtifactCache) -> None:
    images, first = 8 * FEWEST, FEWEST
    wrong = (np.arange(first) >= 10) & (np.arange(first) % 3 != 0)
    floor = Floor(np.arange(images) >= 10)  # its own wrong answers are all among the first images
    builder = Builder(_model(nn.Flatten()), HOST, calib=_split(3, 1), cache=cache, sizes=(3,))
    with Evaluator(builder, _split(images, 25)) as evaluator:
        counted = evaluator._judge.rows
        evaluator._judge.rows = lambda labels, begin, end, run: counted(labels, begin, end, run) * ~wrong[:, None]
        answers = _expected(evaluator, INT8)[:first] & ~wrong
        evaluator.set_floor(floor)
        score = evaluator(INT8)
    assert score.images == first
    assert score.stopped_of == images
    assert score.accuracy == floor.estimate(answers)
    assert abs(score.accuracy - answers.mean()) > 0.05


def test_side_by_side(evaluator: Evaluator) -> None:
    other = QuantConfig(calib=3, scheme="symmetric")
    latencies = evaluator.retime([F32, INT8, other])
    assert latencies[INT8] == latencies[other]
    assert all(latency > 0 for latency in latencies.values())


def test_old_images_are_deleted_when_there_are_too_many(cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantune.tuning.evaluator.IMAGES_LIMIT_BYTES", 30_000)
    builder = Builder(_model(nn.Flatten()), HOST, cache=cache)
    paths = []
    for seed in (11, 12):
        with Evaluator(builder, _split(100, seed)) as made:
            paths.append(made.take_up().images)
    assert not paths[0].exists()
    assert paths[1].is_file()


class _Given:
    """Somebody else's place to measure."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_nothing_is_closed_that_somebody_else_made(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, given = evaluator.builder, _Given()
    monkeypatch.setattr(builder, "close", None)
    with Evaluator(builder, _split(20, 2), place=Measuring(HOST, timer=given)) as own:  # type: ignore[arg-type]
        ended: list[object] = []
        monkeypatch.setattr(own._runner, "close", lambda: ended.append(own._runner))
    assert ended == [own._runner]
    assert not given.closed
