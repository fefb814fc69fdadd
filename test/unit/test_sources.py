from __future__ import annotations

import io
import os
import string
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refusal

from quantune.data import base
from quantune.data.labels import UNLABELLED
from quantune.data.sources import Reference, open_source
from quantune.errors import UsageError

SHARED = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)  # too_slow would depend on the machine's load
PLAIN = "?resize=8&crop=8&mean=0&std=1"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "expected builtin:shapes"),
        ("shapes", r"did you mean (builtin:)?shapes\?"),
        ("builtin:", "expected builtin:shapes"),
        ("builtin:shape", r"did you mean shapes\?"),
        ("builtin:shapes?splitt=train", r"unknown option 'splitt'.*did you mean split\?"),
        ("builtin:shapes?split=eval", r"split=eval: expected train, calibration, evaluation.*mean evaluation"),
        ("builtin:shapes?count=0", "count=0: expected a whole number"),
        ("builtin:shapes?count=999999999", "count=999999999: expected 1000000 or fewer"),
        ("builtin:shapes?count=-1", "count=-1"),
        ("builtin:shapes?count=two", "count=two"),
        ("builtin:shapes?count", "'count' is not of the form"),
        ("builtin:shapes?count=1&count=2", "'count' is given twice"),
        ("builtin:digits?count=9999", "count=9999, but there are 539 images"),
        ("imagefoldr:val", r"cannot import imagefoldr.*did you mean imagefolder\?"),
        ("image-folder:val", r"did you mean imagefolder\?"),
        ("imagefolder:/nowhere", "no such folder"),
        ("npz:/nowhere.npz", "no such file"),
        ("data.npz", r"did you mean npz:data.npz\?"),
    ],
)
def test_bad_references_are_refused_with_the_remedy(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(reference, "evaluation")
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_kind_is_recognized(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"did you mean imagefolder:{tmp_path}"):
        open_source(str(tmp_path), "evaluation")


@given(st.text(string.printable, max_size=30) | st.from_regex(r"(builtin|npz|imagefolder|a\.b):\w*\?(\w*=\w*&?)*"))
def test_parsing_raises_nothing_but_usage_errors(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError:
        return
    assert reference.text == text


def test_unknown_role_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="role 'test'"):
        open_source("builtin:shapes", "test")


def test_shapes_follow_role_split_and_count() -> None:
    calibration, evaluation = (open_source("builtin:shapes", role) for role in ("calibration", "evaluation"))
    assert (len(calibration), len(evaluation)) == (10_000, 2_000)
    assert evaluation.shape == (3, 64, 64)
    assert evaluation.classes == 16
    assert calibration.fingerprint(range(3)) != evaluation.fingerprint(range(3))
    other = open_source("builtin:shapes?split=evaluation&count=5", "calibration")
    assert len(other) == 5
    assert np.array_equal(other[4][0], evaluation[4][0])
    assert other.fingerprint(range(3)) == evaluation.fingerprint(range(3)) != evaluation.fingerprint([2, 1, 0])
    assert other.digest(1) == evaluation.digest(1) != calibration.digest(1)
    with pytest.raises(IndexError):
        other[5]


def test_digits() -> None:
    pytest.importorskip("sklearn")
    parts = [
        open_source(f"builtin:digits?split={split}", "evaluation") for split in ("train", "calibration", "evaluation")
    ]
    assert [len(part) for part in parts] == [1078, 180, 539]
    source = parts[2]
    image, label = source[3]
    assert image.shape == source.shape == (3, 32, 32)
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1
    assert np.array_equal(image[0], image[2])
    assert label == source.label(3)
    assert {source.label(i) for i in range(len(source))} == set(range(10))
    assert np.array_equal(image, open_source("builtin:digits", "evaluation")[3][0])


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        open_source("builtin:digits", "evaluation")


def test_count_takes_a_spread_out_part() -> None:
    whole, part = open_source("builtin:digits", "evaluation"), open_source("builtin:digits?count=20", "evaluation")
    order = base.hashed_order(len(whole))[:20]
    assert len(part) == 20
    assert np.array_equal(part[7][0], whole[order[7]][0])
    assert part.label(7) == whole.label(order[7])
    assert part.digest(7) == whole.digest(order[7])
    assert part.describe(7) == whole.describe(order[7])
    assert part.fingerprint([0, 1]) == whole.fingerprint(order[:2])
    assert max(order) > 200


def write(file: Path, **arrays: np.ndarray) -> str:
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return f"npz:{file}"


def test_npz(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 6), np.uint8)
    labels = np.array([3, 1, 4, 1, 5], np.int32)
    integers = open_source(write(tmp_path / "u8.npz", images=pixels, labels=labels), "evaluation")
    floats = open_source(write(tmp_path / "f32.npz", images=pixels / np.float32(255), labels=labels), "evaluation")
    assert len(integers) == 5
    assert integers.shape == (1, 4, 6)
    assert [integers.label(i) for i in range(5)] == labels.tolist()
    assert np.array_equal(integers[2][0], floats[2][0])
    assert integers.fingerprint(range(5)) == floats.fingerprint(range(5))
    unlabelled = open_source(write(tmp_path / "u.npz", images=pixels), "calibration")
    assert unlabelled.label(0) == UNLABELLED


