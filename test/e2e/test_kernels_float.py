"""f32 layers as kernels for CPUs compute what numpy computes, but for the order of sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_layers import IMAGES, LOOPS, MAPS, RUNNABLE, SEEDS, dense, run
from numpy.lib.stride_tricks import sliding_window_view


@pytest.mark.parametrize("variant", RUNNABLE)
@given(seed=SEEDS, c=st.sampled_from([3, 16, 58]), co=st.sampled_from([16, 24, 58]), size=st.integers(3, 17), n=IMAGES)
@settings(max_examples=2, deadline=None, derandomize=True)
def test_float_layer_with_clamps_and_residual(variant: str, seed: int, c: int, co: int, size: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, r = (rng.standard_normal((n, size, size, channels)).astype(np.float32) for channels in (c, co))
    weight, bias = rng.standard_normal((3, 3, c, co)).astype(np.float32), rng.standard_normal(co).astype(np.float32)
    r = np.ascontiguousarray(r[:, 1:-1, 1:-1])
    y = f"tensor<{n}x{size - 2}x{size - 2}x{co}xf32>"
    parallel = f"indexing_maps = [#id, #id], {LOOPS}"

    def bounded(name: str, source: str, bound: str, comparison: str) -> str:
        return f"""
%{name} = linalg.generic {{{parallel}}} ins(%{source} : {y}) outs(%e : {y}) {{
^bb0(%v: f32, %old: f32):
  %holds = arith.cmpf {comparison}, %v, %{bound} : f32
  %kept = arith.select %holds, %v, %{bound} : f32
  linalg.yield %kept : f32
}} -> {y}"""

    text = f"""{MAPS}
func.func @main(%x: tensor<{n}x{size}x{size}x{c}xf32>, %r: {y}) -> {y} {{
%w = arith.constant {dense(weight)}
%b = arith.constant {dense(bias)}
%zero = arith.constant 0.0 : f32
%six = arith.constant 6.0 : f32
%e = tensor.empty() : {y}
%init = linalg.broadcast ins(%b : tensor<{co}xf32>) outs(%e : {y}) dimensions = [0, 1, 2]
%a = linalg.conv_2d_nhwc_hwcf {{strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>}}
  ins(%x, %w : tensor<{n}x{size}x{size}x{c}xf32>, tensor<3x3x{c}x{co}xf32>) outs(%init : {y}) -> {y}
{bounded("above", "a", "zero", "ugt")}
{bounded("inside", "above", "six", "ult")}
%sum = linalg.generic {{indexing_maps = [#id, #id, #id], {LOOPS}}} ins(%inside, %r : {y}, {y}) outs(%e : {y}) {{
^bb0(%u: f32, %v: f32, %old: f32):
  %s = arith.addf %u, %v : f32
  linalg.yield %s : f32
}} -> {y}
{bounded("out", "sum", "zero", "ugt")}
return %out : {y}
}}"""
    taps = sliding_window_view(x, (3, 3), axis=(1, 2))
    acc = np.einsum("nhwckl,klco->nhwo", taps, weight.astype(np.float64)) + bias
    result = np.maximum(np.clip(acc, 0, 6) + r, 0)
    np.testing.assert_allclose(run(text, variant, x, r), result, rtol=1e-4, atol=1e-4)
