"""Kernels for CPUs compute what numpy computes, bit for bit, whatever the shape and the numbers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch_mlir import ir

from mlir_passes.cpu.isa import VARIANTS
from mlir_passes.registry import Pipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from run_on_cpu import compile_for_cpu, load_on_cpu

_LINES = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
_FLAGS = {flag.replace("_", "") for line in _LINES if line.startswith("flags") for flag in line.split()}
pytestmark = pytest.mark.skipif("avx512vnni" not in _FLAGS, reason="this CPU has no AVX512-VNNI")

MULTIPLIER = """
  %t0 = arith.addi %acc, %b : i32
  %t1 = arith.sitofp %t0 : i32 to f32
  %t2 = arith.mulf %t1, %m : f32
  %t3 = math.roundeven %t2 : f32
  %t4 = arith.addf %t3, %z : f32
  %t5 = arith.maximumf %t4, %lo : f32
  %t6 = arith.minimumf %t5, %hi : f32
  %t7 = arith.fptosi %t6 : f32 to i8
  linalg.yield %t7 : i8"""


@dataclass(frozen=True)
class Case:
    """One layer: kind conv or depthwise; pads are top, left, bottom, right."""

    kind: str
    h: int
    w: int
    c: int
    co: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    seed: int

    @property
    def out(self) -> tuple[int, int]:
        sizes = self.h + self.pads[0] + self.pads[2], self.w + self.pads[1] + self.pads[3]
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        return tuple((n - s) // t + 1 for n, s, t in zip(sizes, spans, self.strides, strict=True))  # type: ignore[return-value]


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 3)]))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = tuple(draw(st.integers(0, s - 1)) for s in (*spans, *spans))
    h = draw(st.integers(max(1, spans[0] - pads[0] - pads[2]), 18))
    w = draw(st.integers(max(1, spans[1] - pads[1] - pads[3]), 34))
    c = draw(st.sampled_from([1, 2, 3, 4, 8, 15, 16, 18, 20, 24, 32, 33, 48, 58, 64, 72, 96, 116, 144]))
    co = c if kind == "depthwise" else draw(st.sampled_from([1, 5, 10, 16, 17, 24, 32, 40, 58, 64, 80, 100, 144]))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return Case(kind, h, w, c, co, kernel, strides, dilations, pads, draw(st.integers(0, 1 << 30)))  # type: ignore[arg-type]


def numbers(case: Case) -> dict[str, np.ndarray]:
    """Random parameters over the full ranges, extreme ones now and then."""
    rng = np.random.default_rng(case.seed)
    depth = case.kernel[0] * case.kernel[1] * (1 if case.kind == "depthwise" else case.c)
    shape = (*case.kernel, case.c) if case.kind == "depthwise" else (*case.kernel, case.c, case.co)
    extreme = rng.random() < 0.2
    weight = rng.choice(np.array([-128, 127]), shape) if extreme else rng.integers(-128, 128, shape)
    lo = rng.integers(-128, 20)
    return {
        "weight": weight.astype(np.int8),
        "bias": rng.integers(-(1 << 31) if extreme else -30000, (1 << 31) - 1 if extreme else 30000, case.co).astype(
            np.int32
        ),
        "multiplier": (rng.random(case.co) * 2 / (64 * np.sqrt(depth))).astype(np.float32),
        "zero_point": np.float32(rng.integers(-128, 128)),
        "min": np.float32(lo),
        "max": np.float32(rng.integers(lo + 1, 128)),
        "padding": np.int8(rng.integers(-128, 128)),
    }


def dense(array: np.ndarray) -> str:
    array = np.asarray(array)
    kind = {"int8": "i8", "int32": "i32", "float32": "f32"}[array.dtype.name]
    shape = "x".join([*map(str, array.shape), kind])
    text = (
        f'"0x{array.tobytes().hex().upper()}"'
        if array.ndim
        else f"{array.item():e}"
        if kind == "f32"
        else str(array.item())
    )
    return f"dense<{text}> : tensor<{shape}>"


def module(case: Case, given: dict[str, np.ndarray]) -> str:
    """The integer stage of a layer with channels innermost."""
    (t, left, b, r), (oh, ow), co = case.pads, case.out, case.co
    name = {"conv": "conv_2d_nhwc_hwcf", "depthwise": "depthwise_conv_2d_nhwc_hwc"}[case.kind]
    x, acc, y = f"1x{case.h}x{case.w}x{case.c}", f"1x{oh}x{ow}x{co}xi32", f"1x{oh}x{ow}x{co}xi8"
    padded = f"1x{case.h + t + b}x{case.w + left + r}x{case.c}"
    shape = "x".join(map(str, given["weight"].shape))
    constants = "\n".join(
        f'%{key} = arith.constant {{quantune.parameter = "layer.{key}"}} {dense(value)}' for key, value in given.items()
    )
    return f"""
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#ch = affine_map<(n, h, w, c) -> (c)>
#s = affine_map<(n, h, w, c) -> ()>
func.func @main(%x: tensor<{x}xi8>) -> tensor<{y}> {{
{constants}
%pad = tensor.extract %padding[] : tensor<i8>
%p = tensor.pad %x low[0, {t}, {left}, 0] high[0, {b}, {r}, 0] {{
^bb0(%i0: index, %i1: index, %i2: index, %i3: index):
  tensor.yield %pad : i8
}} : tensor<{x}xi8> to tensor<{padded}xi8>
%c0 = arith.constant 0 : i32
%e = tensor.empty() : tensor<{acc}>
%f = linalg.fill ins(%c0 : i32) outs(%e : tensor<{acc}>) -> tensor<{acc}>
%a = linalg.{name} {{strides = dense<{list(case.strides)}> : tensor<2xi64>, dilations = dense<{list(case.dilations)}> : tensor<2xi64>}}
  ins(%p, %weight : tensor<{padded}xi8>, tensor<{shape}xi8>) outs(%f : tensor<{acc}>) -> tensor<{acc}>
%o = tensor.empty() : tensor<{y}>
%q = linalg.generic {{indexing_maps = [#id, #ch, #ch, #s, #s, #s, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
  ins(%a, %bias, %multiplier, %zero_point, %min, %max : tensor<{acc}>, tensor<{co}xi32>, tensor<{co}xf32>, tensor<f32>, tensor<f32>, tensor<f32>)
  outs(%o : tensor<{y}>) {{
^bb0(%acc: i32, %b: i32, %m: f32, %z: f32, %lo: f32, %hi: f32, %old: i8):{MULTIPLIER}
}} -> tensor<{y}>
return %q : tensor<{y}>
}}"""


def expected(case: Case, given: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    t, left, b, r = case.pads
    padded = np.pad(x[0].astype(np.int64), ((t, b), (left, r), (0, 0)), constant_values=int(given["padding"]))
    spans = tuple(d * (k - 1) + 1 for d, k in zip(case.dilations, case.kernel, strict=True))
    windows = sliding_window_view(padded, spans, axis=(0, 1))[:: case.strides[0], :: case.strides[1]]
    windows = windows[..., :: case.dilations[0], :: case.dilations[1]]
    spec = "hwckl,klc->hwc" if case.kind == "depthwise" else "hwckl,klco->hwo"
    acc = np.einsum(spec, windows, given["weight"].astype(np.int64)) + given["bias"]
    steps = np.rint(acc.astype(np.int32).astype(np.float32) * given["multiplier"]) + given["zero_point"]
    return np.minimum(np.maximum(steps, given["min"]), given["max"]).astype(np.int8)[None]


def compiled(text: str, variant: str) -> ir.Module:
    parsed = ir.Module.parse(text, context=ir.Context())
    Pipeline.parse(f"quantune-lower-to-cpu-kernels{{features={variant}}}").run(parsed)
    assert "flow.dispatch" in str(parsed)
    return parsed


def check(case: Case, variant: str) -> None:
    given = numbers(case)
    x = np.random.default_rng(case.seed + 1).integers(-128, 128, (1, case.h, case.w, case.c)).astype(np.int8)
    (y,) = load_on_cpu(compile_for_cpu(str(compiled(module(case, given), variant))))(x)
    np.testing.assert_array_equal(y, expected(case, given, x))


FEW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("variant", VARIANTS)
@given(case=cases("conv"))
@FEW
def test_dense_convolution_equals_numpy(variant: str, case: Case) -> None:
    check(case, variant)


@pytest.mark.parametrize("variant", VARIANTS)
@given(case=cases("depthwise"))
@FEW
def test_depthwise_convolution_equals_numpy(variant: str, case: Case) -> None:
    check(case, variant)
