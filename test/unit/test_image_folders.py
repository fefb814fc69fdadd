"""Folders of pictures as data: their order, their recipe, and damaged ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refusal

from quantune.data.labels import UNLABELLED
from quantune.data.sources import open_source
from quantune.errors import UsageError

SHARED = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)  # too_slow would depend on the machine's load
PLAIN = "?resize=8&crop=8&mean=0&std=1"


def picture(seed: int = 0, size: tuple[int, int] = (12, 10)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(
        ("cat/b.png", "cat/a.png", "ant/x.PNG", "ant/deep/y.jpg", "ant/note.txt", ".git/z.png")
    ):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            file.write_text("no image")
        else:
            picture(seed).save(file)
    return tmp_path / "set"


def test_imagefolder_order_labels_and_names(folder: Path) -> None:
    source = open_source(f"imagefolder:{folder}{PLAIN}", "evaluation")
    assert [Path(source.describe(i)).relative_to(folder).as_posix() for i in range(len(source))] == [
        "ant/deep/y.jpg",
        "ant/x.PNG",
        "cat/a.png",
        "cat/b.png",
    ]
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert source.classes == 2
    image, label = source[2]
    assert image.shape == (3, 8, 8)
    assert image.dtype == np.float32
    assert label == 1
    assert 0 <= image.min() < image.max() <= 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 31), (31, 40), (64, 64), (33, 32)])
def test_imagefolder_equals_torchvision(tmp_path: Path, interpolation: str, size: tuple[int, int]) -> None:
    from quantune.torchvision_compat import torchvision

    transforms = torchvision().transforms
    (tmp_path / "a").mkdir()
    picture(3, size).save(tmp_path / "a" / "p.png")
    source = open_source(f"imagefolder:{tmp_path}?resize=32&crop=28&interpolation={interpolation}", "evaluation")
    expected = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(picture(3, size))
    np.testing.assert_allclose(source[0][0], expected.numpy(), atol=1e-6)


def test_imagefolder_reads_every_mode_upright(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "a" / "0-grey.png")
    Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "a" / "1-grey16.png")
    Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 7)], -1)).save(tmp_path / "a" / "2-rgba.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "a" / "3-palette.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "a" / "4-la.png")
    turned = Image.fromarray(np.rot90(grey, 1).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "a" / "5-turned.png", exif=exif)
    palette = Image.fromarray(grey).convert("P")
    palette.info["transparency"] = b"\x00\xff"
    palette.save(tmp_path / "a" / "6-transparent.png", transparency=b"\x00\xff")
    source = open_source(f"imagefolder:{tmp_path}{PLAIN}", "evaluation")
    for i in range(len(source)):
        for channel in source[i][0]:
            np.testing.assert_allclose(channel, grey / np.float32(255), atol=1e-6, err_msg=source.describe(i))


def test_imagefolder_digest_is_the_file_and_the_recipe_counts(folder: Path) -> None:
    one = open_source(f"imagefolder:{folder}{PLAIN}", "evaluation")
    two = open_source(f"imagefolder:{folder}?resize=8&crop=6&mean=0&std=1", "evaluation")
    assert one.digest(0) == two.digest(0) != one.digest(1)
    assert one.fingerprint([0]) != two.fingerprint([0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?resise=3", r"did you mean resize\?"),
        ("?resize=8&crop=9", "crop=9 is larger than resize=8"),
        ("?resize=0", "resize=0"),
        ("?mean=1,2", "mean=1,2: expected three numbers"),
        ("?mean=nan", "mean=nan"),
        ("?std=0", "std=0: expected numbers above 0"),
        ("?interpolation=biliner", r"did you mean bilinear\?"),
    ],
)
def test_bad_imagefolder_options_are_refused(folder: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(f"imagefolder:{folder}{options}", "evaluation")


def test_folders_without_images_are_refused(folder: Path) -> None:
    (folder / "bee").mkdir()
    with pytest.raises(UsageError, match=r"bee: no images in this class folder"):
        open_source(f"imagefolder:{folder}", "evaluation")
    with pytest.raises(UsageError, match=r"no images; expected one sub-folder"):
        open_source(f"imagefolder:{folder}/bee", "calibration")
    for role in ("calibration", "evaluation"):
        flat = open_source(f"imagefolder:{folder}/cat", role)
        assert len(flat) == 2
        assert flat.label(0) == UNLABELLED
        assert flat.classes is None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=40, suppress_health_check=SHARED)
@given(st.data())
def test_damaged_images_are_named(folder: Path, data: st.DataObject) -> None:
    stream = io.BytesIO()
    picture().save(stream, data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"])))
    damaged = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    (folder / "cat" / "a.png").write_bytes(bytes(damaged[:cut]))
    source = open_source(f"imagefolder:{folder}{PLAIN}", "evaluation")
    message = refusal(lambda: source[2])
    assert message is None or "a.png: not a readable image" in message


def test_a_file_that_vanished_is_named(folder: Path) -> None:
    source = open_source(f"imagefolder:{folder}{PLAIN}", "evaluation")
    (folder / "cat" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"a\.png: cannot be read"):
        source.digest(2)
    with pytest.raises(UsageError, match=r"a\.png: not a readable image"):
        source[2]
