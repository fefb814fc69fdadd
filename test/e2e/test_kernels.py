"""Kernels for CPUs compute what numpy computes, bit for bit, whatever the shape and the numbers."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch_mlir import ir

from mlir_passes.cpu.isa import VARIANTS
from mlir_passes.registry import Pipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
run_on_cpu = importlib.import_module("run_on_cpu")

_LINES = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
_FLAGS = {flag.replace("_", "") for line in _LINES if line.startswith("flags") for flag in line.split()}
RUNNABLE = [
    pytest.param(name, marks=pytest.mark.skipif(not set(isa.features) <= _FLAGS, reason=f"this CPU has no {name}"))
    for name, isa in VARIANTS.items()
]

BODIES = {
    "multiplier": """
  %t0 = arith.addi %acc, %b : i32
  %t1 = arith.sitofp %t0 : i32 to f32
  %t2 = arith.mulf %t1, %m : f32
  %t3 = math.roundeven %t2 : f32
  %t4 = arith.addf %t3, %z : f32
  %t5 = arith.maximumf %t4, %lo : f32
  %t6 = arith.minimumf %t5, %hi : f32
  %t7 = arith.fptosi %t6 : f32 to i8
  linalg.yield %t7 : i8""",
    "shift": """
  %k0 = arith.constant 0 : i32
  %k1 = arith.constant 1 : i32
  %kl = arith.constant -512 : i32
  %kh = arith.constant 511 : i32
  %t0 = arith.addi %acc, %b : i32
  %r = arith.maxsi %m, %k0 : i32
  %n = arith.subi %k0, %m : i32
  %l = arith.maxsi %n, %k0 : i32
  %u = arith.shli %k1, %r : i32
  %h0 = arith.shrsi %u, %k1 : i32
  %h = arith.maxsi %h0, %k1 : i32
  %q0 = arith.shrsi %t0, %r : i32
  %u1 = arith.subi %u, %k1 : i32
  %a0 = arith.andi %t0, %u1 : i32
  %a1 = arith.andi %q0, %k1 : i32
  %rest = arith.addi %a0, %a1 : i32
  %more = arith.cmpi sgt, %rest, %h : i32
  %one = arith.extui %more : i1 to i32
  %q1 = arith.addi %q0, %one : i32
  %q2 = arith.maxsi %q1, %kl : i32
  %q3 = arith.minsi %q2, %kh : i32
  %q4 = arith.shli %q3, %l : i32
  %q5 = arith.addi %q4, %z : i32
  %q6 = arith.maxsi %q5, %lo : i32
  %q7 = arith.minsi %q6, %hi : i32
  %q8 = arith.trunci %q7 : i32 to i8
  linalg.yield %q8 : i8""",
}
ADD = """
  %t0 = arith.extsi %ea : i8 to i32
  %t1 = arith.muli %t0, %ma : i32
  %t2 = arith.extsi %eb : i8 to i32
  %t3 = arith.muli %t2, %mb : i32
  %t4 = arith.addi %t1, %t3 : i32
  %t5 = arith.addi %t4, %off : i32
  %t6 = arith.shrsi %t5, %sh : i32
  %t7 = arith.addi %t6, %z : i32
  %t8 = arith.maxsi %t7, %lo : i32
  %t9 = arith.minsi %t8, %hi : i32
  %t10 = arith.trunci %t9 : i32 to i8
  linalg.yield %t10 : i8"""
MAPS = """
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#ch = affine_map<(n, h, w, c) -> (c)>
#s = affine_map<(n, h, w, c) -> ()>
"""
LOOPS = 'iterator_types = ["parallel", "parallel", "parallel", "parallel"]'


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


def numbers(case: Case, form: str) -> dict[str, np.ndarray]:
    """Random parameters over the full ranges, extreme ones now and then."""
    rng = np.random.default_rng(case.seed)
    depth = case.kernel[0] * case.kernel[1] * (1 if case.kind == "depthwise" else case.c)
    shape = (*case.kernel, case.c) if case.kind == "depthwise" else (*case.kernel, case.c, case.co)
    extreme = rng.random() < 0.2
    weight = rng.choice(np.array([-128, 127]), shape) if extreme else rng.integers(-128, 128, shape)
    limit = (1 << 31) - 1 if extreme else 30000
    lo = rng.integers(-128, 20)
    kind = np.int32 if form == "shift" else np.float32
    multiplier = (rng.random(case.co) * 2 / (64 * np.sqrt(depth))).astype(np.float32)
    return {
        "weight": weight.astype(np.int8),
        "bias": rng.integers(-limit, limit, case.co).astype(np.int32),
        "multiplier": rng.integers(-9, 31, case.co).astype(np.int32) if form == "shift" else multiplier,
        "zero_point": np.asarray(rng.integers(-128, 128), kind),
        "min": np.asarray(lo, kind),
        "max": np.asarray(rng.integers(lo + 1, 128), kind),
        "padding": np.asarray(rng.integers(-128, 128), np.int8),
    }


def sum_numbers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(1, 22))
    m_a, m_b = (int(m) for m in rng.integers(0, 1 << min(21, shift + 2), 2))
    values = (m_a, m_b, rng.integers(-(1 << 28), 1 << 28), shift, rng.integers(-128, 128), -100, 120)
    return {f"s{i}": np.asarray(value, np.int32) for i, value in enumerate(values)}


def dense(array: np.ndarray) -> str:
    kind = {"int8": "i8", "int32": "i32", "float32": "f32"}[array.dtype.name]
    shape = "x".join([*map(str, array.shape), kind])
    if array.ndim:
        return f'dense<"0x{array.tobytes().hex().upper()}"> : tensor<{shape}>'
    return f"dense<{f'{array.item():e}' if kind == 'f32' else array.item()}> : tensor<{shape}>"


def constants(given: dict[str, np.ndarray]) -> str:
    return "\n".join(
        f'%{name} = arith.constant {{quantune.parameter = "layer.{name}"}} {dense(value)}'
        for name, value in given.items()
    )


def padding(x: str, padded: str, pads: tuple[int, int, int, int], value: str) -> str:
    t, left, b, r = pads
    return f"""
