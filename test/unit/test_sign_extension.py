"""The rewritten sign extension is the same function, and makes Vulkan compute what it otherwise gets wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes import Pipeline

PIPELINE = "linalg-generalize-named-ops,quantune-vulkan-sign-extension"
TOOLS = Path(sys.executable).parent
# A 1x1 convolution with channels first: one of the shapes that Vulkan code generation zero-extends.
SOURCE = """
func.func @main(%x: tensor<1x16x16x16xi8>, %w: tensor<64x16x1x1xi8>) -> tensor<1x64x16x16xi32> {
  %zero = arith.constant 0 : i32
  %e = tensor.empty() : tensor<1x64x16x16xi32>
  %init = linalg.fill ins(%zero : i32) outs(%e : tensor<1x64x16x16xi32>) -> tensor<1x64x16x16xi32>
  %0 = linalg.conv_2d_nchw_fchw ins(%x, %w : tensor<1x16x16x16xi8>, tensor<64x16x1x1xi8>)
      outs(%init : tensor<1x64x16x16xi32>) -> tensor<1x64x16x16xi32>
  return %0 : tensor<1x64x16x16xi32>
}
"""


def _rewritten() -> str:
    with ir.Context():
        module = ir.Module.parse(SOURCE)
        Pipeline.parse(PIPELINE).run(module)
        return str(module)


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    image, weight = (generator.integers(-128, 128, shape, np.int8) for shape in ((1, 16, 16, 16), (64, 16, 1, 1)))
    return image, weight


def _expected() -> np.ndarray:
    image, weight = _inputs()
    return np.einsum("oc,nchw->nohw", weight[:, :, 0, 0].astype(np.int32), image.astype(np.int32))


def test_same_integers_on_the_cpu() -> None:
    (result,) = load_on_cpu(compile_for_cpu(_rewritten()))(*_inputs())
    np.testing.assert_array_equal(result, _expected())


def _on_vulkan(text: str, directory: Path) -> np.ndarray:
    (directory / "in.mlir").write_text(text)
    for name, array in zip("xw", _inputs(), strict=True):
        np.save(directory / f"{name}.npy", array)
    flags = ["--iree-hal-target-device=vulkan", "--iree-vulkan-target=llvmpipe", "-o", "out.vmfb"]
    run = ["--module=out.vmfb", "--device=vulkan", "--function=main", "--input=@x.npy", "--input=@w.npy"]
    for command in ([TOOLS / "iree-compile", "in.mlir", *flags], [TOOLS / "iree-run-module", *run, "--output=@y.npy"]):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return np.load(directory / "y.npy")


def _has_llvmpipe() -> bool:
    """Whether the Vulkan device is Mesa's software renderer, for which alone these artifacts are compiled."""
    listing = subprocess.run([TOOLS / "iree-run-module", "--dump_devices"], capture_output=True, text=True, check=False)
    return "llvmpipe" in listing.stdout


@pytest.mark.vulkan
def test_exact_on_vulkan(tmp_path: Path) -> None:
    if not _has_llvmpipe():
        pytest.skip("no llvmpipe Vulkan device on this machine")
    np.testing.assert_array_equal(_on_vulkan(_rewritten(), tmp_path), _expected())


@pytest.mark.vulkan
@pytest.mark.xfail(
    reason="IREE 3.13 zero-extends; when this passes, quantune-vulkan-sign-extension can go", strict=True
)
def test_plain_extension_on_vulkan(tmp_path: Path) -> None:
    if not _has_llvmpipe():
        pytest.skip("no llvmpipe Vulkan device on this machine")
    np.testing.assert_array_equal(_on_vulkan(SOURCE, tmp_path), _expected())
