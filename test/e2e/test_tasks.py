"""Searches that are judged by something else than top-1: dense outputs, masks, no labels, a function of the user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import quantune
from quantune.cache import ArtifactCache
from quantune.cli.compile import main
from quantune.data.splits import Split
from quantune.errors import UsageError
from quantune.metrics import parse
from quantune.metrics.base import value_of
from quantune.tuning.request import ModelOptions

SHAPE = (1, 8, 12)
"""Grey, and not square."""


class Segmenter(nn.Module):
    """Three classes at each place: how bright it is."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.classes = nn.Conv2d(8, 3, 1)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(self.features(x))


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


NET = Segmenter().eval()
CALIB = pictures(40, 1)
IMAGES = pictures(24, 2)
with torch.no_grad():
    MASKS = NET(torch.from_numpy(IMAGES)).argmax(1).numpy().astype(np.uint8)
MASKS[:, :2] = (MASKS[:, :2] + 1) % 3  # where f32 is wrong
MASKS[:, 7] = 255


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("cache"))


def search(folder: Path, cache: ArtifactCache, **request: object) -> quantune.Result:
    given = {"calib": CALIB, "eval": (IMAGES, MASKS), "max_trials": 2, "options": ModelOptions(shape=SHAPE), **request}
    return quantune.compile(NET, out=folder, cache=cache, target="cpu", **given)  # type: ignore[arg-type]


def outputs(artifact: quantune.Artifact) -> np.ndarray:
    return np.concatenate([artifact(image[None]) for image in IMAGES])


@pytest.mark.parametrize("metric", ["mIoU", "kl", "sqnr"])
def test_the_accuracy_of_an_answer_is_its_metric(metric: str, tmp_path: Path, cache: ArtifactCache) -> None:
    result = search(tmp_path, cache, metric=metric, max_drop=0.5 if metric == "mIoU" else None)
    assert result.artifact is not None
    assert result.best is not None
    assert result.best.score is not None
    judged = parse(metric)
    with torch.no_grad():
        f32 = NET(torch.from_numpy(IMAGES)).numpy()
    expected = value_of(judged, judged.rows(outputs(result.artifact), MASKS, f32))
    assert result.best.score.accuracy == pytest.approx(expected, rel=1e-3)
    scores = [t.score for t in result.tuning.trials if t.score is not None]
    assert len(scores) == 2
    best = max if judged.higher else min
    assert result.best.score.accuracy == best(score.accuracy for score in scores)
    recipe = json.loads((tmp_path / "best.json").read_text())
    assert (recipe["metric"], recipe["accuracy"]) == (metric, recipe["accuracy_of_the_file"])
    page = (tmp_path / "report.html").read_text()
    assert f"{metric}, {'%' if judged.fraction else judged.unit}" in page
    assert "top-1" not in page


def test_images_need_no_labels_where_f32_is_the_measure(tmp_path: Path, cache: ArtifactCache) -> None:
    result = search(tmp_path, cache, metric="cosine", eval=IMAGES, max_drop=0.1)
    assert result.feasible
    assert result.best is not None
    assert result.best.score is not None
    assert 0.9 <= result.best.score.accuracy <= 1
    baseline = result.tuning.baseline
    assert baseline is not None
    assert baseline.score is not None
    assert baseline.score.accuracy == pytest.approx(1)


def test_a_bound_may_be_a_share_of_what_f32_has(tmp_path: Path, cache: ArtifactCache) -> None:
    result = search(tmp_path, cache, metric="mse", eval=(IMAGES, np.zeros((24, 3, 8, 12))), max_relative_drop=0.5)
    assert result.feasible
    assert result.tuning.objective.relative
    strict = search(tmp_path / "strict", cache, metric="kl", max_relative_drop=0.0)
    assert strict.tuning.best is not None
    assert strict.tuning.best.score is not None
    assert strict.tuning.best.score.accuracy == 0  # of both layers in f32


def test_what_does_not_fit_is_refused(tmp_path: Path, cache: ArtifactCache) -> None:
    for request, complaint in (
        ({}, "metric top-1: the outputs of an image have shape"),
        ({"metric": "mIoU", "eval": IMAGES}, "metric mIoU: the images have no labels"),
        ({"metric": "mAP"}, "metric 'mAP': expected top-1"),
        ({"metric": "mIoU", "max_drop": 0.1, "max_relative_drop": 0.1}, "give one of them"),
        ({"metric": "mIoU", "max_drop": 2.0}, "expected a fraction"),
        ({"metric": "kl", "max_drop": -1.0}, "largest loss -1.0 of kl"),
        ({"metric": "kl", "objective": "size"}, "needs a largest accuracy drop"),
        ({"metric": "mIoU", "eval": (IMAGES, MASKS[:5])}, "24 images and 5 labels"),
    ):
        with pytest.raises(UsageError, match=complaint):
            search(tmp_path, cache, **request)


def test_a_split_keeps_its_masks(tmp_path: Path) -> None:
    from quantune.data.items import Items
    from quantune.data.materialized import materialize

    made = materialize(Split(Items((IMAGES, MASKS), "items"), (3, 1)), tmp_path, "key", any_labels=True)
    assert made.labels.dtype == np.uint8
    np.testing.assert_array_equal(made.labels, MASKS[[3, 1]])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "segmenting.py").write_text(
        "from pathlib import Path\nimport torch\n"
        "def net():\n    return torch.export.load(Path(__file__).with_name('net.pt2')).module()\n"
        "def places_right(outputs, labels):\n"
        "    return ((outputs.argmax(1) == labels) & (labels != 255)).mean(axis=(1, 2))\n"
    )
    torch.export.save(torch.export.export(NET, (torch.zeros(1, *SHAPE),)), tmp_path / "net.pt2")
    np.savez(tmp_path / "calib.npz", images=CALIB)
    np.savez(tmp_path / "eval.npz", images=IMAGES, labels=MASKS)
    monkeypatch.chdir(tmp_path)
    arguments = ["net.pt2", "--calib", "npz:calib.npz", "--eval", "npz:eval.npz", "--max-trials", "1", "-o", "out"]
    assert main([*arguments, "--metric", "segmenting:places_right"]) == 0
    told = capsys.readouterr().out
    assert "segmenting:places_right" in told
    assert main([*arguments, "--metric", "segmenting:places_wrong"]) == 2
    assert "has no 'places_wrong' (did you mean places_right?)" in capsys.readouterr().err
    assert main([*arguments]) == 2
    assert "metric top-1: the outputs of an image have shape (3, 8, 12)" in capsys.readouterr().err
