"""One way to choose images for all: searches and single configurations, references and Python objects.

The same calibration set gives the same calibration images in the same order whoever asks, so that an artifact built
alone is the one that a search measured. Images are drawn by a hash of their number, never from the front: sets on disk
are sorted by class.
"""

from __future__ import annotations

from collections.abc import Sized

from quantune.data.base import ImageSource
from quantune.data.sources import Items, Reference, open_source
from quantune.data.splits import Split, calibration_part, check_disjoint, open_splits, warn_of_copies

Images = str | ImageSource | Split | Sized
"""What may stand for a set of images: a reference, a source, chosen images, or any sequence of (image, label)."""


def search_images(calibration: Images, evaluation: Images) -> tuple[Split, Split]:
    """The calibration and the evaluation images of a search, which share none; a `Split` is taken as it is."""
    if isinstance(calibration, str) and isinstance(evaluation, str):
        return open_splits(calibration, evaluation)
    pair = _calibration(calibration), _whole(evaluation, "evaluation")
    check_disjoint(*pair)
    return pair


def calibration_images(calibration: Images, evaluation: Images | None = None) -> Split:
    """The calibration images of one configuration: those that a search with the same sets has.

    evaluation: matters only where it names the same set, which is then divided as a search divides it.
    """
    if isinstance(calibration, str) and isinstance(evaluation, str) and names_one_set(calibration, evaluation):
        return open_splits(calibration, evaluation)[0]
    chosen = _calibration(calibration)
    warn_of_copies(chosen)
    return chosen


def names_one_set(calibration: str, evaluation: str) -> bool:
    """Whether two references name one set, which has to be divided between calibration and evaluation."""
    return Reference.parse(calibration).origin("calibration") == Reference.parse(evaluation).origin("evaluation")


def _calibration(images: Images) -> Split:
    if isinstance(images, Split):
        return images
    count = Reference.parse(images).count if isinstance(images, str) else None
    return calibration_part(_source(images, "calibration"), count)


def _whole(images: Images, role: str) -> Split:
    if isinstance(images, Split):
        return images
    source = _source(images, role)
    return Split(source, tuple(range(len(source))))


def _source(images: str | ImageSource | Sized, role: str) -> ImageSource:
    if isinstance(images, str):
        return open_source(images, role)
    return images if isinstance(images, ImageSource) else Items(images, f"{role} images")