GOOD = np.zeros((2, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(2, int)}, "no array 'images'.*found labels"),
        ({"images": GOOD, "label": np.zeros(2, int)}, "no array 'labels'.*found images, label"),
        ({"images": GOOD[0], "labels": np.zeros(3, int)}, r"shape \(3, 4, 4\)"),
        ({"images": GOOD[:0], "labels": np.zeros(0, int)}, "no images"),
        ({"images": GOOD[:, :0], "labels": np.zeros(2, int)}, r"shape \(2, 0, 4, 4\)"),
        ({"images": GOOD.astype(np.float64), "labels": np.zeros(2, int)}, "type float64"),
        ({"images": GOOD, "labels": np.zeros(3, int)}, r"labels of shape \(3,\).*expected \[2, \.\.\.\]"),
        ({"images": GOOD, "labels": np.array(["a", "b"])}, "type <U1, expected"),
        ({"images": np.array([{}]), "labels": np.zeros(1, int)}, "not a readable .npz archive"),
    ],
)
def test_bad_archives_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(write(tmp_path / "x.npz", **arrays), "evaluation")
    assert "\n" not in str(caught.value)


def test_archive_with_nan_names_the_image(tmp_path: Path) -> None:
    images = GOOD.copy()
    images[1, 0, 0, :2] = np.nan, np.inf
    source = open_source(write(tmp_path / "x.npz", images=images, labels=np.zeros(2, int)), "evaluation")
    with pytest.raises(UsageError, match=r"x\.npz, image 1: 2 of 48 values"):
        source[1]


def test_a_bare_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GOOD)
    with pytest.raises(UsageError, match="one bare array"):
        open_source(f"npz:{tmp_path / 'x.npy'}", "evaluation")


@settings(max_examples=60, suppress_health_check=SHARED)
@given(st.data())
def test_damaged_archives_raise_usage_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    stream = io.BytesIO()
    save(stream, images=np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4), labels=np.zeros(2, int))
    damaged = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    file = tmp_path / "x.npz"
    file.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    message = refusal(lambda: open_source(f"npz:{file}", "evaluation")[0])
    assert message is None or "x.npz" in message


MODULE = """
import numpy as np

class Items:
    classes = 7
    def __len__(self): return 4
    def __getitem__(self, i):
        if i == 3: raise RuntimeError("disk\\ngone")
        return np.full((1, 2, 2), i, np.float64 if i < 2 else np.int64), i

def good(): return Items()
def pairs(): return [(np.zeros((3, 2, 2), np.uint8), 1), (np.zeros((3, 2, 3), np.uint8), 1), (0, 1), (1,), ("x", 1)]
def bad_label(): return [(np.zeros((3, 2, 2), np.uint8), "dog")]
def empty(): return []
def nothing(): return None
def failing(): raise KeyError("no data here")
def needs(argument): return argument
constant = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_data_{zlib.crc32(os.fsencode(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_factory(module: str) -> None:
    source = open_source(f"{module}:good", "evaluation")
    assert len(source) == 4
    assert source.shape == (1, 2, 2)
    assert source.classes == 7
    image, label = source[1]
    assert image.dtype == np.float32
    assert label == 1
    with pytest.raises(UsageError, match=r"image 2: type int64, expected f32"):
        source[2]
    with pytest.raises(UsageError, match=r"image 3: RuntimeError: disk gone"):
        source[3]
    with pytest.raises(IndexError):
        source[4]
    assert len(open_source(f"{module}:good?count=2", "evaluation")) == 2


def test_factory_items_are_checked(module: str) -> None:
    source = open_source(f"{module}:pairs", "evaluation")
    for index, message in (
        (1, r"shape \(3, 2, 3\), but the first"),
        (2, r"shape \(\)"),
        (3, "ValueError"),
        (4, r"shape \(\)"),
    ):
        with pytest.raises(UsageError, match=f"image {index}: {message}"):
            source[index]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("bad_label", "label 'dog'"),
        ("empty", "got no images"),
        ("nothing", "got NoneType"),
        ("failing", r"failing\(\) raised KeyError: 'no data here'"),
        ("needs", r"needs\(\) raised TypeError"),
        ("constant", "'constant' is int"),
        ("goood", r"has no 'goood' \(did you mean good\?\)"),
        ("good?resize=3", "unknown option 'resize', expected count$"),
    ],
)
def test_bad_factories_are_refused(module: str, factory: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(f"{module}:{factory}", "evaluation")


def test_import_leaves_the_search_path_alone(module: str) -> None:
    before = list(sys.path)
    open_source(f"{module}:good", "evaluation")
    assert sys.path == before
    with pytest.raises(UsageError, match="cannot import no_such_module"):
        open_source("no_such_module.at.all:make", "evaluation")


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.victim,)


def test_objects_in_an_archive_are_refused(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "x.npz"
    objects = np.array([Exploit(victim)] * 2, dtype=object)
    for arrays in ({"images": objects}, {"images": np.zeros((2, 1, 4, 4), np.float32), "labels": objects}):
        np.savez(path, allow_pickle=True, **arrays)
        assert refusal(lambda: open_source(f"npz:{path}", "evaluation")) is not None
    assert not victim.exists()
    np.load(path, allow_pickle=True)["labels"]  # it would have been
    assert victim.exists()
