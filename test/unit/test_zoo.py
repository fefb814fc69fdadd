"""Recipes, the trainings that they describe, and where the weights of built-in networks come from."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console as RichConsole
from rich.progress import Progress, TextColumn
from safetensors.torch import load_file

from quantune import api
from quantune.cache import ArtifactCache
from quantune.cli.console import SearchDisplay
from quantune.errors import EnvironmentFailure, UsageError
from quantune.metrics import DEFAULT, METRICS
from quantune.zoo import recipes, store, train
from quantune.zoo.pools import augmented, pool
from quantune.zoo.recipes import CLASSES, RECIPES, SIZES, Recipe

TINY = Recipe("shufflenet_v2_x1_0", "digits", 32, 2, 1, 1e-3, 0.01, 0.1, 1, batch=16)
SHIPPED = [recipe for recipe in RECIPES.values() if store.shipped(recipe)]


# Recipes


def test_the_six_networks_have_recipes_for_shapes() -> None:
    six = {"mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x1_0", "resnet18", "resnet50", "googlenet"}
    assert {recipe.architecture for recipe in RECIPES.values() if recipe.task == "shapes"} == six
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.top1 is None or 0.7 < recipe.top1 <= 1
        assert recipe.minutes > 0


def test_keys_tell_trainings_apart_and_nothing_else() -> None:
    keys = {recipe.key for recipe in RECIPES.values()}
    assert len(keys) == len(RECIPES)
    assert dataclasses.replace(TINY, octaves=1.0, top1=0.5, minutes=2).key == TINY.key
    assert dataclasses.replace(TINY, rate=2e-3).key != TINY.key


@pytest.mark.parametrize("change", [{"task": "letters"}, {"half_size": 2}, {"batch": 64}])
def test_wrong_recipes(change: dict) -> None:
    with pytest.raises(ValueError, match=r"task letters|shufflenet_v2_x1_0_digits"):
        dataclasses.replace(TINY, **change)


# Images


@pytest.mark.parametrize("task", ["shapes", "digits"])
def test_pools_have_the_images_of_the_task(task: str) -> None:
    from quantune.data.sources import open_source

    images, source = pool(task, "evaluation", 4), open_source(f"builtin:{task}", "evaluation")
    assert images.images(0, 4).shape == (4, 3, SIZES[task], SIZES[task])
    for i in range(4):
        image, label = source[i]
        assert float((images.images(i, i + 1)[0] - torch.from_numpy(image)).abs().max()) < 1 / 255
        assert int(images.labels[i]) == label


def test_augmented_images_stay_images_and_are_the_same_every_time() -> None:
    for task in CLASSES:
        pixels = pool(task, "train", 8).pixels
        first, again = (augmented(task, pixels, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, again)
        assert first.shape == pixels.shape
        assert 0 <= float(first.min()) < float(first.max()) <= 1
        assert not torch.allclose(first, pixels / 255)


def test_a_ramp_begins_with_bright_images() -> None:
    pixels = torch.full((500, 3, 2, 2), 255, dtype=torch.uint8)
    bright = augmented("shapes", pixels, torch.Generator().manual_seed(0), dark=0.2)
    assert bright.min() == pytest.approx(0.08**0.2, rel=0.05)
    assert augmented("shapes", pixels, torch.Generator().manual_seed(0)).min() == pytest.approx(0.08, rel=0.05)


# Training and the store


def test_a_network_is_trained_once_and_kept(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    path = store.weights(TINY, tmp_path, lambda done, text: heard.append((done, text)))
    assert path == store.trained(TINY, tmp_path)
    assert path.parent == tmp_path / "models"
    assert heard[0] == (0.0, "training builtin:shufflenet_v2_x1_0_digits, once (about 1 minutes on two CPU cores)")
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1][0] == 1.0
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".lock", ".safetensors", ".sha256"]
    written = path.stat().st_mtime_ns
    assert store.weights(TINY, tmp_path, lambda done, text: pytest.fail("trained again")) == path
    assert path.stat().st_mtime_ns == written
    assert not store.network(TINY, path).training


@pytest.mark.parametrize("epochs_before", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_training_that_was_stopped_goes_on(tmp_path: Path, epochs_before: int) -> None:
    class Stop(Exception):
        pass

    def stop(done: float, text: str) -> None:
        if text.startswith(f"epoch {epochs_before + 1}"):
            raise Stop

    with pytest.raises(Stop):
        store.weights(TINY, tmp_path, stop)
    path = store.trained(TINY, tmp_path)
    assert not path.exists()
    assert path.with_suffix(".training").exists() == bool(epochs_before)
    resumed: list[str] = []
    store.weights(TINY, tmp_path, lambda done, text: resumed.append(text))
    assert any(text.startswith("epoch 1") for text in resumed) == (not epochs_before)
    train.train(TINY, tmp_path / "at-once.safetensors")
    at_once, in_parts = load_file(tmp_path / "at-once.safetensors"), load_file(path)
    assert all(torch.allclose(at_once[name].float(), in_parts[name].float(), atol=1e-3) for name in at_once)


def test_the_state_of_another_recipe_is_not_taken_up(tmp_path: Path) -> None:
    run = train._Run(TINY, 2)
    run.save(tmp_path / "x.training", 1)
    assert run.restore(tmp_path / "x.training") == 1
    assert train._Run(dataclasses.replace(TINY, rate=1e-4), 2).restore(tmp_path / "x.training") == 0


def test_damaged_weights_are_set_aside_and_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = store.weights(TINY, tmp_path)
    good = path.read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 64]) + good[-8:]  # still a readable file
    path.write_bytes(flipped)
    assert store.weights(TINY, tmp_path) == path
    assert "is damaged (its sha256 is not the one beside it)" in caplog.text
    assert path.with_name(f"{path.name}.damaged").read_bytes() == flipped
    assert path.read_bytes() != flipped
    path.with_suffix(".sha256").unlink()  # as an earlier version left it
    assert store.weights(TINY, tmp_path, lambda done, text: pytest.fail("trained again")) == path
    assert path.with_suffix(".sha256").is_file()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:99] + b"?" + data[100:], lambda _: b""]
)
def test_a_damaged_checkpoint_begins_anew(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    run, path = train._Run(TINY, 2), tmp_path / "x.training"
    run.save(path, 1)
    path.write_bytes(damage(path.read_bytes()))
    assert run.restore(path) == 0
    assert "the training begins anew" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(EnvironmentFailure, match="set XDG_CACHE_HOME to a writable folder"):
        store.weights(TINY, tmp_path)


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"half")
    with pytest.raises(EnvironmentFailure, match=r"w\.safetensors: damaged .*; delete it"):
        store.network(TINY, tmp_path / "w.safetensors")


def test_the_imbalance_is_put_in_when_a_network_is_loaded(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, octaves=1.75)
    model = recipe.network()
    train.write_weights(model, recipe, 0.5, tmp_path / "w.safetensors")
    plain, scaled = (store.network(recipe, tmp_path / "w.safetensors", plain=plain) for plain in (True, False))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(plain(x), scaled(x), rtol=1e-5)
    assert not torch.equal(plain.conv1[1].weight, scaled.conv1[1].weight)  # type: ignore[index]


def test_a_reference_trains_its_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, TINY.name, TINY)
    cache, heard = ArtifactCache(tmp_path), list[float]()
    progress = api.Progress(on_training=lambda done, text: heard.append(done))
    model = api.import_any(f"builtin:{TINY.name}", api.ModelOptions(), cache, progress)
    assert model.input_shape == (1, 3, 32, 32)
    assert model.network.nodes[-1].shape == (1, 10)
    assert heard[-1] == 1.0
    heard.clear()
    assert api.import_any(f"builtin:{TINY.name}", api.ModelOptions(), cache, progress).fingerprint == model.fingerprint
    assert heard == []


def test_wrong_options_are_told_before_a_training_starts(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    with pytest.raises(UsageError, match="--classes does not apply"):
        api.import_any("builtin:resnet50_shapes", api.ModelOptions(classes=3), cache)
    assert not (tmp_path / "models").exists()


def test_the_bar_says_what_is_trained_and_how_long_it_takes() -> None:
    screen = io.StringIO()
    console = RichConsole(file=screen, force_terminal=True, width=140)
    with Progress(TextColumn("{task.description} {task.percentage:.0f}% {task.fields[note]}"), console=console) as bar:
        hear = SearchDisplay(bar, console, None, METRICS[DEFAULT]).progress.on_training
        for done, text in ((0.0, "training x, once"), (0.0, "drawing"), (0.5, "epoch 3"), (0.75, "epoch 4")):
            hear(done, text)
    assert re.search(r"training x, once 75% epoch 4  \d+ s left", screen.getvalue())


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda recipe: recipe.name)
def test_shipped_networks_reach_their_accuracy(recipe: Recipe) -> None:
    path = store.shipped(recipe)
    assert path is not None
    assert recipe.top1 is not None
    images = pool(recipe.task, "evaluation", 300)
    top1 = train.accuracy(store.network(recipe, path), images)
    spread = math.sqrt(recipe.top1 * (1 - recipe.top1) / len(images))
    assert top1 == pytest.approx(recipe.top1, abs=3 * spread + 0.01)


def test_the_script_says_which_networks_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["resnet81_shapes"])
    assert recipes.names()[0] in capsys.readouterr().err
