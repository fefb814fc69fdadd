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


@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize(
    ("c", "co", "groups", "pads", "biased"),
    [
        (32, 64, 4, (1, 1, 1, 1), True), (24, 48, 12, (1, 0, 2, 1), False), (20, 20, 10, (0, 0, 0, 0), True),
        (96, 51, 3, (0, 1, 1, 0), False),
    ],
)  # fmt: skip
def test_grouped_float_layer(
    variant: str, c: int, co: int, groups: int, pads: tuple[int, int, int, int], *, biased: bool
) -> None:
    rng, n, h, w, (top, left, bottom, right) = np.random.default_rng(c), 2, 7, 9, pads
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    weight = rng.standard_normal((groups, co // groups, 3, 3, c // groups)).astype(np.float32)
    bias = rng.standard_normal(co).astype(np.float32) * biased
    ph, pw = h + top + bottom, w + left + right
    oh, ow = (ph - 3) // 2 + 1, pw - 2
    image, padded, y = (f"tensor<{n}x{a}x{b}x{d}xf32>" for a, b, d in ((h, w, c), (ph, pw, c), (oh, ow, co)))
    read = f"tensor<{n}x{ph}x{pw}x{groups}x{c // groups}xf32>"
    made = f"tensor<{n}x{oh}x{ow}x{groups}x{co // groups}xf32>"
    shape, last = f"[{n}, {oh}, {ow}, {groups}, {co // groups}]", "[[0], [1], [2], [3, 4]]"
    start = f"""
%b = arith.constant {dense(bias)}
%rows = linalg.broadcast ins(%b : tensor<{co}xf32>) outs(%e : {y}) dimensions = [0, 1, 2]
%init = tensor.expand_shape %rows {last} output_shape {shape} : {y} into {made}"""
    if not biased:
        start = f"""
%o = tensor.empty() : {made}
%init = linalg.fill ins(%zero : f32) outs(%o : {made}) -> {made}"""
    text = f"""{MAPS}
func.func @main(%x: {image}) -> {y} {{
%w = arith.constant {dense(weight)}
%zero = arith.constant 0.0 : f32
%e = tensor.empty() : {y}
%p = tensor.pad %x low[0, {top}, {left}, 0] high[0, {bottom}, {right}, 0] {{
^bb0(%i0: index, %i1: index, %i2: index, %i3: index):
  tensor.yield %zero : f32
}} : {image} to {padded}
%split = tensor.expand_shape %p {last} output_shape [{n}, {ph}, {pw}, {groups}, {c // groups}] : {padded} into {read}
{start}
%parts = linalg.conv_2d_nhwgc_gfhwc {{strides = dense<[2, 1]> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>}}
  ins(%split, %w : {read}, tensor<{"x".join(map(str, weight.shape))}xf32>) outs(%init : {made}) -> {made}
%a = tensor.collapse_shape %parts {last} : {made} into {y}
%out = linalg.generic {{indexing_maps = [#id, #id], {LOOPS}}} ins(%a : {y}) outs(%e : {y}) {{
^bb0(%v: f32, %old: f32):
  %holds = arith.cmpf ugt, %v, %zero : f32
  %kept = arith.select %holds, %v, %zero : f32
  linalg.yield %kept : f32
}} -> {y}
return %out : {y}
}}"""
    around = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    taps = sliding_window_view(around, (3, 3), axis=(1, 2))[:, ::2].reshape(n, oh, ow, groups, -1, 3, 3)
    acc = np.einsum("nhwgckl,gfklc->nhwgf", taps, weight.astype(np.float64)).reshape(n, oh, ow, co) + bias
    np.testing.assert_allclose(run(text, variant, x), np.maximum(acc, 0), rtol=1e-4, atol=1e-4)
