from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quantune.data import splits
from quantune.data.base import ImageSource, hashed_order
from quantune.data.materialized import materialize
from quantune.data.sources import Items
from quantune.data.splits import Split, batches, check_disjoint, labels_of, open_splits
from quantune.errors import UsageError


class Numbers(ImageSource):
    """One-pixel images of the given values; the label is the value too."""

    shape = (1, 1, 1)

    def __init__(self, values: list[int], classes: int | None = None, name: str = "numbers") -> None:
        self.name, self.classes, self._values = name, classes, values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((1, 1, 1), self._values[index], np.float32), self._values[index]


def whole(source: ImageSource) -> Split:
    return Split(source, tuple(range(len(source))))


def archive(file: Path, values: list[int]) -> str:
    images = np.repeat(np.array(values, np.float32), 4).reshape(-1, 1, 2, 2)
    np.savez(file, images=images, labels=np.array(values))
    return f"npz:{file}"


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 9))
def test_hashed_order_is_a_stable_permutation(count: int, more: int, seed: int) -> None:
    order = hashed_order(count, seed)
    assert sorted(order) == list(range(count))
    assert [i for i in hashed_order(count + more, seed) if i < count] == order
    assert count < 20 or order != hashed_order(count, seed + 1)


def test_split_refuses_nothing_and_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="numbers: no images"):
        Split(Numbers([1, 2]), ())
    for index in (-1, 2):
        with pytest.raises(ValueError, match="has 2 images"):
            Split(Numbers([1, 2]), (0, index))


def test_first_keeps_the_order_and_the_fingerprint_follows_it() -> None:
    split = Split(Numbers([5, 6, 7]), (2, 0, 1))
    assert split.first(2).indices == (2, 0)
    assert split.first(9) is split
    assert split.fingerprint == Split(Numbers([7, 5, 6]), (0, 1, 2)).fingerprint
    assert split.fingerprint != split.first(2).fingerprint
    assert split.fingerprint != Split(Numbers([5, 6, 7]), (0, 1, 2)).fingerprint


def test_builtin_sets_have_their_own_splits() -> None:
    calibration, evaluation = open_splits("builtin:shapes", "builtin:shapes", calibration_count=30, evaluation_count=20)
    assert (len(calibration), len(evaluation)) == (30, 20)
    assert "calibration" in calibration.source.name
    assert "evaluation" in evaluation.source.name
    again = open_splits("builtin:shapes", "builtin:shapes", calibration_count=30, evaluation_count=20)
    assert [part.fingerprint for part in again] == [calibration.fingerprint, evaluation.fingerprint]
    assert open_splits("builtin:shapes?count=7", "builtin:shapes?count=9")[0].indices[:3] != (0, 1, 2)


@pytest.mark.parametrize(
    ("options", "arguments", "expected"),
    [
        (("", ""), {}, (20, 80)),
        (("", ""), {"calibration_count": 5}, (5, 95)),
        (("", ""), {"evaluation_count": 10}, (90, 10)),
        (("", ""), {"evaluation_count": 500}, (20, 80)),
        (("?count=50", ""), {}, (50, 50)),
        (("", "?count=90"), {}, (10, 90)),
        (("?count=3", "?count=4"), {"calibration_count": 1}, (3, 4)),
    ],
)
def test_one_set_is_divided(tmp_path: Path, options: tuple, arguments: dict, expected: tuple) -> None:
    reference = archive(tmp_path / "x.npz", list(range(100)))
    calibration, evaluation = open_splits(reference + options[0], reference + options[1], **arguments)
    assert (len(calibration), len(evaluation)) == expected
    assert not set(calibration.indices) & set(evaluation.indices)
    again = open_splits(reference + options[0], reference + options[1], **arguments)
    assert (again[0].indices, again[1].indices) == (calibration.indices, evaluation.indices)
    other = open_splits(reference + options[0], reference + options[1], seed=1, **arguments)
    assert other[1].indices != evaluation.indices


