"""One pass over the calibration images gives the statistics of every configuration: a histogram per tensor and size.

Memory does not depend on the number of images. Minimum and maximum are exact; of a large tensor the histogram sees a
regular sample, shifted from image to image, so that every position is met: of image i's tensor the values i % s,
i % s + s, … in the order N C H W, where s is ``stride``. A program may take the sample itself (`Summarizer`): then a
fraction of the bytes leaves it, and the statistics are the same.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantune.errors import UsageError
from quantune.numerics.histogram import Histogram

FIRST_IMAGE_SAMPLES = 1 << 16
SAMPLES = 1 << 12
"""Values of one tensor that one image adds to its histogram, besides the extremes."""
POWER_IMAGES = 64
"""Images whose channel powers are averaged: enough for a prediction, little work."""
FORMAT = "2"
"""Of what is collected: statistics in the cache that have another one are not taken."""
GROUP_IMAGES = 16
"""Images that are counted at once: fewer and larger steps."""


def stride(size: int, limit: int = SAMPLES) -> int:
    """The steps in which a tensor of ``size`` values is sampled so that about ``limit`` are seen; 1 takes all."""
    return -(-size // limit) | 1  # odd, so that it does not keep step with the channels


@dataclass(frozen=True)
class Summarizer:
    """A program that samples the tensors itself, as quantune-summarize makes it.

    run: (a batch f32[n, c, h, w], the number of its first image) -> f32[n, …]: tensor by tensor the sample of
    ``stride`` and, unless that is 1, the extremes. sizes: tensor name -> values of one image.
    """

    run: Callable[[NDArray[np.float32], int], NDArray[np.float32]]
    sizes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen on the first images, for each number of images asked for.

    available: number of calibration images there were. by_size: images asked for -> tensor name -> histogram.
    power, mean: tensor name -> mean square and mean of each channel, f64[c], on the first POWER_IMAGES images.
    """

    available: int
    by_size: Mapping[int, Mapping[str, Histogram]]
    power: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    mean: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def at(self, calib: int) -> Mapping[str, Histogram]:
        """The histograms for ``calib`` images asked for. Raises UsageError for a number that was not collected."""
        if calib not in self.by_size:
            sizes = ", ".join(map(str, self.by_size))
            raise UsageError(f"calib={calib}: statistics were collected for {sizes} images")
        return self.by_size[calib]

    def to_bytes(self) -> bytes:
        """The statistics as an .npz file."""
        arrays: dict[str, NDArray] = {"available": np.asarray(self.available)}
        for kind, channels in (("power", self.power), ("mean", self.mean)):
            arrays |= {f"{kind}/{name}": value for name, value in channels.items()}
        for size, histograms in self.by_size.items():
            for name, histogram in histograms.items():
                arrays |= {f"{size}/{name}/{key}": value for key, value in histogram.to_arrays().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Statistics:
        """Read what ``to_bytes`` wrote. Raises ValueError for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = dict(archive)
            available = int(arrays.pop("available"))
        except (OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"no statistics: {error}") from error
        nested: dict[int, dict[str, dict[str, NDArray]]] = {}
        channels: dict[str, dict[str, NDArray[np.float64]]] = {"power": {}, "mean": {}}
        for path, array in arrays.items():
            size, rest = path.split("/", 1)
            if size in channels:
                channels[size][rest] = array
                continue
            name, key = rest.rsplit("/", 1)
            nested.setdefault(int(size), {}).setdefault(name, {})[key] = array
        made = {s: {n: Histogram.from_arrays(a) for n, a in named.items()} for s, named in nested.items()}
        return cls(available, made, **channels)


def collect(
    run: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]],
    batches: Iterable[NDArray[np.float32]],
    available: int,
    sizes: Iterable[int],
    on_image: Callable[[int], None] = lambda done: None,
    *,
    threads: int = 1,
    summarizer: Summarizer | None = None,
) -> Statistics:
    """Run the instrumented f32 program over the images and keep histograms.

    run: a batch f32[n, c, h, w] -> tensor name -> f32[n, ...]; called from ``threads`` threads at once, whose number
    changes nothing about the result. summarizer: takes over where the sample is enough, behind the first POWER_IMAGES;
    it changes nothing either. available: images that ``batches`` holds in all. A size beyond it gets the
    statistics of all images. on_image hears how many images are done. Raises UsageError naming a tensor that is not
    finite.
    """
    wanted = sorted(set(sizes))
    histograms: dict[str, Histogram] = {}
    by_size: dict[int, Mapping[str, Histogram]] = {}
    channels: dict[str, NDArray[np.float64]] = {}
    done = 0
    for seen in _in_order(lambda group: _see(run, summarizer, group), _groups(batches, wanted), threads):
        for name, histogram in seen.histograms.items():
            histograms.setdefault(name, Histogram()).merge(histogram)
        for each in seen.channels:
            for name, value in each.items():
                channels[name] = channels.get(name, 0.0) + value
        for _ in range(seen.images):
            done += 1
            on_image(done)
        if done in wanted:
            by_size[done] = {name: histogram.copy() for name, histogram in histograms.items()}
    if not done:
        raise UsageError("calibration: there are no images")
    for size in wanted:
        by_size.setdefault(size, histograms)
    averages = {name: total / min(done, POWER_IMAGES) for name, total in channels.items()}
    power, mean = ({name: average[row] for name, average in averages.items()} for row in (0, 1))
    return Statistics(available, by_size, power, mean)


@dataclass(frozen=True, eq=False)
class _Group:
    """Images that one thread looks at: batches, and the number of the first image."""

    first: int
    batches: Sequence[NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a group's images gave.

    channels: one mapping an image, since their sum depends on the order; of each tensor f64[2, c], power and mean.
    """

    images: int
    histograms: Mapping[str, Histogram]
    channels: Sequence[Mapping[str, NDArray[np.float64]]]


def _groups(batches: Iterable[NDArray[np.float32]], wanted: Sequence[int]) -> Iterator[_Group]:
    """The images in groups of about GROUP_IMAGES; none reaches over a wanted number of images, nor beyond the last."""
    first, group, count = 0, [], 0
    for batch in batches:
        while len(batch):
            end = next((size for size in wanted if size > first), None)
            if end is None and wanted:
                return
            part = batch if end is None else batch[: end - first - count]
            group.append(part)
            count, batch = count + len(part), batch[len(part) :]
            if count >= GROUP_IMAGES or first + count == end:
                yield _Group(first, group)
                first, group, count = first + count, [], 0
        if wanted and first >= wanted[-1]:
            return
    if group:
        yield _Group(first, group)


def _in_order(work: Callable[[_Group], _Seen], groups: Iterable[_Group], threads: int) -> Iterator[_Seen]:
    """The results in the groups' order, worked out by threads that are at most two groups ahead each."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Seen]] = deque()
        try:
            for group in groups:
                pending.append(pool.submit(work, group))
                if len(pending) >= 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _see(
    run: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]],
    summarizer: Summarizer | None,
    group: _Group,
) -> _Seen:
    samples: dict[str, list[NDArray[np.float32]]] = {}
    channels: list[Mapping[str, NDArray[np.float64]]] = []
    rows: list[NDArray[np.float32]] = []
    index = group.first
    for batch in group.batches:
        if summarizer is not None and index >= POWER_IMAGES:
            rows.append(summarizer.run(batch, index))
            index += len(batch)
            continue
        tensors = run(batch)
        for j in range(len(batch)):
            for name, values in tensors.items():
                samples.setdefault(name, []).extend(_sample(name, values[j], index))
            if index < POWER_IMAGES:
                channels.append({name: _of_channels(values[j]) for name, values in tensors.items()})
            index += 1
    if summarizer is not None and rows:
        summary = np.concatenate(rows)
        for name, parts in _columns(summarizer.sizes, summary, index - len(summary)):
            samples.setdefault(name, []).extend(parts)
    histograms = {name: Histogram() for name in samples}
    for name, parts in samples.items():
        histograms[name].add(np.concatenate(parts))
    return _Seen(index - group.first, histograms, channels)


def _columns(
    sizes: Mapping[str, int], rows: NDArray[np.float32], first: int
) -> Iterator[tuple[str, list[NDArray[np.float32]]]]:
    """What the histograms are to see, by tensor, out of the summaries of images from number ``first`` on."""
    finite = np.isfinite(rows)
    for j in np.flatnonzero(~finite.all(axis=1)):
        for name, columns in _places(sizes):
            if not finite[j, columns].all():
                raise _not_finite(name, first + int(j))
    for name, columns in _places(sizes):
        step, values = stride(sizes[name]), rows[:, columns]
        if step == 1:
            yield name, [values.reshape(-1)]
            continue
        # The last place of the sample is beyond the tensor where the sample starts late.
        count = values.shape[1] - 2
        starts = (first + np.arange(len(rows))) % step
        inside = starts + (count - 1) * step < sizes[name]
        yield name, [values[:, : count - 1].reshape(-1), values[inside, count - 1], values[:, count:].reshape(-1)]


def _places(sizes: Mapping[str, int]) -> Iterator[tuple[str, slice]]:
    """The columns of each tensor in a summary: its sample, and the extremes where that is not all."""
    column = 0
    for name, size in sizes.items():
        step = stride(size)
        width = -(-size // step) + (2 if step > 1 else 0)
        yield name, slice(column, column + width)
        column += width


def _of_channels(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean square and mean of each channel of one image's tensor [c, ...]: f64[2, c]."""
    flat = values.reshape(len(values), -1)
    power = np.einsum("cp,cp->c", flat, flat, dtype=np.float64) / flat.shape[1]
    return np.stack([power, flat.mean(axis=1, dtype=np.float64)])


def _sample(name: str, values: NDArray[np.float32], index: int) -> list[NDArray[np.float32]]:
    """What the histogram is to see of one image's tensor: all of a small one, else a part and the extremes."""
    flat = values.reshape(-1)
    extremes = np.array([flat.min(), flat.max()])
    if not np.isfinite(extremes).all():
        raise _not_finite(name, index)
    step = stride(flat.size, SAMPLES if index else FIRST_IMAGE_SAMPLES)
    # Copied: a view would keep the whole tensor.
    return [flat[index % step :: step].copy(), extremes] if step > 1 else [flat.copy()]


def _not_finite(name: str, index: int) -> UsageError:
    return UsageError(
        f"calibration image {index}: tensor '{name}' of the f32 model is not finite; "
        "check the weights and the image's scaling"
    )
