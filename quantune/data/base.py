"""What an image source is, and the checks that all of them share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantune.data.labels import Label, label_bytes
from quantune.data.text import one_line, printable
from quantune.errors import UsageError, hint

Image = NDArray[np.float32]


class ImageSource(ABC):
    """Labelled images of one shape, read one at a time.

    name: how messages call it. shape: (channels, height, width). classes: their number, or None where it is not known.
    content: what ``digest`` hashes; digests of two sources compare when this is equal.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int | None
    content: str = "pixels"
    recipe: str = ""
    """What turns the stored content into the image, for ``fingerprint``."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image ``index``, f32[c, h, w], and its label. Raises UsageError naming an item that cannot be used."""

    def label(self, index: int) -> Label:
        """The label of image ``index``, ``UNLABELLED`` if there is none."""
        return self[index][1]

    def describe(self, index: int) -> str:
        """What to call image ``index`` in a message."""
        return f"{self.name}, image {index}"

    def digest(self, index: int) -> bytes:
        """A hash of the content of image ``index``, the same for equal images; kept, for it is asked for again."""
        known: dict[int, bytes] = vars(self).setdefault("_digests", {})
        if index not in known:
            known[index] = pixel_digest(self, index)
        return known[index]

    def fingerprint(self, indices: Iterable[int]) -> str:
        """SHA-256 of the images and labels at ``indices``, in this order."""
        state = hashlib.sha256(f"{self.content} {self.shape} {self.recipe}".encode())
        for index in indices:
            state.update(self.digest(index))
            state.update(label_bytes(self.label(index), self.describe(index)))
        return state.hexdigest()


class Subset(ImageSource):
    """Some images of another source, numbered anew."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.name, self.shape, self.classes = source.name, source.shape, source.classes
        self.content, self.recipe = source.content, source.recipe
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        return self._source[self._indices[index]]

    def label(self, index: int) -> Label:
        """The label of image ``index``."""
        return self._source.label(self._indices[index])

    def describe(self, index: int) -> str:
        """The name that the other source gives it."""
        return self._source.describe(self._indices[index])

    def digest(self, index: int) -> bytes:
        """The digest in the other source."""
        return self._source.digest(self._indices[index])


def pixel_digest(source: ImageSource, index: int) -> bytes:
    """SHA-256 of the f32 image that the network sees."""
    return hashlib.sha256(np.ascontiguousarray(source[index][0]).tobytes()).digest()


def hashed_order(count: int, seed: int = 0) -> list[int]:
    """The numbers below ``count`` in an order that depends on ``seed`` alone; more numbers leave the others' order."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())


def checked_image(value: object, where: str, shape: tuple[int, int, int] | None = None) -> Image:
    """``value`` as f32[c, h, w]; u8 is scaled by 1/255. UsageError opening with ``where`` for all else."""
    try:
        array = np.asarray(value)
    except Exception as error:
        raise UsageError(f"{where}: {type(value).__name__} is not an array ({one_line(error)})") from error
    if array.ndim != 3 or 0 in array.shape:
        raise UsageError(f"{where}: shape {array.shape}, expected (channels, height, width)")
    if shape is not None and array.shape != shape:
        raise UsageError(f"{where}: shape {array.shape}, but the first image has {shape}; all must have one shape")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise UsageError(f"{where}: type {array.dtype}, expected f32, or u8 in [0, 255]")
    with np.errstate(over="ignore"):
        image = array.astype(np.float32)
    if not np.isfinite(image).all():
        raise UsageError(f"{where}: {np.count_nonzero(~np.isfinite(image))} of {image.size} values are NaN or infinite")
    return image


def options_of(given: Mapping[str, str], allowed: Sequence[str], where: str) -> dict[str, str]:
    """``given`` as a dict. Raises UsageError for a name that is not in ``allowed``."""
    for name in given:
        if name not in allowed:
            known = tuple(dict.fromkeys((*allowed, "count")))  # every kind of images takes count
            expected = f"expected {', '.join(known)}{hint(name, known)}"
            raise UsageError(f"{where}: unknown option '{printable(name)}', {expected}")
    return dict(given)


def whole_number(text: str, what: str) -> int:
    """``text`` as a number of at least 1, else UsageError opening with ``what``."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < 1:
        raise UsageError(f"{what}={printable(text)}: expected a whole number from 1 to 999999999")
    return int(text)
