"""Metrics against plain loops, and their pseudo-values against leaving images out one by one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune import metrics
from quantune.errors import UsageError
from quantune.metrics.base import pseudo_values, value_of

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(7, 6)).astype(np.float32)
REFERENCE = LOGITS + RNG.normal(size=LOGITS.shape).astype(np.float32) / 4
LABELS = RNG.integers(0, 6, 7)
MAPS = RNG.normal(size=(4, 3, 5, 2)).astype(np.float32)
MASKS = RNG.integers(0, 3, (4, 5, 2))


def test_top_k_counts_the_images_whose_class_is_among_the_first() -> None:
    for k in (1, 5):
        right = [
            label in sorted(range(6), key=lambda c: (-row[c], c))[:k] for row, label in zip(LOGITS, LABELS, strict=True)
        ]
        assert metrics.parse(f"top-{k}").rows(LOGITS, LABELS, None)[:, 0].tolist() == right


def test_equal_outputs_are_ranked_by_class_number() -> None:
    tied = np.zeros((2, 7), np.float32)
    assert metrics.parse("top-1").rows(tied, np.array([0, 1]), None)[:, 0].tolist() == [1, 0]
    assert metrics.parse("top-5").rows(tied, np.array([4, 5]), None)[:, 0].tolist() == [1, 0]


def test_mean_iou_is_that_of_all_images_together() -> None:
    masks = MASKS.copy()
    masks[0, 0, 0], masks[1, 2, 1] = 255, -1
    found, shares = MAPS.argmax(axis=1), []
    for number in range(3):
        both = either = 0
        for image, y, x in np.ndindex(masks.shape):
            if masks[image, y, x] in (0, 1, 2):
                a, b = found[image, y, x] == number, masks[image, y, x] == number
                both, either = both + (a and b), either + (a or b)
        shares.append(both / either)
    metric = metrics.parse("mIoU")
    assert value_of(metric, metric.rows(MAPS, masks, None)) == pytest.approx(np.mean(shares))


def test_a_class_that_is_nowhere_does_not_count() -> None:
    metric, outputs = metrics.parse("mIoU"), np.zeros((1, 4, 2, 2), np.float32)
    outputs[0, 1] = 1
    assert value_of(metric, metric.rows(outputs, np.ones((1, 2, 2), int), None)) == 1.0
    assert value_of(metric, metric.rows(outputs, np.full((1, 2, 2), 255), None)) == 0.0


def test_a_mask_with_a_class_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="a mask has class 3, the model 3 classes"):
        metrics.parse("mIoU").rows(MAPS, np.full((4, 5, 2), 3), None)


def test_errors_against_labels_are_those_of_all_images() -> None:
    labels = RNG.normal(size=MAPS.shape)
    squares = [(float(a) - float(b)) ** 2 for a, b in zip(MAPS.flat, labels.flat, strict=True)]
    error = sum(squares) / len(squares)
    for name, expected in (("mse", error), ("psnr", -10 * math.log10(error))):
        metric = metrics.parse(name)
        assert value_of(metric, metric.rows(MAPS, labels, None)) == pytest.approx(expected)
    psnr = metrics.parse("psnr")
    assert value_of(psnr, psnr.rows(MAPS, MAPS, None)) == pytest.approx(150)


def test_distances_to_f32() -> None:
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(axis=1, keepdims=True) for x in (REFERENCE, LOGITS))
    signal, noise = float((REFERENCE.astype(float) ** 2).sum()), float(((REFERENCE - LOGITS).astype(float) ** 2).sum())
    angles = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(LOGITS, REFERENCE, strict=True)]
    expected = {
        "kl": (p * np.log(p / q)).sum(axis=1).mean(),
        "sqnr": 10 * math.log10(signal / noise),
        "cosine": np.mean(angles),
    }
    for name, value in expected.items():
        metric = metrics.parse(name)
        assert value_of(metric, metric.rows(LOGITS, None, REFERENCE)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("name", "best"), [("kl", 0.0), ("sqnr", 100.0), ("cosine", 1.0)])
def test_f32_is_as_near_to_itself_as_can_be(name: str, best: float) -> None:
    metric = metrics.parse(name)
    assert value_of(metric, metric.rows(MAPS, None, MAPS)) == pytest.approx(best)
    silent = np.zeros_like(MAPS)
    assert value_of(metric, metric.rows(silent, None, silent)) == pytest.approx(0.0 if name == "sqnr" else best)


def test_a_divergence_is_of_classes_at_each_place() -> None:
    metric, flat = metrics.parse("kl"), lambda x: np.moveaxis(x, 1, -1).reshape(-1, 3)
    other = MAPS[::-1].copy()
    dense = value_of(metric, metric.rows(MAPS, None, other))
    assert dense == pytest.approx(value_of(metric, metric.rows(flat(MAPS), None, flat(other))))


def _measured(name: str, images: int, seed: int) -> tuple[metrics.Metric, np.ndarray]:
    metric, rng = metrics.parse(name), np.random.default_rng(seed)
    outputs, reference = rng.normal(size=(2, images, 6, 2, 2)).astype(np.float32)
    if name.startswith("top"):
        return metric, metric.rows(outputs[..., 0, 0], rng.integers(0, 6, images), None)
    labels = rng.integers(0, 6, (images, 2, 2)) if name == "mIoU" else reference
    return metric, metric.rows(outputs, labels, reference)


@given(name=st.sampled_from(sorted(metrics.METRICS)), images=st.integers(2, 9), seed=st.integers(0, 99))
def test_pseudo_values_are_those_of_leaving_one_out(name: str, images: int, seed: int) -> None:
    metric, rows = _measured(name, images, seed)
    whole = value_of(metric, rows)
    expected = [images * whole - (images - 1) * value_of(metric, np.delete(rows, i, axis=0)) for i in range(images)]
    np.testing.assert_allclose(pseudo_values(metric, rows), expected, rtol=1e-6, atol=1e-6)


def test_pseudo_values_of_a_mean_are_the_numbers_themselves() -> None:
    metric, rows = _measured("kl", 8, 1)
    np.testing.assert_allclose(pseudo_values(metric, rows), rows[:, 0])
    assert pseudo_values(metric, rows[:1]) == pytest.approx(rows[:1, 0])


@pytest.mark.parametrize(
    ("name", "shape", "label", "complaint"),
    [
        ("top-1", (1,), (), "gives one number an image"),
        ("top-5", (5,), (), "gives 5 numbers an image, expected 6 classes"),
        ("top-1", (3, 4, 4), (), r"have shape \(3, 4, 4\), expected one per class"),
        ("top-1", (3,), None, "have no labels, expected class numbers"),
        ("top-1", (3,), (4, 4), r"labels of shape \(4, 4\)"),
        ("mIoU", (3,), (), "expected \\(classes, h, w\\)"),
        ("mIoU", (1, 4, 4), (4, 4), "expected \\(classes, h, w\\)"),
        ("mIoU", (3, 4, 4), (4, 5), r"expected masks of shape \(4, 4\)"),
        ("mIoU", (3, 4, 4), None, "have no labels"),
        ("mse", (3, 4, 4), (4, 4), "labels of shape"),
        ("psnr", (3, 4, 4), None, "the images none"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, shape: tuple, label: tuple | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        metrics.parse(name).check(shape, label)


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [("top-1", (2,), ()), ("mIoU", (2, 4, 5), (4, 5)), ("mse", (3, 4), (3, 4)), ("kl", (3, 4, 4), None)],
)
def test_what_fits_is_taken(name: str, shape: tuple, label: tuple | None) -> None:
    metrics.parse(name).check(shape, label)


def test_values_are_told_in_their_units() -> None:
    texts = {"top-1": "12.35%", "mIoU": "12.35%", "psnr": "0.1235 dB", "kl": "0.1235 nats", "mse": "0.1235"}
    assert {name: metrics.parse(name).text(0.123456) for name in texts} == texts
    assert metrics.parse("mse").better(0.1, 0.2)
    assert not metrics.parse("psnr").better(0.1, 0.2)


OWN = """
import numpy as np
def near(outputs, labels): return np.abs(outputs.sum(axis=1) - labels)
near.higher = False
def far(outputs, labels): return np.abs(outputs.sum(axis=1))
def raises(outputs, labels): raise ValueError("a\\nb")
def scalar(outputs, labels): return 1.0
def nan(outputs, labels): return np.full(len(outputs), np.nan)
value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_metrics_{abs(hash(tmp_path.name)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_of_the_user_is_averaged_over_images(own: str) -> None:
    metric = metrics.parse(f"{own}:near")
    assert not metric.higher
    expected = np.abs(LOGITS.sum(axis=1) - LABELS).mean()
    assert value_of(metric, metric.rows(LOGITS, LABELS, None)) == pytest.approx(expected, rel=1e-6)
    assert metrics.parse(f"{own}:far").higher
    assert metric.identity() != metrics.parse(f"{own}:far").identity()
    assert metric.identity() == metrics.parse(f"{own}:near").identity()


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("raises", "raised ValueError: a b"),
        ("scalar", r"gave shape \(\), expected one number"),
        ("nan", "NaN or infinite"),
    ],
)
def test_a_function_of_the_user_that_gives_something_else(own: str, function: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        metrics.parse(f"{own}:{function}").rows(LOGITS, LABELS, None)


def test_unknown_metrics_are_refused(own: str) -> None:
    for text, complaint in (
        ("accuracy", "metric 'accuracy': expected top-1, top-5, mIoU"),
        (f"{own}:nea", "has no 'nea' \\(did you mean near"),
        (f"{own}:value", "'value' is int, expected a function"),
        ("no_such_module_here:f", "cannot import"),
    ):
        with pytest.raises(UsageError, match=complaint):
            metrics.parse(text)
