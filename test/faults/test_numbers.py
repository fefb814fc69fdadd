"""Weights of any size: a search that ends well with a report that is JSON, or one line; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import tiny
from obligations import Obligation


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _search(
    scale: float, folder: Path, obligation: Callable[[str], Obligation], capsys: pytest.CaptureFixture[str]
) -> int:
    tiny.make(folder, scale=scale)
    code = tiny.search(folder)
    told = capsys.readouterr().err
    promise = obligation("weights of any size give a whole report, or one line")
    good = "Traceback" not in told and "internal error" not in told and told.count("\n") <= 1
    promise.tried(good and code in (0, 1, 2, 3), f"weights of {scale:g}: {code}: {told}")
    for name in ("report.json", "best.json") if code in (0, 3) else ():
        with promise.trial(f"weights of {scale:g}: {name}"):
            json.loads((folder / "out" / name).read_text(encoding="utf-8"), parse_constant=_refuse)
    return code


def test_weights_whose_squares_overflow(
    tmp_path: Path, obligation: Callable[[str], Obligation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _search(1e30, tmp_path, obligation, capsys) == 0


def test_weights_that_overflow_on_evaluation_images_alone(
    tmp_path: Path, obligation: Callable[[str], Obligation], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first measurement tells which image and which layer, and nothing is searched."""
    tiny.make(tmp_path, scale=1e36)
    with np.load(tmp_path / "eval.npz") as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    pixels[17] *= 100
    np.savez(tmp_path / "eval.npz", images=pixels, labels=labels)
    code = tiny.search(tmp_path)
    told = capsys.readouterr().err
    line = "eval.npz: layer 'conv' of the f32 model is not finite; check the weights and the image's scaling\n"
    promise = obligation("weights of any size give a whole report, or one line")
    promise.tried(code == 2 and told.count("\n") == 1 and told.endswith(line), f"{code}: {told}")
    promise.tried("evaluation image 17 of " in told, told)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e38, 1e36, 1e20, 1e-20, 1e-36, 1e-40, 1e-45, 0.0])
def test_weights_of_any_size(
    scale: float, tmp_path: Path, obligation: Callable[[str], Obligation], capsys: pytest.CaptureFixture[str]
) -> None:
    _search(scale, tmp_path, obligation, capsys)
