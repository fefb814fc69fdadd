"""A user's own images, whatever they come in: sequences, arrays, tensors, data sets and their loaders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantune.data.base import Image, ImageSource, checked_image
from quantune.data.labels import Label, any_label
from quantune.data.text import one_line
from quantune.errors import UsageError

MOST_ITEMS = 20_000_000
"""More than the largest public sets of images; a length beyond is a mistake, and drawing from it would not end."""

_IMAGE_KEYS = ("image", "img", "pixel_values", "images")
_LABEL_KEYS = ("label", "labels", "mask", "annotation", "target")
_EXPECTED = "a sequence of images or of (image, label) pairs"


class Items(ImageSource):
    """A user's own images, checked one by one; ``name`` is what messages call them.

    made: anything with a length that gives, by index, an image, a pair (image, label), or a mapping that has ``image``
    and ``label`` as the data sets of Hugging Face do; so arrays and tensors [n, c, h, w] too. Or a pair (images,
    labels) of those, or a loader of torch, whose data set is read. An image is [c, h, w], f32 or u8 (scaled by 1/255),
    or one of Pillow's.
    """

    def __init__(self, made: object, name: str) -> None:
        self.name = name
        self._items: Any = _sequence(made)
        if not hasattr(type(self._items), "__len__") or not hasattr(type(self._items), "__getitem__"):
            raise UsageError(f"{name}: got {type(made).__name__}, expected {_EXPECTED}")
        try:
            self._count = len(self._items)
        except Exception as error:
            raise UsageError(f"{name}: its length raised {type(error).__name__}: {one_line(error)}") from error
        if self._count == 0:
            raise UsageError(f"{name}: got no images")
        if self._count > MOST_ITEMS:
            raise UsageError(f"{name}: {self._count} images, expected {MOST_ITEMS} or fewer")
        self.classes = _classes_of(self._items)
        image = self._item(0, None)[0]
        self.shape = (image.shape[0], image.shape[1], image.shape[2])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._item(index, self.shape)

    def _item(self, index: int, shape: tuple[int, int, int] | None) -> tuple[Image, Label]:
        where = self.describe(index)
        try:
            image, label = _pair(self._items[index])
        except Exception as error:
            raise UsageError(f"{where}: {type(error).__name__}: {one_line(error)}; expected (image, label)") from error
        return checked_image(image, where, shape), any_label(label, where)


def _classes_of(made: object) -> int | None:
    """The attribute ``classes`` where it is a usable number."""
    try:
        classes = getattr(made, "classes", None)
    except Exception:  # a property of the user's that fails says as little as none
        return None
    return classes if isinstance(classes, int) and not isinstance(classes, bool) and classes > 0 else None


@dataclass(frozen=True)
class _Zipped:
    """Images and labels that come apart, as pairs."""

    images: Any
    labels: Any

    def __len__(self) -> int:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images and {len(self.labels)} labels")
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, object]:
        return self.images[index], self.labels[index]


def _sequence(made: object) -> object:
    """What gives the items by index: the data set of a loader, pairs of a pair (images, labels), or ``made`` itself."""
    if hasattr(made, "dataset") and hasattr(made, "batch_size"):
        return made.dataset  # type: ignore[attr-defined]
    if isinstance(made, tuple | list) and len(made) == 2 and getattr(made[0], "ndim", 0) == 4:
        return _Zipped(*made)
    return made


def _pair(item: object) -> tuple[object, object]:
    """Image and label of an item; an item that is no pair is an image alone."""
    if isinstance(item, Mapping):
        image = next((key for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            raise KeyError(f"no {', '.join(_IMAGE_KEYS)} among {', '.join(map(str, item))}")
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        return _pixels(item[image]), label
    if isinstance(item, tuple | list):
        image, label = item
        return _pixels(image), label
    return _pixels(item), None


def _pixels(image: object) -> object:
    """An image of Pillow's as u8[c, h, w], anything else as it is."""
    if not all(hasattr(image, name) for name in ("mode", "size", "convert")):
        return image
    grey = image.mode == "L"  # type: ignore[attr-defined]
    array = np.asarray(image if grey else image.convert("RGB"))  # type: ignore[attr-defined]
    return array[None] if grey else array.transpose(2, 0, 1)
