"""Images on disk: a folder of class folders, and NumPy archives."""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantune.data.base import Image, ImageSource, checked_image, options_of, whole_number
from quantune.data.labels import UNLABELLED, Label, any_label
from quantune.data.text import one_line, printable
from quantune.errors import UsageError, hint

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"))
_MEMORY = Path("/proc/meminfo")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_PREPROCESSING = {
    "resize": "256",
    "crop": "224",
    "mean": "0.485,0.456,0.406",
    "std": "0.229,0.224,0.225",
    "interpolation": "bilinear",
    "color": "rgb",
}
_COLORS = {"rgb": 3, "grey": 1}


class ImageFolder(ImageSource):
    """``imagefolder:DIR``: one sub-folder a class, in the order of their names; images at any depth below.

    The shorter side is resized, the centre cropped, and (x / 255 - mean) / std taken, as torchvision's presets for
    classification do (whose numbers are the defaults). Grey, palette, alpha, 16 bit and rotated (EXIF) files become
    upright RGB, or grey with ``color=grey``. ``resize=HxW`` takes both sides, ``crop=HxW`` a rectangle. The images of a
    folder that holds them directly have no label, or with ``masks=DIR`` the mask of the same name there, as the numbers
    that stand in its pixels, resized by its nearest ones.
    """

    content = "file"

    def __init__(self, folder: Path, options: Mapping[str, str], role: str) -> None:
        self.name = printable(f"imagefolder:{folder}")
        given = _PREPROCESSING | options_of(options, (*_PREPROCESSING, "masks"), self.name)
        self._resize, self._crop = (_sides(given[key], f"{self.name}: {key}") for key in ("resize", "crop"))
        if any(crop > side for crop, side in zip(_both(self._crop), _both(self._resize), strict=True)):
            raise UsageError(f"{self.name}: crop={given['crop']} is larger than resize={given['resize']}")
        if given["color"] not in _COLORS:
            known = hint(given["color"], _COLORS)
            raise UsageError(f"{self.name}: color={printable(given['color'])}: expected {', '.join(_COLORS)}{known}")
        self._channels = _COLORS[given["color"]]
        self._mean, self._std = (_channels(given[key], f"{self.name}: {key}") for key in ("mean", "std"))
        if self._channels == 1 and (len(self._mean), len(self._std)) != (1, 1):
            if "mean" in options or "std" in options:
                raise UsageError(f"{self.name}: mean and std of grey images are one number each, such as 0.5")
            self._mean, self._std = np.full(1, self._mean.mean()), np.full(1, self._std.mean())
        if not np.all(self._std > 0):
            raise UsageError(f"{self.name}: std={given['std']}: expected numbers above 0")
        self._interpolation = given["interpolation"]
        if self._interpolation not in INTERPOLATIONS:
            suggestion = hint(self._interpolation, INTERPOLATIONS)
            expected = ", ".join(INTERPOLATIONS)
            raise UsageError(
                f"{self.name}: interpolation={printable(self._interpolation)}: expected {expected}{suggestion}"
            )
        _require_pillow()
        self.recipe = " ".join(f"{key}={given[key]}" for key in _PREPROCESSING)
        self.shape = (self._channels, *_both(self._crop))
        self._files, self._labels, self.class_names = _scan(folder, self.name, role)
        self._masks = _masks(Path(given["masks"]), self._files, self.name) if "masks" in given else None
        if self._masks is not None and self.class_names:
            raise UsageError(f"{self.name}: has class folders and masks; expected images alone beside masks")
        self.classes = len(self.class_names) or None
        self._digests: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        pixels = self._read(index)
        image = (pixels.astype(np.float32) / np.float32(255) - self._mean) / self._std
        return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32), self.label(index)

    def label(self, index: int) -> Label:
        """The number of the class folder, or the mask i64[h, w]."""
        if self._masks is None:
            return self._labels[index]
        return self._shaped(self._masks[index], _plain, "nearest").astype(np.int64)

    def describe(self, index: int) -> str:
        """The file's path."""
        return printable(str(self._files[index]))

    def digest(self, index: int) -> bytes:
        """SHA-256 of the file; decodes nothing."""
        if index in self._digests:
            return self._digests[index]
        try:
            with self._files[index].open("rb") as stream:
                return self._digests.setdefault(index, hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UsageError(f"{self.describe(index)}: cannot be read ({error.strerror})") from error

    def _read(self, index: int) -> np.ndarray:
        """The resized and cropped u8[h, w, channels]."""
        if self._channels == 1:
            return self._shaped(self._files[index], _grey, self._interpolation)[..., None]
        return self._shaped(self._files[index], _rgb, self._interpolation)

    def _shaped(self, file: Path, convert: Callable[[PillowImage], PillowImage], interpolation: str) -> np.ndarray:
        """A file's pixels, converted, resized and cropped: [h, w, ...]."""
        from PIL import Image as Pillow
        from PIL import ImageOps

        try:
            # What Pillow warns of (a damaged EXIF record, many pixels) is an error below, or does not touch the pixels.
            with warnings.catch_warnings(action="ignore"), Pillow.open(file) as opened:
                _check_pixels(opened.size)  # before they are decoded
                image = convert(ImageOps.exif_transpose(opened))
                width, height = image.size
                if isinstance(self._resize, tuple):
                    size = self._resize[1], self._resize[0]
                else:
                    short = min(width, height)
                    size = (self._resize * width // short, self._resize * height // short)
                _check_pixels(size, f"{width}x{height} resized to ")
                image = image.resize(size, Pillow.Resampling[interpolation.upper()])
        except Exception as error:  # Pillow's decoders raise anything on damaged files
            reason = one_line(error) or type(error).__name__
            raise UsageError(f"{printable(str(file))}: not a readable image ({reason}); repair or remove it") from error
        high, wide = _both(self._crop)
        left, top = round((size[0] - wide) / 2), round((size[1] - high) / 2)
        return np.asarray(image.crop((left, top, left + wide, top + high)))


class Npz(ImageSource):
    """``npz:FILE``: ``images`` f32 or u8 [n, c, h, w] or [n, h, w, c] (u8 is scaled by 1/255) and ``labels`` [n, ...].

    Images are taken to be [n, h, w, c] where their last axis has 1 or 3 entries and the others have more than 4. Labels
    are class numbers, or arrays of numbers; they may be absent. The archive is read at once; nothing is unpickled.
    """

    def __init__(self, file: Path, options: Mapping[str, str], role: str) -> None:
        self.name = printable(f"npz:{file}")
        options_of(options, (), self.name)
        arrays, found = _load(file, self.name)
        if "images" not in arrays:
            raise UsageError(f"{self.name}: no array 'images', expected images and labels, found {found}")
        if role == "evaluation" and "labels" not in arrays and found != "images":
            raise UsageError(f"{self.name}: no array 'labels', expected images and labels, found {found}")
        images = arrays["images"]
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise UsageError(f"{self.name}: images of shape {images.shape}, expected [n, channels, height, width]")
        if images.dtype not in (np.dtype(np.float32), np.dtype(np.uint8)):
            raise UsageError(f"{self.name}: images of type {images.dtype}, expected f32, or u8 in [0, 255]")
        if len(images) == 0:
            raise UsageError(f"{self.name}: no images")
        labels = arrays.get("labels", np.full(len(images), UNLABELLED))
        if labels.shape[:1] != (len(images),) or labels.dtype.kind not in "biuf":
            wrong = f"labels of shape {labels.shape} and type {labels.dtype}"
            raise UsageError(f"{self.name}: {wrong}, expected [{len(images)}, ...] numbers")
        if images.shape[3] in _COLORS.values() and min(images.shape[1:3]) > 4:
            images = images.transpose(0, 3, 1, 2)
        self._images, self._labels = images, labels
        self.shape = (images.shape[1], images.shape[2], images.shape[3])
        self.classes = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        return checked_image(self._images[index], self.describe(index)), self.label(index)

    def label(self, index: int) -> Label:
        """The label beside the image."""
        return any_label(self._labels[index], self.describe(index))


def _scan(folder: Path, name: str, role: str) -> tuple[list[Path], list[int], list[str]]:
    """The image files in a fixed order, their labels, and the names of the classes."""
    try:
        if not folder.is_dir():
            raise UsageError(f"{name}: no such folder; expected one sub-folder of images for each class")
        visible = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        groups = [entry for entry in visible if entry.is_dir()]
        # Files only: reading a pipe or a device would wait for ever.
        direct = [entry for entry in visible if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        members = [
            sorted(file for file in group.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            for group in groups
        ]
    except OSError as error:
        where = printable(str(error.filename or folder))
        raise UsageError(f"{name}: {where} cannot be read ({error.strerror or one_line(error)})") from error
    if not groups and direct:
        return direct, [UNLABELLED] * len(direct), []
    if not groups:
        raise UsageError(f"{name}: no images; expected one sub-folder of images for each class")
    for group, files in zip(groups, members, strict=True):
        if not files:
            where, expected = printable(str(group)), ", ".join(sorted(SUFFIXES))
            raise UsageError(f"{where}: no images in this class folder; expected {expected} files")
    labels = [label for label, files in enumerate(members) for _ in files]
    return [file for files in members for file in files], labels, [printable(group.name) for group in groups]


def _masks(folder: Path, files: list[Path], name: str) -> list[Path]:
    """The mask of each image: the file of the same name, whatever its suffix."""
    try:
        known = {
            entry.stem: entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()
        }
    except OSError as error:
        where = printable(str(folder))
        raise UsageError(f"{name}: masks={where} cannot be read ({error.strerror or one_line(error)})") from error
    for file in files:
        if file.stem not in known:
            raise UsageError(f"{printable(str(file))}: no mask of this name in {printable(str(folder))}")
    return [known[file.stem] for file in files]


def _plain(image: PillowImage) -> PillowImage:
    """A mask, whose pixels are numbers: grey or palette ones as they are; another one has none."""
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise ValueError(f"a mask of mode {image.mode}, expected one number a pixel")
    return image


def _sides(text: str, what: str) -> int | tuple[int, int]:
    """A number of pixels, or HxW."""
    if "x" not in text:
        return whole_number(text, what)
    height, _, width = text.partition("x")
    return whole_number(height, what), whole_number(width, what)


def _both(sides: int | tuple[int, int]) -> tuple[int, int]:
    return sides if isinstance(sides, tuple) else (sides, sides)


def _check_pixels(size: tuple[int, int], what: str = "") -> None:
    """Refuse what would take gigabytes to decode or to resize."""
    from PIL import Image as Pillow

    if size[0] * size[1] > (Pillow.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{what}{size[0]}x{size[1]} is more than {Pillow.MAX_IMAGE_PIXELS} pixels")


def _rgb(image: PillowImage) -> PillowImage:
    """``image`` in RGB; 16 bit grey, which Pillow would saturate, keeps its upper byte."""
    from PIL import Image as Pillow

    if image.mode.startswith("I"):
        image = Pillow.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns
    return image.convert("RGB")


def _grey(image: PillowImage) -> PillowImage:
    return _rgb(image).convert("L")


def _channels(text: str, what: str) -> Image:
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        values = np.zeros(0, np.float32)
    if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
        raise UsageError(
            f"{what}={printable(text)}: expected three numbers such as 0.485,0.456,0.406, or one for all channels"
        )
    return values


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UsageError("imagefolder: needs Pillow: pip install 'quantune[images]'") from error


def _load(file: Path, name: str) -> tuple[dict[str, np.ndarray], str]:
    """The arrays ``images`` and ``labels`` as far as the archive has them, and the names of all its arrays."""
    try:
        if not file.is_file():
            raise UsageError(f"{name}: no such file")
        with file.open("rb") as stream:
            if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise UsageError(f"{name}: one bare array, expected an .npz archive with images and labels")
            with zipfile.ZipFile(stream) as archive:
                _check_memory(sum(archive.getinfo(key).file_size for key in _members(archive)))
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                found = printable(", ".join(sorted(arrays.files)))[:200] or "nothing"
                return {key: arrays[key] for key in ("images", "labels") if key in arrays.files}, found
    except UsageError:
        raise
    except Exception as error:  # zip, zlib, lzma and numpy's headers raise anything on damaged files
        reason = one_line(error) or type(error).__name__
        raise UsageError(f"{name}: not a readable .npz archive ({reason[:200]})") from error


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name in ("images.npy", "labels.npy", "images", "labels")]


def _check_memory(needed: int) -> None:
    """Refuse arrays that do not fit in memory; a reader stops at the size that the archive tells."""
    try:
        lines = _MEMORY.read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return  # another system: reading ends with a MemoryError there
    if needed > free:
        raise ValueError(f"its arrays take {needed} bytes, {free} are free in memory")
