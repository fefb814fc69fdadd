"""The smallest search there is: a network in text, images in files, and the command in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantune.cli import compile as command
from quantune.cli import entry

TRIALS = 3

NETWORK = """
func.func @main(%x: tensor<1x3x8x8xf32>) -> tensor<1x4xf32> {{
  %w = arith.constant dense<"0x{weights}"> : tensor<4x3x8x8xf32>
  %zero = arith.constant dense<0.0> : tensor<1x4x1x1xf32>
  %0 = linalg.conv_2d_nchw_fchw {{dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}}
    ins(%x, %w : tensor<1x3x8x8xf32>, tensor<4x3x8x8xf32>) outs(%zero : tensor<1x4x1x1xf32>) -> tensor<1x4x1x1xf32>
  %1 = tensor.collapse_shape %0 [[0], [1, 2, 3]] : tensor<1x4x1x1xf32> into tensor<1x4xf32>
  return %1 : tensor<1x4xf32>
}}
"""


def make(folder: Path, *, images: int = 24, scale: float = 1.0) -> None:
    """Write net.mlir, calib.npz and eval.npz; the weights are of the size of ``scale``."""
    unit = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype("<f4")
    with np.errstate(over="ignore"):  # of 1e38 some are infinite
        weights = unit * np.float32(scale)
    (folder / "net.mlir").write_text(NETWORK.format(weights=weights.tobytes().hex()), encoding="utf-8")
    for seed, name in enumerate(("calib", "eval"), start=1):
        pixels = np.random.default_rng(seed).normal(size=(images, 3, 8, 8)).astype(np.float32)
        labels = np.einsum("nchw,kchw->nk", pixels, unit).argmax(axis=1)
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels)


def arguments(folder: Path, *more: str, out: Path | str | None = None) -> list[str]:
    """The command line of a search over TRIALS trials, without the command."""
    return [
        str(folder / "net.mlir"), "--calib", f"npz:{folder / 'calib.npz'}", "--eval", f"npz:{folder / 'eval.npz'}",
        "--max-trials", str(TRIALS), "--sampler", "random", "-q", "-o", str(out or folder / "out"), *more,
    ]  # fmt: skip


def search(folder: Path, *more: str, out: Path | str | None = None) -> int:
    """Run the search in this process and return its exit code."""
    return entry.run("quantune-compile", command.command, arguments(folder, *more, out=out))


def trials(out: Path) -> list[tuple[str, float]]:
    """What the report says was measured: configuration and accuracy, baselines too."""
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    measured: Sequence[dict[str, Any]] = [row for row in report["trials"] if row["measurement"]]
    return sorted((row["config"], row["measurement"]["accuracy"]) for row in measured)
