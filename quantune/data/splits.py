"""Which images calibrate and which evaluate: disjoint, deterministic, and checked to be so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantune.data.base import Image, ImageSource, checked_image, hashed_order, pixel_digest
from quantune.data.labels import UNLABELLED, Label, any_label, whole_label
from quantune.data.sources import Reference
from quantune.errors import UsageError

logger = logging.getLogger(__name__)

MOST_CALIBRATION = 10_000
"""Calibration images that are chosen from a set unless the request says how many."""

MOST_CHECKED = 10_000
"""Images of the evaluation set that the check for shared images reads, evenly spread."""

_CALIBRATION_SHARE = 5
"""A set that serves both purposes gives at most one image in five to calibration."""


@dataclass(frozen=True)
class Split:
    """Images ``indices`` of ``source``, in this order."""

    source: ImageSource
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.indices:
            raise UsageError(f"{self.source.name}: no images")
        low, high = min(self.indices), max(self.indices)
        if low < 0 or high >= len(self.source):
            raise ValueError(f"{self.source.name}: indices {low} to {high}, but it has {len(self.source)} images")

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> Split:
        """The first ``count`` images, or all if there are fewer."""
        return self if count >= len(self) else Split(self.source, self.indices[:count])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, in their order."""
        return self.source.fingerprint(self.indices)


def open_splits(
    calibration: str,
    evaluation: str,
    *,
    calibration_count: int = MOST_CALIBRATION,
    evaluation_count: int | None = None,
    seed: int = 0,
) -> tuple[Split, Split]:
    """The calibration and the evaluation images of two references, which share none.

    A reference's own ``count`` is met or refused; the arguments are upper bounds. Two references to the same images are
    divided by a hash of ``seed`` and the index, at most a fifth for calibration where they do not say how many.
    Raises UsageError naming an image that is in both sets.
    """
    references = Reference.parse(calibration), Reference.parse(evaluation)
    if references[0].origin("calibration") == references[1].origin("evaluation"):
        source = references[1].open("evaluation", limited=False)
        counts = references[0].count, references[1].count
        return _divide(source, counts, (calibration_count, evaluation_count), seed)
    source = references[0].open("calibration")
    chosen = calibration_part(source, references[0].count or calibration_count, seed)
    held_out = references[1].open("evaluation")
    rest = Split(held_out, tuple(sorted(hashed_order(len(held_out), seed)[: references[1].count or evaluation_count])))
    if source.shape != held_out.shape:
        raise UsageError(
            f"{source.name} has images of shape {source.shape}, {held_out.name} of {held_out.shape}; expected one shape"
        )
    check_disjoint(chosen, rest)
    return chosen, rest


def calibration_part(source: ImageSource, count: int | None = None, seed: int = 0) -> Split:
    """``count`` images of a set that only calibrates, at most ``MOST_CALIBRATION`` unless told, drawn by a hash."""
    return Split(source, tuple(hashed_order(len(source), seed)[: count or MOST_CALIBRATION]))


def check_disjoint(calibration: Split, evaluation: Split) -> None:
    """Raise UsageError naming an image that both sets hold; of more than ``MOST_CHECKED`` evaluation images, some."""
    shared = _shared(calibration, evaluation)
    if shared:
        mine, theirs = next(iter(shared.items()))
        names = f"{calibration.source.describe(mine)} and {evaluation.source.describe(theirs)}"
        raise UsageError(
            f"calibration and evaluation share {len(shared)} images, for example {names}; remove them from one set"
        )


def labels_of(split: Split, classes: int | None = None) -> NDArray[np.int64]:
    """The labels, i64[n]. Raises UsageError naming the first image whose label is not in [0, classes)."""
    return np.array([checked_label(split, i, split.source.label(i), classes) for i in split.indices], np.int64)


def label_shape(split: Split) -> tuple[int, ...] | None:
    """The shape of the first image's label, () for a number; None where it has none."""
    label = split.source.label(split.indices[0])
    if isinstance(label, int):
        return None if label == UNLABELLED else ()
    return label.shape


