"""What the f16 network computes, compiled for the CPU, against numpy with the same roundings."""

from __future__ import annotations

import numpy as np
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes import Pipeline
from mlir_passes.ir.build import dense

WEIGHT = np.random.default_rng(1).normal(0, 1, (4, 2, 3, 3)).astype(np.float32)
SOURCE = """
func.func @main(%x: tensor<1x2x6x6xf32>) -> tensor<1x4x6x6xf32> {{
  %zero = arith.constant 0.0 : f32
  %p = tensor.pad %x low[0, 0, 1, 1] high[0, 0, 1, 1] {{
  ^bb0(%a: index, %b: index, %c: index, %d: index):
    tensor.yield %zero : f32
  }} : tensor<1x2x6x6xf32> to tensor<1x2x8x8xf32>
  %w = arith.constant {weight}
  %e = tensor.empty() : tensor<1x4x6x6xf32>
  %init = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x6x6xf32>) -> tensor<1x4x6x6xf32>
  %0 = linalg.conv_2d_nchw_fchw ins(%p, %w : tensor<1x2x8x8xf32>, tensor<4x2x3x3xf32>)
      outs(%init : tensor<1x4x6x6xf32>) -> tensor<1x4x6x6xf32>
  return %0 : tensor<1x4x6x6xf32>
}}
"""


def test_operands_round_to_f16_and_sums_stay_f32() -> None:
    with ir.Context():
        module = ir.Module.parse(SOURCE.format(weight=dense(WEIGHT)))
        Pipeline.parse("quantune-convert-to-f16").run(module)
        (result,) = load_on_cpu(compile_for_cpu(str(module)))(_image())
    np.testing.assert_allclose(result, _convolve(np.float16), rtol=0, atol=1e-5)
    assert np.abs(result - _convolve(np.float32)).max() > 1e-4


def _image() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (1, 2, 6, 6)).astype(np.float32)


def _convolve(storage: type[np.floating]) -> np.ndarray:
    padded = np.pad(_image(), ((0, 0), (0, 0), (1, 1), (1, 1))).astype(storage).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,fcij->nfhw", windows, WEIGHT.astype(storage).astype(np.float64))
