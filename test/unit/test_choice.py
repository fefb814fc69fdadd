"""One way to choose images: a search, a single configuration, references and Python objects take the same."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from quantune.data.base import ImageSource
from quantune.data.choice import calibration_images, names_one_set, search_images
from quantune.data.sources import Items
from quantune.data.splits import MOST_CALIBRATION, Split, labels_of


class Sorted(ImageSource):
    """A set sorted by class, as sets on disk are: image i is i everywhere, and ten classes follow one another."""

    name, shape, classes = "sorted", (1, 1, 1), 10

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((1, 1, 1), index, np.float32), index * 10 // self._count


def archive(file: Path, count: int, first: int = 0) -> str:
    images = np.repeat(np.arange(first, first + count, dtype=np.float32), 4).reshape(-1, 1, 2, 2)
    np.savez(file, images=images, labels=np.arange(count) * 10 // count)
    return f"npz:{file}"


def pairs(reference: str) -> list[tuple[np.ndarray, int]]:
    with np.load(reference.removeprefix("npz:")) as arrays:
        return list(zip(arrays["images"], arrays["labels"], strict=True))


@pytest.mark.parametrize("options", ["", "?count=30"])
def test_a_search_and_a_single_configuration_calibrate_alike(tmp_path: Path, options: str) -> None:
    calib, evaluation = archive(tmp_path / "c.npz", 100), archive(tmp_path / "e.npz", 50, first=500)
    searched, _ = search_images(calib + options, evaluation)
    for alone in (calibration_images(calib + options), calibration_images(calib + options, evaluation)):
        assert alone.indices == searched.indices
        assert alone.fingerprint == searched.fingerprint


@pytest.mark.parametrize("options", [("", ""), ("?count=7", ""), ("?count=7", "?count=30")])
def test_one_set_for_both_is_divided_alike(tmp_path: Path, options: tuple[str, str]) -> None:
    reference = archive(tmp_path / "x.npz", 100)
    calib, evaluation = reference + options[0], reference + options[1]
    assert names_one_set(calib, evaluation)
    searched, held_out = search_images(calib, evaluation)
    alone = calibration_images(calib, evaluation)
    assert alone.fingerprint == searched.fingerprint
    assert not set(alone.indices) & set(held_out.indices)
    assert calibration_images(calib).fingerprint != searched.fingerprint  # the other set matters


def test_python_objects_are_drawn_as_references_are(tmp_path: Path) -> None:
    calib, evaluation = archive(tmp_path / "c.npz", 100), archive(tmp_path / "e.npz", 50, first=500)
    named, _ = search_images(calib, evaluation)
    given, held_out = search_images(pairs(calib), pairs(evaluation))
    assert given.indices == named.indices == calibration_images(pairs(calib)).indices
    assert held_out.indices == tuple(range(50))
    assert calibration_images(Items(pairs(calib), "items")).indices == named.indices
    mixed, _ = search_images(calib, pairs(evaluation))
    assert mixed.indices == named.indices


def test_sorted_sets_calibrate_with_every_class_and_from_everywhere() -> None:
    source = Sorted(3 * MOST_CALIBRATION)
    chosen = calibration_images(source)
    assert len(chosen) == MOST_CALIBRATION
    assert max(chosen.indices) > 2.9 * MOST_CALIBRATION
    counts = np.bincount(labels_of(chosen.first(1000)), minlength=10)
    assert counts.min() > 60  # 100 each on average, with a standard deviation of 9.5
    assert chosen.indices == search_images(source, [(np.full((1, 1, 1), -1.0), 0)])[0].indices


def test_chosen_images_stay_as_they_are() -> None:
    split = Split(Sorted(20), (7, 3, 5))
    assert calibration_images(split) is split
    assert search_images(split, Split(Sorted(20), (1, 2)))[0] is split


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([3], "there is only one calibration image"),
        ([4, 4, 4], "all 3 calibration images are equal"),
        ([4, 4, 5, 5, 6], "2 of 5 calibration images are copies of others"),
    ],
)
def test_odd_calibration_sets_are_told(values: list[int], line: str, caplog: pytest.LogCaptureFixture) -> None:
    images = [(np.full((1, 2, 2), value, np.float32), 0) for value in values]
    with caplog.at_level(logging.WARNING):
        calibration_images(images)
    assert line in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        search_images(images, [(np.zeros((1, 2, 2)), 0), (np.ones((1, 2, 2)), 1)])
    assert line in caplog.text
