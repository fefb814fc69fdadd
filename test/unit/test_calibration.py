"""Statistics of the activations: what is kept, for which numbers of images, and on disk."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantune.errors import UsageError
from quantune.numerics.histogram import Histogram
from quantune.quantization.calibration import (
    FIRST_IMAGE_SAMPLES,
    GROUP_IMAGES,
    POWER_IMAGES,
    SAMPLES,
    Statistics,
    Summarizer,
    collect,
    stride,
)


def _images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, 1, 4, 4)).astype(np.float32)


def _batches(images: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _run(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {"x": batch, "a/b.0": batch * 2 + 1}


def _of(values: NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for image in values:
        histogram.add(image.reshape(-1))
    return histogram


def test_each_size_keeps_the_images_up_to_it() -> None:
    images, heard = _images(7), []
    statistics = collect(_run, _batches(images, 3), 7, (1, 5, 100), heard.append)
    assert statistics.available == 7
    assert heard == [1, 2, 3, 4, 5, 6, 7]
    for size, count in ((1, 1), (5, 5), (100, 7)):
        assert statistics.at(size)["x"] == _of(images[:count])
        assert statistics.at(size)["a/b.0"] == _of(images[:count] * 2 + 1)


def test_batches_make_no_difference() -> None:
    images = _images(7)
    one, three = (collect(_run, _batches(images, size), 7, (1, 4, 7)) for size in (1, 3))
    for size in (1, 4, 7):
        assert dict(one.at(size)) == dict(three.at(size))


def test_no_image_beyond_the_largest_size_is_run() -> None:
    ran = []

    def run(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        ran.append(len(batch))
        return _run(batch)

    statistics = collect(run, _batches(_images(9), 2), 9, (3,))
    assert ran == [2, 1]
    assert statistics.at(3)["x"] == _of(_images(9)[:3])


def test_a_number_that_was_not_collected_is_an_error() -> None:
    statistics = collect(_run, _batches(_images(2), 1), 2, (1, 2))
    with pytest.raises(UsageError, match="calib=1000: statistics were collected for 1, 2 images"):
        statistics.at(1000)


def test_no_images_are_an_error() -> None:
    with pytest.raises(UsageError, match="there are no images"):
        collect(_run, iter(()), 0, (1,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(value: float) -> None:
    images = _images(4)
    images[2, 0, 1, 1] = value
    with pytest.raises(UsageError, match=r"image 2: tensor 'x' of the f32 model is not finite"):
        collect(_run, _batches(images, 3), 4, (4,))


@settings(max_examples=30, derandomize=True)
@given(size=st.integers(1, 2 * FIRST_IMAGE_SAMPLES), index=st.integers(0, 6), where=st.integers(0, 1 << 30))
def test_sampling_keeps_the_extremes_of_large_tensors(size: int, index: int, where: int) -> None:
    values = np.random.default_rng(where).normal(0, 1, size).astype(np.float32)
    values[where % size], values[(where * 7 + 1) % size] = 50, -60
    images = [*np.zeros((index, 1, size), np.float32), values[None]]
    histogram = collect(lambda batch: {"x": batch}, iter(images), index + 1, (index + 1,)).at(index + 1)["x"]
    assert histogram.minimum == (min(values.min(), 0) if index else values.min())
    assert histogram.maximum == (max(values.max(), 0) if index else values.max())
    limits = [FIRST_IMAGE_SAMPLES, *[SAMPLES] * index]
    assert histogram.count <= sum(min(size, limit + 2) for limit in limits)
    if size <= SAMPLES:
        assert histogram.count == size * (index + 1)


def test_a_large_tensor_is_sampled_at_another_place_in_each_image() -> None:
    size = 8 * SAMPLES  # of every image but the first each ninth value is counted
    images = np.tile(np.arange(size, dtype=np.float32) % 9 + 1, (10, 1))
    histograms = collect(lambda batch: {"x": batch}, _batches(images, 1), 10, (1, 10))
    counts = np.zeros((2, 11), int)
    for row, images_seen in enumerate((1, 10)):
        histogram = histograms.at(images_seen)["x"]
        np.add.at(counts[row], histogram.centers.astype(int), histogram.counts)
    sampled = (counts[1] - counts[0])[1:10]
    assert set(sampled[1:-1]) <= {size // 9, size // 9 + 1}  # each position once; the extremes are added to every image
    assert set(sampled[[0, -1]]) <= {size // 9 + 9, size // 9 + 10}


def test_round_trip() -> None:
    statistics = collect(_run, _batches(_images(5), 2), 5, (1, 3, 1000))
    again = Statistics.from_bytes(statistics.to_bytes())
    assert again.available == 5
    assert set(again.by_size) == {1, 3, 1000}
    for size in (1, 3, 1000):
        assert dict(again.at(size)) == dict(statistics.at(size))


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_unreadable_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - numpy's own messages differ
        Statistics.from_bytes(data)


def test_other_archives_are_an_error() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, something=np.zeros(3))
    with pytest.raises(ValueError, match="no statistics"):
        Statistics.from_bytes(buffer.getvalue())


def test_power_and_mean_of_each_channel_are_those_of_the_first_images() -> None:
    images = np.random.default_rng(0).normal(0, 1, (POWER_IMAGES + 3, 2, 4, 4)).astype(np.float32)
    images[:, 1] *= 3
    statistics = collect(_run, _batches(images, 5), len(images), (len(images),))
    expected = (images[:POWER_IMAGES].astype(np.float64) ** 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(statistics.power["x"], expected, rtol=1e-5)
    np.testing.assert_allclose(statistics.mean["x"], images[:POWER_IMAGES].mean(axis=(0, 2, 3), dtype=float), rtol=1e-5)
    np.testing.assert_allclose(statistics.mean["a/b.0"], 2 * statistics.mean["x"] + 1, rtol=1e-5)
    again = Statistics.from_bytes(statistics.to_bytes())
    for kept, read in ((statistics.power, again.power), (statistics.mean, again.mean)):
        assert set(kept) == set(read) == {"x", "a/b.0"}
        assert all(np.array_equal(kept[name], read[name]) for name in kept)


def test_threads_and_groups_make_no_difference() -> None:
    images = _images(POWER_IMAGES + 5 * GROUP_IMAGES + 3)
    sizes = (1, POWER_IMAGES + 7, 10_000)
    one = collect(_run, _batches(images, 3), len(images), sizes)
    three = collect(_run, _batches(images, 2), len(images), sizes, threads=3)
    assert one.to_bytes() == three.to_bytes()
    assert one.at(POWER_IMAGES + 7)["x"] == _of(images[: POWER_IMAGES + 7])
    assert one.at(10_000)["a/b.0"] == _of(images * 2 + 1)


def test_images_are_drawn_only_a_little_ahead_of_the_threads() -> None:
    drawn = 0
    most = 0

    def draw() -> Iterator[NDArray[np.float32]]:
        nonlocal drawn
        for image in _images(20 * GROUP_IMAGES):
            drawn += 1
            yield image[None]

    def heard(done: int) -> None:
        nonlocal most
        most = max(most, drawn - done)

    collect(_run, draw(), 20 * GROUP_IMAGES, (20 * GROUP_IMAGES,), heard, threads=2)
    assert GROUP_IMAGES <= most <= 4 * GROUP_IMAGES


def test_the_first_image_that_is_not_finite_is_named_whatever_the_threads() -> None:
    images = _images(6 * GROUP_IMAGES)
    images[[GROUP_IMAGES + 2, 4 * GROUP_IMAGES], 0, 1, 1] = np.nan
    with pytest.raises(UsageError, match=f"image {GROUP_IMAGES + 2}: tensor 'x'"):
        collect(_run, _batches(images, 1), len(images), (len(images),), threads=4)


def _tensors(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """One that is sampled, in steps that leave its size over, and one that is not."""
    wide = np.tile(batch.reshape(len(batch), -1), (1, 3 * SAMPLES // 16 + 1)) * np.arange(1, 3 * SAMPLES + 17)
    return {"wide": wide.astype(np.float32)[:, : 3 * SAMPLES + 5], "small": batch}


def _summarizer() -> Summarizer:
    """As the pass documents it, in numpy."""

    def run(batch: NDArray[np.float32], first: int) -> NDArray[np.float32]:
        rows = []
        for j in range(len(batch)):
            row: list[NDArray[np.float32]] = []
            for values in _tensors(batch).values():
                flat = values[j].reshape(-1)
                step = stride(flat.size)
                places = (first + j) % step + step * np.arange(-(-flat.size // step))
                row.append(flat[np.minimum(places, flat.size - 1)])
                if step > 1:
                    row.append(np.array([flat.min(), flat.max()]))
            rows.append(np.concatenate(row))
        return np.stack(rows)

    sizes = {name: values[0].size for name, values in _tensors(_images(1)).items()}
    return Summarizer(run, sizes)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_a_program_that_samples_gives_the_same_statistics(size: int) -> None:
    images = _images(POWER_IMAGES + 2 * GROUP_IMAGES + 9)
    sizes = (1, POWER_IMAGES + 3, 10_000)
    plain = collect(_tensors, _batches(images, size), len(images), sizes)
    ran = []

    def run(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        ran.append(len(batch))
        return _tensors(batch)

    sampled = collect(run, _batches(images, size), len(images), sizes, threads=2, summarizer=_summarizer())
    assert sampled.to_bytes() == plain.to_bytes()
    assert POWER_IMAGES <= sum(ran) < POWER_IMAGES + size


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_program_that_samples_names_the_same_image_and_tensor(value: float) -> None:
    images = _images(POWER_IMAGES + 9)
    images[POWER_IMAGES + 4, 0, 1, 1] = value
    with np.errstate(invalid="ignore"), pytest.raises(UsageError, match=f"image {POWER_IMAGES + 4}: tensor 'wide'"):
        collect(_tensors, _batches(images, 3), len(images), (len(images),), summarizer=_summarizer())