def test_the_same_set_is_recognized_under_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "x.npz", list(range(10)))
    monkeypatch.chdir(tmp_path)
    calibration, evaluation = open_splits("npz:x.npz", f"npz:{tmp_path}/./x.npz")
    assert not set(calibration.indices) & set(evaluation.indices)
    assert (len(calibration), len(evaluation)) == (2, 8)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1], ("", ""), "1 image cannot both"),
        ([1, 2, 3], ("?count=2", "?count=2"), "3 images are too few to calibrate with 2 and evaluate with 2"),
        ([1, 2, 3], ("?count=3", ""), "too few to calibrate with 3"),
        ([1, 2, 3], ("", "?count=3"), "too few to calibrate with 1 and evaluate with 3"),
        ([4, 4, 4, 4], ("", ""), "every image that could calibrate is a copy"),
    ],
)
def test_sets_too_small_to_divide_are_refused(tmp_path: Path, values: list, options: tuple, message: str) -> None:
    reference = archive(tmp_path / "x.npz", values)
    with pytest.raises(UsageError, match=message):
        open_splits(reference + options[0], reference + options[1])


def test_copies_in_one_set_do_not_leak_into_calibration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = archive(tmp_path / "x.npz", [i // 2 for i in range(100)])
    with caplog.at_level(logging.WARNING):
        calibration, evaluation = open_splits(reference, reference)
    mine, theirs = (set(labels_of(part).tolist()) for part in (calibration, evaluation))
    assert mine
    assert not mine & theirs
    assert "calibration images are copies of evaluation images; left out" in caplog.text


def test_two_sets_that_share_an_image_are_refused(tmp_path: Path) -> None:
    first = archive(tmp_path / "a.npz", [1, 2, 3])
    second = archive(tmp_path / "b.npz", [7, 8, 3, 9])
    with pytest.raises(
        UsageError, match=r"share 1 images, for example npz:.*a\.npz, image 2 and npz:.*b\.npz, image 2;"
    ):
        open_splits(first, second)
    assert [len(part) for part in open_splits(first, archive(tmp_path / "c.npz", [7, 8, 9]))] == [3, 3]


def test_copied_files_are_found_without_decoding(tmp_path: Path) -> None:
    for folder, seeds in (("one", (1, 2)), ("two", (3, 2))):
        (tmp_path / folder / "class").mkdir(parents=True)
        for i, seed in enumerate(seeds):
            pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / "class" / f"{i}.png")
    references = (f"imagefolder:{tmp_path}/{name}?resize=8&crop=8" for name in ("one", "two"))
    with pytest.raises(UsageError, match=r"one/class/1\.png and .*two/class/1\.png"):
        open_splits(*references)


def test_sources_of_two_kinds_compare_by_pixels(tmp_path: Path) -> None:
    shapes = Split(splits.Reference.parse("builtin:shapes?count=4").open("evaluation"), (0, 1, 2, 3))
    images = np.stack([shapes.source[i][0] for i in (1, 2)])
    np.savez(tmp_path / "x.npz", images=images, labels=np.zeros(2, int))
    with pytest.raises(UsageError, match=r"share 2 images, for example npz:.*image 0 and builtin:shapes.*image 1"):
        open_splits(f"npz:{tmp_path}/x.npz", "builtin:shapes?count=4")


def test_a_long_set_is_checked_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_CHECKED", 10)
    long = whole(Numbers(list(range(1000))))
    check_disjoint(whole(Numbers([1001, 1002])), long)
    with pytest.raises(UsageError, match="share 2 images"):
        check_disjoint(whole(Numbers(list(range(100, 300)))), long)


def test_repeated_images_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_disjoint(whole(Numbers([1, 1, 2], name="mine")), whole(Numbers([3, 3, 3], name="theirs")))
    assert "mine: 1 of 3 calibration images are copies of others" in caplog.text
    assert "theirs: all 3 evaluation images are equal" in caplog.text


def test_different_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(1, 2, 2\).*\(3, 64, 64\); expected one shape"):
        open_splits(archive(tmp_path / "x.npz", [1, 2]), "builtin:shapes?count=2")


@given(st.integers(1, 30), st.integers(1, 40))
def test_batches_hold_every_image_once(count: int, size: int) -> None:
    split = Split(Numbers(list(range(count))), tuple(hashed_order(count)))
    parts = list(batches(split, size))
    assert all(part.shape[1:] == (1, 1, 1) and part.dtype == np.float32 for part in parts)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert np.concatenate(parts).reshape(-1).tolist() == list(split.indices)


def test_batches_read_no_more_than_asked_for() -> None:
    class Counting(Numbers):
        read = 0

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            self.read += 1
            return super().__getitem__(index)

    source = Counting(list(range(100)))
    stream = batches(whole(source), 10)
    assert source.read == 0
    next(stream)
    assert source.read == 10
    with pytest.raises(ValueError, match="batch size 0"):
        next(batches(whole(source), 0))


def test_labels_are_checked_against_the_source_and_the_model() -> None:
    assert labels_of(Split(Numbers([4, 2, 0]), (2, 0))).tolist() == [0, 4]
    with pytest.raises(UsageError, match="numbers, image 1: label 9, expected 0 to 4"):
        labels_of(whole(Numbers([4, 9])), 5)
    with pytest.raises(UsageError, match="image 1: label 9, expected 0 to 8"):
        labels_of(whole(Numbers([4, 9], classes=9)), 10)
    with pytest.raises(UsageError, match="image 0: label -1, expected 0 or more"):
        labels_of(whole(Numbers([-1])))


@pytest.mark.parametrize(
    "label", [0.5, 3.0, float("nan"), np.float32(2), np.array([1.0]), "3", None, [1, 2], 1 << 70, np.datetime64("2026")]
)
def test_labels_that_are_no_whole_numbers_are_refused(label: object, tmp_path: Path) -> None:
    class Odd(Numbers):
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return super().__getitem__(index)[0], label if index else 0  # type: ignore[return-value]

    message = r"image 1: label .*, expected a whole number"
    for read in (lambda: labels_of(whole(Odd([1, 2]))), lambda: materialize(whole(Odd([1, 2])), tmp_path, "key")):
        with pytest.raises(UsageError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "label", [float("nan"), [1.0, float("inf")], "3", 1 << 70, np.datetime64("2026"), [], [[1], [2, 3]]]
)
def test_labels_that_are_no_numbers_are_refused_by_sources(label: object) -> None:
    class Odd(Numbers):
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return super().__getitem__(index)[0], label if index else 0  # type: ignore[return-value]

    items = Items([(np.zeros((1, 1, 1)), 0), (np.ones((1, 1, 1)), label)], "items")
    for read in (lambda: items[1], lambda: whole(Odd([1, 2])).fingerprint):
        with pytest.raises(UsageError, match=r"image 1: .*label") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_fingerprints_tell_labels_apart() -> None:
    labels = [0, 1, 1.0, np.float32(1), [0, 1], [[0, 1]], [[0], [1]], [0.0, 1.0], None]
    prints = {Split(Items([(np.zeros((1, 1, 1)), label)], "items"), (0,)).fingerprint for label in labels}
    assert len(prints) == len(labels)


@pytest.mark.parametrize("label", [3, True, np.int8(3), np.uint64(3), np.True_, np.array(3), np.array([3])])
def test_labels_may_be_integers_and_booleans_of_any_kind(label: object) -> None:
    read = Items([(np.zeros((1, 1, 1)), label)], "items")[0][1]
    assert type(read) is int
    assert read == int(np.asarray(label).item())


def test_labels_may_be_tensors() -> None:
    torch = pytest.importorskip("torch")
    assert Items([(np.zeros((1, 1, 1)), torch.tensor(3))], "items")[0][1] == 3
    with pytest.raises(UsageError, match="NaN or infinite"):
        Items([(np.zeros((1, 1, 1)), torch.tensor(float("nan")))], "items")


@pytest.mark.parametrize(
    "image", [np.zeros((1, 2, 1), np.float32), np.full((1, 1, 1), np.nan), np.zeros((1, 1, 1), int)]
)
def test_images_of_a_users_own_source_are_checked(image: np.ndarray, tmp_path: Path) -> None:
    class Odd(Numbers):
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return (image, 1) if index else super().__getitem__(index)

    for read in (
        lambda: materialize(whole(Odd([1, 2])), tmp_path, "key"),
        lambda: list(batches(whole(Odd([1, 2])), 2)),
    ):
        with pytest.raises(UsageError, match="numbers, image 1: "):
            read()
