"""The built-in tasks: procedural shapes, and scikit-learn's scanned digits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from quantune.data import shapes
from quantune.data.base import Image, ImageSource, hashed_order, options_of, whole_number
from quantune.data.labels import Label
from quantune.data.text import printable
from quantune.errors import UsageError, hint

_MOST_SHAPES = 1_000_000
_SHAPES_COUNT = {"train": 20_000, "calibration": 10_000, "evaluation": 2_000}
_DIGITS_PARTS = {"train": (0.0, 0.6), "calibration": (0.6, 0.7), "evaluation": (0.7, 1.0)}
_DIGITS_SIZE = 32


class Shapes(ImageSource):
    """``builtin:shapes``: f32[3, 64, 64], 16 classes; a split has as many images as one asks for."""

    shape = (3, shapes.SIZE, shapes.SIZE)
    classes = len(shapes.CLASSES)
    content = "shapes-1"

    def __init__(self, split: str, count: int) -> None:
        self.name = f"builtin:shapes?split={split}"
        self._split, self._count = split, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return shapes.image(self._split, index)

    def digest(self, index: int) -> bytes:
        """A hash of the split and the index, which make the image."""
        return hashlib.sha256(f"{self._split} {index}".encode()).digest()

    def fingerprint(self, indices: Iterable[int]) -> str:
        """SHA-256 of what makes the images; draws none."""
        state = hashlib.sha256(f"{self.content} {self._split}".encode())
        for index in indices:
            state.update(f" {index}".encode())
        return state.hexdigest()


class Digits(ImageSource):
    """``builtin:digits``: 1797 scanned digits, 8x8 grey, enlarged to f32[3, 32, 32] in [0, 1]; needs scikit-learn."""

    shape = (3, _DIGITS_SIZE, _DIGITS_SIZE)
    classes = 10

    def __init__(self, split: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UsageError("builtin:digits needs scikit-learn: pip install scikit-learn") from error
        data, labels = load_digits(return_X_y=True)
        low, high = (round(part * len(labels)) for part in _DIGITS_PARTS[split])
        chosen = hashed_order(len(labels))[low:high]
        self.name = f"builtin:digits?split={split}"
        self._images = (data[chosen].reshape(-1, 8, 8) / 16).astype(np.float32)
        self._labels = labels[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        weights = _bilinear(8, _DIGITS_SIZE)  # eighths, and the pixels are sixteenths: exact in f32
        return np.repeat((weights @ self._images[index] @ weights.T)[None], 3, axis=0), int(self._labels[index])

    def label(self, index: int) -> int:
        """The digit."""
        return int(self._labels[index])


def open_builtin(name: str, options: Mapping[str, str], role: str) -> ImageSource:
    """``builtin:NAME``; ``split`` is the role unless given."""
    where = f"builtin:{name}"
    if name not in ("shapes", "digits"):
        suggestion = hint(name, ("shapes", "digits"))
        raise UsageError(f"{printable(where)}: unknown built-in, expected shapes, digits{suggestion}")
    given = options_of(options, ("split", "count"), where)
    split = given.get("split", role)
    if split not in shapes.SPLITS:
        known = tuple(shapes.SPLITS)
        raise UsageError(f"{where}: split={printable(split)}: expected {', '.join(known)}{hint(split, known)}")
    if name == "digits":
        return Digits(split)
    count = whole_number(given["count"], f"{where}: count") if "count" in given else _SHAPES_COUNT[split]
    if count > _MOST_SHAPES:
        raise UsageError(f"{where}: count={count}: expected {_MOST_SHAPES} or fewer")
    return Shapes(split, count)


def _bilinear(size: int, target: int) -> Image:
    """The f32[target, size] matrix that enlarges a row of pixels, with pixel centres aligned and borders repeated."""
    position = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    left = np.minimum(position.astype(int), size - 2)
    matrix = np.zeros((target, size), np.float32)
    matrix[np.arange(target), left] = 1 - (position - left)
    matrix[np.arange(target), left + 1] = position - left
    return matrix
