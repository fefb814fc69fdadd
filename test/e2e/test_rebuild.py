"""An artifact can be made again, byte for byte: by the command in best.json, and from the record in its own file."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import quantune
from quantune import api
from quantune.artifact.provenance import split
from quantune.cache import ArtifactCache
from quantune.cli import compile as driver
from quantune.errors import UsageError
from quantune.runtime.artifact import load

TINY = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4))
"""
CONFIG = "calib=20,scheme=asymmetric,clip=max,granularity=channel"


def _network() -> nn.Module:
    scope: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(TINY, scope)
        return scope["network"]()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and two sets of images sorted by class, whose classes have ranges of their own."""
    folder = tmp_path_factory.mktemp("rebuild")
    (folder / "rebuild_tiny.py").write_text(TINY)
    program = torch.export.export(_network(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, folder / "tiny.pt2")
    random = np.random.default_rng(0)
    for name in ("one", "other"):
        labels = np.sort(random.integers(0, 4, 120))
        scales = np.array([0.2, 1.0, 3.0, 0.5], np.float32)[labels, None, None, None]
        images = random.normal(0, 1, (120, 3, 8, 8)).astype(np.float32) * scales
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    return folder


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place


def search(calib: str, evaluation: str, out: str) -> dict:
    command = ["tiny.pt2", "--calib", calib, "--eval", evaluation, "--sampler", "random", "--max-trials", "1"]
    assert driver.main([*command, "--max-drop", "1", "-q", "-o", out]) == driver.OK
    return json.loads((Path(out) / "best.json").read_text())


@pytest.mark.parametrize(
    "evaluation",
    ["npz:one.npz", pytest.param("npz:other.npz", marks=pytest.mark.slow)],
    ids=["one-set", "two-sets"],
)
def test_the_command_in_best_json_makes_the_same_artifact(
    home: Path, evaluation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out-{evaluation[4:7]}"
    recipe = search("npz:one.npz?count=60", evaluation, out)
    assert recipe["calibration_images"]["count"] == 60
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "other-cache"))  # nothing is known from the search
    words = shlex.split(recipe["rebuild"])
    assert words[0] == "quantune-compile"
    assert driver.main([*words[1:-1], f"{out}-again.vmfb", "-q"]) == driver.OK
    first, again = (split(Path(name).read_bytes()) for name in (f"{out}/best.vmfb", f"{out}-again.vmfb"))
    assert again.program == first.program
    assert first.provenance is not None
    assert again.provenance == replace(first.provenance, measured=None)  # only a search measures
    capsys.readouterr()
    assert driver.main(["--like", f"{out}/best.vmfb", "-o", f"{out}-like.vmfb", "-q"]) == driver.OK
    assert "made again, the same byte for byte" in capsys.readouterr().out
    assert Path(f"{out}-like.vmfb").read_bytes() == Path(f"{out}/best.vmfb").read_bytes()


@pytest.mark.parametrize("how", [pytest.param("fast", marks=pytest.mark.slow), "sequential"])
def test_refined_numbers_are_found_again(
    home: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = f"{CONFIG},weight_clip=power,bias={how}", tmp_path / "a.vmfb"
    command = ["tiny.pt2", "--calib", "npz:one.npz", "-q", "--config"]
    assert driver.main([*command, config, "-o", str(path)]) == driver.OK
    assert driver.main([*command, CONFIG, "-o", str(tmp_path / "plain.vmfb")]) == driver.OK
    first, plain = (split(name.read_bytes()).provenance for name in (path, tmp_path / "plain.vmfb"))
    assert first is not None
    assert plain is not None
    assert set(first.data) == {"calibration", "constants"}
    assert set(plain.data) == {"calibration"}
    assert first.sha256 != plain.sha256
    assert first.configuration.endswith(f",weight_clip=power,bias={how}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other-cache"))  # nothing is known any more
    capsys.readouterr()
    assert driver.main(["--like", str(path), "-o", str(tmp_path / "b.vmfb"), "-q"]) == driver.OK
    assert "made again, the same byte for byte" in capsys.readouterr().out
    assert (tmp_path / "b.vmfb").read_bytes() == path.read_bytes()


def test_statistics_do_not_depend_on_which_sizes_are_wanted(home: Path) -> None:
    calib = "npz:one.npz?count=100"
    cache, model, options = ArtifactCache(home / "cache"), _network(), api.ModelOptions(shape=(3, 8, 8))

    def builder(*sizes: int) -> api.Builder:
        return api.make_builder(model, calib=calib, target="cpu", sizes=sizes, options=options, cache=cache)

    searched = builder(1, 80, 1000)
    for size in (1, 80, 1000):
        alone = builder(size)
        assert alone.calibration.statistics.at(size) == searched.calibration.statistics.at(size)
        assert alone.calibration._strides(()) == searched.calibration._strides(())


def test_python_objects_are_checked_by_their_fingerprints(home: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    with np.load("one.npz") as arrays:
        images = list(zip(arrays["images"], arrays["labels"], strict=True))
    shape = api.ModelOptions(shape=(3, 8, 8))
    cache = ArtifactCache(home / "cache")
    path = quantune.quantize(model, CONFIG, calib=images, options=shape, cache=cache).save(tmp_path / "a.vmfb")
    record = load(path).provenance
    assert record is not None
    assert dict(record.sources) == {"image-shape": "3,8,8"}
    with pytest.raises(UsageError, match=r"a\.vmfb: its model was a Python object: give it too"):
        quantune.rebuild(path, cache=cache)
    with pytest.raises(UsageError, match=r"a\.vmfb: its images were Python objects: give them too"):
        quantune.rebuild(path, model=model, cache=cache)
    with pytest.raises(UsageError, match=r"made from other calibration images: fingerprint [0-9a-f]{16}, given is"):
        quantune.rebuild(path, model=model, calib=images[1:], cache=cache)
    made = quantune.rebuild(path, model=model, calib=images, cache=cache)
    assert made.differences == ()
    assert made.artifact.save(tmp_path / "b.vmfb").read_bytes() == path.read_bytes()
    with torch.no_grad():
        model[0].bias += 1  # type: ignore[operator, union-attr]
    with pytest.raises(UsageError, match="it was made from another model"):
        quantune.rebuild(path, model=model, calib=images, cache=cache)


def test_a_record_calls_no_function(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.vmfb"
    command = ["rebuild_tiny:network", "--image-shape", "3,8,8", "--config", "precision=f32"]
    assert driver.main([*command, "-q", "-o", str(path)]) == driver.OK
    capsys.readouterr()
    assert driver.main(["--like", str(path), "-q"]) == UsageError.exit_code
    assert "its model is made by a function, 'rebuild_tiny:network': name it if" in capsys.readouterr().err
    assert driver.main(["rebuild_tiny:network", "--like", str(path), "-q"]) == driver.OK


def test_differences_are_named_and_fail(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = api.quantize("tiny.pt2", "precision=f32", calib="npz:other.npz", cache=ArtifactCache(home / "cache"))
    path = other.save(tmp_path / "a.vmfb")
    assert driver.main(["--like", str(path), "--calib", "npz:one.npz", "-q"]) == driver.FAILED
    assert "differs in sources (calib npz:other.npz -> npz:one.npz)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--like", "none.vmfb"], "none.vmfb: cannot be read"),
        (["--like", "tiny.pt2"], "tiny.pt2: "),
        (["--like", "x.vmfb", "--config", "clip=kl"], "--like takes the configuration from the file's record"),
        ([], "MODEL is missing"),
    ],
)
def test_wrong_requests_are_one_line(
    home: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert driver.main(words) != driver.OK
    said = capsys.readouterr().err
    assert line in said
    assert "\n" not in said.strip()