%p = tensor.pad %x low[0, {t}, {left}, 0] high[0, {b}, {r}, 0] {{
^bb0(%i0: index, %i1: index, %i2: index, %i3: index):
  tensor.yield {value} : i8
}} : tensor<{x}xi8> to tensor<{padded}xi8>"""


def module(case: Case, form: str, given: dict[str, np.ndarray], total: dict[str, np.ndarray] | None) -> str:
    """The integer stage of a layer with channels innermost; with ``total`` its input is added to its result."""
    (t, left, b, r), (oh, ow), co = case.pads, case.out, case.co
    name = {"conv": "conv_2d_nhwc_hwcf", "depthwise": "depthwise_conv_2d_nhwc_hwc"}[case.kind]
    x, acc, y = f"1x{case.h}x{case.w}x{case.c}", f"tensor<1x{oh}x{ow}x{co}xi32>", f"tensor<1x{oh}x{ow}x{co}xi8>"
    padded = f"1x{case.h + t + b}x{case.w + left + r}x{case.c}"
    shape = "x".join(map(str, given["weight"].shape))
    kind = "i32" if form == "shift" else "f32"
    window = f"strides = dense<{list(case.strides)}> : tensor<2xi64>, dilations = dense<{list(case.dilations)}>"
    added = "" if total is None else f"""
{constants(total)}
%e2 = tensor.empty() : {y}
%sum = linalg.generic {{indexing_maps = [#id, #id, {"#s, " * 7} #id], {LOOPS}}}
  ins(%out, %x, %s0, %s1, %s2, %s3, %s4, %s5, %s6 : {y}, tensor<{x}xi8>{", tensor<i32>" * 7}) outs(%e2 : {y}) {{
^bb0(%ea: i8, %eb: i8, %ma: i32, %mb: i32, %off: i32, %sh: i32, %z: i32, %lo: i32, %hi: i32, %old: i8):{ADD}
}} -> {y}"""  # fmt: skip
    return f"""{MAPS}
func.func @main(%x: tensor<{x}xi8>) -> {y} {{
{constants(given)}
%pad = tensor.extract %padding[] : tensor<i8>
{padding(x, padded, case.pads, "%pad")}
%c0 = arith.constant 0 : i32
%e = tensor.empty() : {acc}
%f = linalg.fill ins(%c0 : i32) outs(%e : {acc}) -> {acc}
%a = linalg.{name} {{{window} : tensor<2xi64>}}
  ins(%p, %weight : tensor<{padded}xi8>, tensor<{shape}xi8>) outs(%f : {acc}) -> {acc}
%o = tensor.empty() : {y}
%out = linalg.generic {{indexing_maps = [#id, #ch, #ch, #s, #s, #s, #id], {LOOPS}}}
  ins(%a, %bias, %multiplier, %zero_point, %min, %max
      : {acc}, tensor<{co}xi32>, tensor<{co}x{kind}>{f", tensor<{kind}>" * 3})
  outs(%o : {y}) {{
^bb0(%acc: i32, %b: i32, %m: {kind}, %z: {kind}, %lo: {kind}, %hi: {kind}, %old: i8):{BODIES[form]}
}} -> {y}
{added}
return {"%out" if total is None else "%sum"} : {y}
}}"""


def windows(case: Case, x: np.ndarray, value: int) -> np.ndarray:
    """[oh, ow, c, kh, kw] of one image."""
    t, left, b, r = case.pads
    padded = np.pad(x[0].astype(np.int64), ((t, b), (left, r), (0, 0)), constant_values=value)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(case.dilations, case.kernel, strict=True))
    found = sliding_window_view(padded, spans, axis=(0, 1))[:: case.strides[0], :: case.strides[1]]
    return found[..., :: case.dilations[0], :: case.dilations[1]]


def expected(
    case: Case, form: str, given: dict[str, np.ndarray], total: dict[str, np.ndarray] | None, x: np.ndarray
) -> np.ndarray:
    spec = "hwckl,klc->hwc" if case.kind == "depthwise" else "hwckl,klco->hwo"
    acc = np.einsum(spec, windows(case, x, int(given["padding"])), given["weight"].astype(np.int64)) + given["bias"]
    acc = acc.astype(np.int32)
    if form == "shift":
        steps = np.clip(np.rint(acc / 2.0 ** np.maximum(given["multiplier"], 0)), -512, 511)
        steps = steps * 2.0 ** np.maximum(-given["multiplier"], 0) + given["zero_point"]
    else:
        steps = np.rint(acc.astype(np.float32) * given["multiplier"]) + given["zero_point"]
    out = np.minimum(np.maximum(steps, given["min"]), given["max"]).astype(np.int8)[None]
    if total is None:
        return out
    m_a, m_b, offset, shift, zero, low, high = (int(value) for value in total.values())
    sums = (out.astype(np.int64) * m_a + x.astype(np.int64) * m_b + offset).astype(np.int32)
    return np.clip((sums >> shift) + zero, low, high).astype(np.int8)


def run(text: str, variant: str, *inputs: np.ndarray) -> np.ndarray:
    """The result of a module whose kernels must be called and must survive printing."""
    parsed = ir.Module.parse(text, context=ir.Context())
    Pipeline.parse(f"quantune-lower-to-cpu-kernels{{features={variant}}}").run(parsed)
    assert "flow.dispatch" in str(parsed)
    (y,) = run_on_cpu.load_on_cpu(run_on_cpu.compile_for_cpu(str(parsed)))(*inputs)
    return y


def check(case: Case, variant: str, form: str = "multiplier", *, residual: bool = False) -> None:
    given, total = numbers(case, form), sum_numbers(case.seed) if residual else None
    x = np.random.default_rng(case.seed + 1).integers(-128, 128, (1, case.h, case.w, case.c)).astype(np.int8)
    y = run(module(case, form, given, total), variant, x)
    np.testing.assert_array_equal(y, expected(case, form, given, total, x))


FEW = settings(max_examples=5, deadline=None, derandomize=True)
SEEDS = st.integers(0, 1 << 30)


@pytest.mark.parametrize("variant", RUNNABLE)
@given(case=cases("conv"))
@FEW
def test_dense_convolution_equals_numpy(variant: str, case: Case) -> None:
    check(case, variant)


@pytest.mark.parametrize("variant", RUNNABLE)
@given(case=cases("depthwise"))
@FEW
def test_depthwise_convolution_equals_numpy(variant: str, case: Case) -> None:
    check(case, variant)


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("form", BODIES)
def test_the_program_depends_on_no_number(kind: str, form: str) -> None:
    programs = []
    for seed in (1, 2):
        case = Case(kind, 7, 9, 24, 24, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), seed)
        text = module(case, form, numbers(case, form), sum_numbers(seed))
        parsed = ir.Module.parse(text, context=ir.Context())
        passes = "quantune-lower-to-cpu-kernels{features=avx512vnni},quantune-outline-parameters"
        Pipeline.parse(passes).run(parsed)
        programs.append(str(parsed))
    assert programs[0] == programs[1]


@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize("form", BODIES)
@given(seed=SEEDS, c=st.sampled_from([3, 16, 24, 58]), size=st.tuples(st.integers(1, 9), st.integers(1, 17)))
@settings(FEW, max_examples=2)
def test_residual_and_shift_equal_numpy(variant: str, form: str, seed: int, c: int, size: tuple[int, int]) -> None:
    check(Case("conv", *size, c, c, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), seed), variant, form, residual=True)


@pytest.mark.parametrize("variant", RUNNABLE)
@given(seed=SEEDS, c=st.sampled_from([2, 16, 58, 100]), size=st.tuples(st.integers(3, 17), st.integers(3, 17)))
@settings(FEW, max_examples=2)
def test_max_pool_equals_numpy(variant: str, seed: int, c: int, size: tuple[int, int]) -> None:
    case = Case("max", *size, c, c, (3, 2), (2, 1), (1, 1), (1, 0, 1, 1), seed)
    h, w = size
    oh, ow = case.out
    y, padded = f"tensor<1x{oh}x{ow}x{c}xi8>", f"1x{h + 2}x{w + 1}x{c}"
    text = f"""
func.func @main(%x: tensor<1x{h}x{w}x{c}xi8>) -> {y} {{
%lowest = arith.constant -128 : i8
{padding(f"1x{h}x{w}x{c}", padded, case.pads, "%lowest")}
%win = tensor.empty() : tensor<3x2xi8>
%e = tensor.empty() : {y}
%f = linalg.fill ins(%lowest : i8) outs(%e : {y}) -> {y}
%r = linalg.pooling_nhwc_max {{strides = dense<[2, 1]> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>}}
  ins(%p, %win : tensor<{padded}xi8>, tensor<3x2xi8>) outs(%f : {y}) -> {y}
return %r : {y}
}}"""
    x = np.random.default_rng(seed).integers(-128, 128, (1, h, w, c)).astype(np.int8)
    np.testing.assert_array_equal(run(text, variant, x), windows(case, x, -128).max(axis=(3, 4))[None])


@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize("first", [True, False])
@given(seed=SEEDS, c=st.sampled_from([16, 58, 72]), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(FEW, max_examples=2)
def test_channel_shuffle_and_slice_equal_numpy(
    variant: str, first: bool, seed: int, c: int, size: tuple[int, int]
) -> None:
    h, w = size
    half, both = f"1x{h}x{w}x{c}xi8", f"1x{h}x{w}x{2 * c}xi8"
    text = f"""
func.func @main(%x: tensor<{half}>, %z: tensor<{half}>) -> tensor<{half}> {{
%j = tensor.concat dim(3) %x, %z : (tensor<{half}>, tensor<{half}>) -> tensor<{both}>
%g = tensor.expand_shape %j [[0], [1], [2], [3, 4]] output_shape [1, {h}, {w}, 2, {c}]
  : tensor<{both}> into tensor<1x{h}x{w}x2x{c}xi8>
%e = tensor.empty() : tensor<1x{h}x{w}x{c}x2xi8>
%t = linalg.transpose ins(%g : tensor<1x{h}x{w}x2x{c}xi8>) outs(%e : tensor<1x{h}x{w}x{c}x2xi8>)
  permutation = [0, 1, 2, 4, 3]
%s = tensor.collapse_shape %t [[0], [1], [2], [3, 4]] : tensor<1x{h}x{w}x{c}x2xi8> into tensor<{both}>
%y = tensor.extract_slice %s[0, 0, 0, {0 if first else c}] [1, {h}, {w}, {c}] [1, 1, 1, 1]
  : tensor<{both}> to tensor<{half}>
return %y : tensor<{half}>
}}"""
    x, z = np.random.default_rng(seed).integers(-128, 128, (2, 1, h, w, c)).astype(np.int8)
    shuffled = np.stack([x, z], axis=-1).reshape(1, h, w, 2 * c)
    np.testing.assert_array_equal(run(text, variant, x, z), shuffled[..., :c] if first else shuffled[..., c:])


@pytest.mark.parametrize("variant", RUNNABLE)
@given(seed=SEEDS, c=st.sampled_from([3, 16, 58]), co=st.sampled_from([16, 24, 58]), size=st.integers(3, 17))
@settings(FEW, max_examples=2)
def test_float_layer_with_clamps_and_residual(variant: str, seed: int, c: int, co: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    x, r = (rng.standard_normal((1, size, size, n)).astype(np.float32) for n in (c, co))
    weight, bias = rng.standard_normal((3, 3, c, co)).astype(np.float32), rng.standard_normal(co).astype(np.float32)
    n = size - 2
    r = np.ascontiguousarray(r[:, :n, :n])
    y = f"tensor<1x{n}x{n}x{co}xf32>"
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
func.func @main(%x: tensor<1x{size}x{size}x{c}xf32>, %r: {y}) -> {y} {{
%w = arith.constant {dense(weight)}
%b = arith.constant {dense(bias)}
%zero = arith.constant 0.0 : f32
%six = arith.constant 6.0 : f32
%e = tensor.empty() : {y}
%init = linalg.broadcast ins(%b : tensor<{co}xf32>) outs(%e : {y}) dimensions = [0, 1, 2]
%a = linalg.conv_2d_nhwc_hwcf {{strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>}}
  ins(%x, %w : tensor<1x{size}x{size}x{c}xf32>, tensor<3x3x{c}x{co}xf32>) outs(%init : {y}) -> {y}
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
    parsed = ir.Module.parse(text, context=ir.Context())
    Pipeline.parse(f"quantune-lower-to-cpu-kernels{{features={variant}}}").run(parsed)
    assert str(parsed).count("linalg.generic") == 0
    (got,) = run_on_cpu.load_on_cpu(run_on_cpu.compile_for_cpu(str(parsed)))(x, r)
    acc = np.einsum("hwckl,klco->hwo", sliding_window_view(x[0], (3, 3), axis=(0, 1)), weight.astype(np.float64)) + bias
    np.testing.assert_allclose(got[0], np.maximum(np.clip(acc, 0, 6) + r[0], 0), rtol=1e-4, atol=1e-4)