def batches(split: Split, batch_size: int) -> Iterator[Image]:
    """The images, f32[n, c, h, w], ``batch_size`` at a time; the last batch may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size}: expected 1 or more")
    for start in range(0, len(split), batch_size):
        yield np.stack([labelled(split, i)[0] for i in split.indices[start : start + batch_size]])


def _divide(
    source: ImageSource, asked: tuple[int | None, int | None], most: tuple[int, int | None], seed: int
) -> tuple[Split, Split]:
    """Disjoint parts of one source. Copies of an evaluation image are left out of the calibration part."""
    total = len(source)
    if total < 2:
        raise UsageError(f"{source.name}: {total} image cannot both calibrate and evaluate; expected 2 or more")
    share = asked[0] or min(most[0], max(total // _CALIBRATION_SHARE, 1))
    evaluation_count = asked[1] or min(total - share, most[1] or total)
    wanted = asked[0] or 1
    if evaluation_count < 1 or evaluation_count + wanted > total:
        raise UsageError(
            f"{source.name}: {total} images are too few to calibrate with {wanted} and evaluate with "
            f"{max(evaluation_count, 1)} others; lower count, or name another set"
        )
    order = hashed_order(total, seed)
    evaluation = Split(source, tuple(sorted(order[:evaluation_count])))
    calibration = Split(source, tuple(order[evaluation_count:][: asked[0] or most[0]]))
    shared = _shared(calibration, evaluation)
    if shared:
        logger.warning("%s: %d calibration images are copies of evaluation images; left out", source.name, len(shared))
    kept = tuple(i for i in calibration.indices if i not in shared)
    if not kept:
        raise UsageError(f"{source.name}: every image that could calibrate is a copy of one that evaluates")
    return Split(source, kept), evaluation


def _shared(calibration: Split, evaluation: Split) -> dict[int, int]:
    """Calibration images whose content is also in the evaluation set, each with one of its copies there."""
    mine, theirs = calibration.source, evaluation.source
    same_kind = mine.content == theirs.content
    step = -(-len(evaluation) // MOST_CHECKED)
    seen: dict[bytes, int] = {}
    checked = evaluation.indices[::step]
    for index in checked:
        seen.setdefault(theirs.digest(index) if same_kind else pixel_digest(theirs, index), index)
    own: dict[bytes, int] = {}
    shared: dict[int, int] = {}
    for index in calibration.indices:
        digest = mine.digest(index) if same_kind else pixel_digest(mine, index)
        own.setdefault(digest, index)
        if digest in seen:
            shared[index] = seen[digest]
    _tell_copies(mine.name, "calibration", len(calibration), len(own))
    _tell_copies(theirs.name, "evaluation", len(checked), len(seen))
    return shared


def warn_of_copies(calibration: Split) -> None:
    """Log what is odd about a calibration set: a single image, or images that are copies of others."""
    different = len({calibration.source.digest(index) for index in calibration.indices})
    _tell_copies(calibration.source.name, "calibration", len(calibration), different)


def _tell_copies(name: str, role: str, count: int, different: int) -> None:
    if count == 1:
        logger.warning("%s: there is only one %s image", name, role)
    elif different == 1:
        logger.warning("%s: all %d %s images are equal", name, count, role)
    elif different < count:
        logger.warning("%s: %d of %d %s images are copies of others", name, count - different, count, role)


def labelled(split: Split, index: int) -> tuple[Image, Label]:
    """An image, checked, and its label; a user's own source may give anything."""
    image, label = split.source[index]
    return checked_image(image, split.source.describe(index), split.source.shape), label


def like_label(split: Split, index: int, value: object, first: Sequence[Label]) -> Label:
    """A label of any form, or UsageError naming the image where its shape is another than the first one's."""
    label = any_label(value, split.source.describe(index))
    for other in first:
        if np.shape(label) != np.shape(other):
            shapes = f"{np.shape(label)}, that of the first image {np.shape(other)}"
            raise UsageError(f"{split.source.describe(index)}: its label has shape {shapes}; all must have one shape")
    return label


def checked_label(split: Split, index: int, value: object, classes: int | None) -> int:
    """A label as the number of a class, in [0, classes), or UsageError naming the image."""
    label = whole_label(value, split.source.describe(index))
    known = [number for number in (classes, split.source.classes) if number is not None]
    if label < 0 or (known and label >= min(known)):
        expected = f"0 to {min(known) - 1}" if known else "0 or more"
        raise UsageError(f"{split.source.describe(index)}: label {label}, expected {expected}")
    return label
