"""Readers of images meet foreign files and names: whatever comes, a UsageError of one line is all that leaves them."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from quantune.data.choice import calibration_images
from quantune.data.sources import Items, Reference, open_source
from quantune.data.text import printable

PLAIN = "?resize=8&crop=8&mean=0&std=1"


def archive() -> bytes:
    stream = io.BytesIO()
    save = np.savez_compressed if random.getrandbits(1) else np.savez
    save(stream, images=np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4), labels=np.zeros(2, int))
    return stream.getvalue()


def picture() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(stream, random.choice(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]))
    return stream.getvalue()


def mutated(data: bytes) -> bytes:
    """A few bytes changed, a piece cut out, doubled or moved, a length made absurd."""
    damaged = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(damaged) + 1)
        kind = random.randrange(6)
        if kind == 0 and damaged:
            damaged[at % len(damaged)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del damaged[at : at + random.randrange(1, 40)]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + random.randrange(1, 40)]
        elif kind == 3:
            damaged[at : at + 4] = struct.pack("<I", random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
        elif kind == 4:
            damaged[at : at + 4] = struct.pack(">I", random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
        else:
            del damaged[at:]
        if not damaged:
            break
    return bytes(damaged)


NAMES = [
    "",
    "x",
    "\0",
    "\ud800",
    "\udcff",
    "a" * 300,
    "../" * 400,
    "~nobody-of-this-name",
    "é\n",
    " ",
    "/dev/zero",
    "loop",
]
OPTIONS = [
    "",
    "?",
    "?count=3",
    "?count=\u0663",
    "?crop=1" + "0" * 30,
    "?mean=nan",
    "?resize=8&crop=8",
    "?\n=1",
    "?count",
]
KINDS = ["npz:", "imagefolder:", "builtin:", "builtin:shapes", "builtin:digits", "os:", "a.b:c", "", ":", "\ud800:"]


def readings(folder: Path, count: int, seed: int) -> Iterator[Callable[[], object]]:
    """``count`` archives, pictures and references to read, each written just before it is handed out."""
    random.seed(seed)
    (folder / "set" / "a").mkdir(parents=True)
    loop = folder / "loop"
    loop.symlink_to(loop)
    for i in range(count):
        if i % 3 == 0:
            (folder / "x.npz").write_bytes(mutated(archive()))
            yield lambda: [open_source(f"npz:{folder}/x.npz", "evaluation")[j] for j in range(2)]
        elif i % 3 == 1:
            (folder / "set" / "a" / "x.png").write_bytes(mutated(picture()))
            yield lambda: open_source(f"imagefolder:{folder}/set{PLAIN}", "evaluation")[0]
        else:
            kind, name, options = (random.choice(lot) for lot in (KINDS, NAMES, OPTIONS))
            text = kind + name.replace("loop", str(loop)) + options
            yield lambda text=text: _referred(text)


def _referred(text: str) -> None:
    Reference.parse(text).origin("evaluation")
    calibration_images(text) if "builtin:shapes" in text and "count=3" in text else open_source(text, "calibration")


def test_mutated_files_and_names(tmp_path: Path) -> None:
    assert sum(refusal(read) is not None for read in readings(tmp_path, 150, seed=0)) > 75


def member(name: str, header: bytes, body: bytes = b"") -> tuple[str, bytes]:
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body
    return f"{name}.npy", data


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3, 8, 8)}\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 8, 8)}\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n",
        b"{'descr': 'zzz', 'fortran_order': False, 'shape': (1,)}\n",
        b"(" * 9000,
        b"{'descr': " + b"[" * 300 + b"\n",
        b"\xff\xfe\n",
    ],
)
def test_absurd_headers(tmp_path: Path, header: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as made:
        made.writestr(*member("images", header))
    message = refusal(lambda: open_source(f"npz:{tmp_path}/x.npz", "calibration"))
    assert message is not None
    assert "not a readable .npz archive" in message


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantune.data import files

    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((4, 3, 64, 64), np.float32), labels=np.zeros(4, int))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable: 100 kB\n")
    monkeypatch.setattr(files, "_MEMORY", meminfo)
    message = refusal(lambda: open_source(f"npz:{tmp_path}/x.npz", "evaluation"))
    assert message is not None
    assert "102400 are free in memory" in message


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 0, 0, 0, 0)  # between Pillow's own warning and its refusal
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(data)
    message = refusal(lambda: open_source(f"imagefolder:{tmp_path}{PLAIN}", "evaluation")[0])
    assert message is not None
    assert "12000x9000 is more than" in message


def test_pipes_devices_and_loops_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "loop.png").symlink_to(tmp_path / "a" / "loop.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    message = refusal(lambda: open_source(f"imagefolder:{tmp_path}", "evaluation"))
    assert message is not None
    assert "no images in this class folder" in message
    for name, line in (("pipe", "no such file"), ("zero", "no such file"), ("loop", "no usable path")):
        said = refusal(lambda name=name: open_source(f"npz:{tmp_path}/a/{name}.png", "calibration"))
        assert said is not None
        assert line in said


def test_names_that_break_lines_or_cannot_be_encoded_are_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    source = open_source(f"imagefolder:{tmp_path}", "evaluation")
    message = refusal(lambda: source[0])
    assert message is not None
    assert r"a\nb/\udcff.png: not a readable image" in message
    assert source.fingerprint([0])
    assert printable("plain ü") == "plain ü"


class Hostile:
    """A sequence whose every part may fail."""

    def __init__(self, **parts: Callable[[], object]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return self._parts.get("length", lambda: 2)()  # type: ignore[return-value]

    def __getitem__(self, index: int) -> object:
        return self._parts.get("item", lambda: (np.zeros((1, 2, 2)), 0))()

    @property
    def classes(self) -> object:
        return self._parts.get("classes", lambda: 3)()


def fail(error: BaseException) -> Callable[[], object]:
    def raising() -> object:
        raise error

    return raising


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"length": fail(MemoryError("all\nof it"))}, "its length raised MemoryError: all of it"),
        ({"length": lambda: 10**12}, "1000000000000 images, expected 20000000 or fewer"),
        ({"length": lambda: -1}, "its length raised ValueError"),
        ({"item": fail(RecursionError("deep"))}, "image 0: RecursionError: deep; expected (image, label)"),
        ({"item": lambda: (Hostile(length=fail(OSError("x"))), 0)}, "image 0: "),
        ({"item": lambda: (np.zeros((1, 2, 2)), Hostile(item=fail(OSError("a\nb"))))}, "image 0: label"),
        ({"item": lambda: ("\ud800", 0)}, "image 0: shape ()"),
    ],
)
def test_hostile_objects(parts: dict[str, Callable[[], object]], line: str) -> None:
    message = refusal(lambda: Items(Hostile(**parts), "images"))
    assert message is not None
    assert line in message


def test_a_number_of_classes_that_cannot_be_read_is_none() -> None:
    for classes in (fail(OSError("x")), lambda: True, lambda: -3, lambda: "3"):
        assert Items(Hostile(classes=classes), "images").classes is None
    assert Items(Hostile(), "images").classes == 3


def test_a_module_that_ends_the_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_at_once.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "leaving_later.py").write_text("import sys\ndef images():\n    sys.exit('no\\nmore')\n")
    monkeypatch.chdir(tmp_path)
    for name, line in (
        ("leaving_at_once", "cannot import leaving_at_once: 3"),
        ("leaving_later", "images() raised SystemExit: no more"),
    ):
        said = refusal(lambda name=name: open_source(f"{name}:images", "evaluation"))
        assert said is not None
        assert line in said
