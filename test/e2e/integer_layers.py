"""Integer layers with channels innermost as MLIR, run as CPU kernels, and what numpy says they compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import run_on_cpu
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch_mlir import ir

from mlir_passes.cpu.isa import VARIANTS
from mlir_passes.pipeline import Pipeline

_LINES = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
_FLAGS = {flag.replace("_", "") for line in _LINES if line.startswith("flags") for flag in line.split()}
RUNNABLE = [
    pytest.param(name, marks=pytest.mark.skipif(not set(isa.features) <= _FLAGS, reason=f"this CPU has no {name}"))
    for name, isa in VARIANTS.items()
]
SEEDS = st.integers(0, 1 << 30)
IMAGES = st.sampled_from((1, 1, 2, 3))

BODIES = {
    "real": """
  %t0 = arith.addi %acc, %b : i32
  %t1 = arith.sitofp %t0 : i32 to f32
  %t2 = arith.mulf %t1, %m : f32
  linalg.yield %t2 : f32""",
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
    """One layer of kind conv, grouped, depthwise or sum (a pool). pads: top, left, bottom, right. n: images."""

    kind: str
    h: int
    w: int
    c: int
    co: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    seed: int = 0
    n: int = 1
    groups: int = 1

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = self.h + self.pads[0] + self.pads[2], self.w + self.pads[1] + self.pads[3]
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        return tuple((n - s) // t + 1 for n, s, t in zip(sizes, spans, self.strides, strict=True))  # type: ignore[return-value]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As the layer's linalg operation takes it."""
        if self.kind == "sum":
            return self.kernel
        if self.kind == "depthwise":
            return (*self.kernel, self.c)
        if self.kind == "grouped":
            return (self.groups, self.co // self.groups, *self.kernel, self.c // self.groups)
        return (*self.kernel, self.c, self.co)

    def images(self) -> np.ndarray:
        """Random input over the full range."""
        return (
            np.random.default_rng(self.seed + 1).integers(-128, 128, (self.n, self.h, self.w, self.c)).astype(np.int8)
        )


KINDS = ("conv", "grouped", "depthwise", "sum")
CHANNELS = st.sampled_from(
    [1, 2, 3, 4, 5, 8, 10, 15, 16, 17, 18, 20, 24, 32, 33, 40, 48, 58, 64, 72, 96, 100, 116, 144]
)


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    """Layers of any window, stride, dilation, padding and channels; strides may exceed the window."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 3)]))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = tuple(draw(st.integers(0, s - 1)) for s in (*spans, *spans))
    sizes = [max(1, span - pads[i] - pads[i + 2]) for i, span in enumerate(spans)]
    h, w = draw(st.integers(sizes[0], max(18, sizes[0]))), draw(st.integers(sizes[1], max(34, sizes[1])))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    groups = 1
    if kind == "grouped":
        groups = draw(st.integers(2, 12))
        c = groups * draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 17]))
        co = groups * draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 24, 33]))
    else:
        c = draw(CHANNELS)
        co = (
            c
            if kind in ("depthwise", "sum")
            else draw(st.sampled_from([1, 5, 10, 16, 17, 24, 32, 40, 58, 64, 80, 100, 144]))
        )
    return Case(kind, h, w, c, co, kernel, strides, dilations, pads, draw(SEEDS), draw(IMAGES), groups)  # type: ignore[arg-type]


def numbers(case: Case, form: str) -> dict[str, np.ndarray]:
    """Random parameters over the full ranges, extreme ones now and then."""
    rng = np.random.default_rng(case.seed)
    depth = case.kernel[0] * case.kernel[1] * (1 if case.kind in ("depthwise", "sum") else case.c // case.groups)
    shape = case.weight_shape
    extreme = rng.random() < 0.2
    weight = rng.choice(np.array([-128, 127]), shape) if extreme else rng.integers(-128, 128, shape)
    limit = (1 << 31) - 1 if extreme else 30000
    lo = rng.integers(-128, 20)
    kind = np.int32 if form == "shift" else np.float32
    multiplier = (rng.random(case.co) * 2 / (64 * np.sqrt(depth))).astype(np.float32)
    given = {
        "weight": weight.astype(np.int8),
        "bias": rng.integers(-limit, limit, case.co).astype(np.int32),
        "multiplier": rng.integers(-9, 31, case.co).astype(np.int32) if form == "shift" else multiplier,
        "zero_point": np.asarray(rng.integers(-128, 128), kind),
        "min": np.asarray(lo, kind),
        "max": np.asarray(rng.integers(lo + 1, 128), kind),
        "padding": np.asarray(rng.integers(-128, 128), np.int8),
    }
    unused = ["weight"] if case.kind == "sum" else []
    if form == "real":
        unused += ["zero_point", "min", "max"]
    return {name: value for name, value in given.items() if name not in unused}


def sum_numbers(seed: int) -> dict[str, np.ndarray]:
    """Random parameters of a residual addition."""
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(1, 22))
    m_a, m_b = (int(m) for m in rng.integers(0, 1 << min(21, shift + 2), 2))
    values = (m_a, m_b, rng.integers(-(1 << 28), 1 << 28), shift, rng.integers(-128, 128), -100, 120)
    return {f"s{i}": np.asarray(value, np.int32) for i, value in enumerate(values)}


def dense(array: np.ndarray) -> str:
    """A constant's value and type."""
    kind = {"int8": "i8", "int32": "i32", "float32": "f32"}[array.dtype.name]
    shape = "x".join([*map(str, array.shape), kind])
    if array.ndim:
        return f'dense<"0x{array.tobytes().hex().upper()}"> : tensor<{shape}>'
    return f"dense<{f'{array.item():e}' if kind == 'f32' else array.item()}> : tensor<{shape}>"


def constants(given: dict[str, np.ndarray]) -> str:
    """Tagged constants, one a line."""
    return "\n".join(
        f'%{name} = arith.constant {{quantune.parameter = "layer.{name}"}} {dense(value)}'
        for name, value in given.items()
    )


def padding(x: str, padded: str, pads: tuple[int, int, int, int], value: str) -> str:
    """%p: the input %x with a border."""
    t, left, b, r = pads
    return f"""
%p = tensor.pad %x low[0, {t}, {left}, 0] high[0, {b}, {r}, 0] {{
^bb0(%i0: index, %i1: index, %i2: index, %i3: index):
  tensor.yield {value} : i8
}} : tensor<{x}xi8> to tensor<{padded}xi8>"""


def module(case: Case, form: str, given: dict[str, np.ndarray], total: dict[str, np.ndarray] | None = None) -> str:
    """The integer stage of a layer with channels innermost; with ``total`` its input is added to its result."""
    (t, left, b, r), (oh, ow), co, n = case.pads, case.out, case.co, case.n
    element = "f32" if form == "real" else "i8"
    x, y = f"{n}x{case.h}x{case.w}x{case.c}", f"tensor<{n}x{oh}x{ow}x{co}x{element}>"
    padded = f"{n}x{case.h + t + b}x{case.w + left + r}x{case.c}"
    kind = "i32" if form == "shift" else "f32"
    outer = [name for name in ("bias", "multiplier", "zero_point", "min", "max") if name in given]
    kinds = [f"tensor<{co}xi32>", f"tensor<{co}x{kind}>", *[f"tensor<{kind}>"] * 3][: len(outer)]
    limits = f", %z: {kind}, %lo: {kind}, %hi: {kind}" if form != "real" else ""
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
{_sums(case, padded)}
%o = tensor.empty() : {y}
%out = linalg.generic {{indexing_maps = [#id, #ch, #ch, {"#s, " * (len(outer) - 2)} #id], {LOOPS}}}
  ins(%a, {", ".join(f"%{name}" for name in outer)} : tensor<{n}x{oh}x{ow}x{co}xi32>, {", ".join(kinds)})
  outs(%o : {y}) {{
^bb0(%acc: i32, %b: i32, %m: {kind}{limits}, %old: {element}):{BODIES[form]}
}} -> {y}
{added}
return {"%out" if total is None else "%sum"} : {y}
}}"""


def _sums(case: Case, padded: str) -> str:
    """%a: the layer's i32 sums."""
    name = {
        "conv": "conv_2d_nhwc_hwcf", "depthwise": "depthwise_conv_2d_nhwc_hwc", "grouped": "conv_2d_nhwgc_gfhwc",
        "sum": "pooling_nhwc_sum",
    }  # fmt: skip
    (oh, ow), co, groups = case.out, case.co, case.groups
    whole = acc = f"tensor<{case.n}x{oh}x{ow}x{co}xi32>"
    source, read, before, after, result = "%p", f"tensor<{padded}xi8>", "", "", "%a"
    if case.kind == "sum":
        before = f"%weight = tensor.empty() : tensor<{'x'.join(map(str, case.kernel))}xi8>"
    if case.kind == "grouped":
        size = padded.rpartition("x")[0]
        source, read, result = "%split", f"tensor<{size}x{groups}x{case.c // groups}xi8>", "%parts"
        acc = f"tensor<{case.n}x{oh}x{ow}x{groups}x{co // groups}xi32>"
        shape = f"[{size.replace('x', ', ')}, {groups}, {case.c // groups}]"
        last = "[[0], [1], [2], [3, 4]]"
        before = f"%split = tensor.expand_shape %p {last} output_shape {shape} : tensor<{padded}xi8> into {read}"
        after = f"%a = tensor.collapse_shape %parts {last} : {acc} into {whole}"
    window = f"strides = dense<{list(case.strides)}> : tensor<2xi64>, dilations = dense<{list(case.dilations)}>"
    return f"""{before}
%c0 = arith.constant 0 : i32
%e = tensor.empty() : {acc}
%f = linalg.fill ins(%c0 : i32) outs(%e : {acc}) -> {acc}
{result} = linalg.{name[case.kind]} {{{window} : tensor<2xi64>}}
  ins({source}, %weight : {read}, tensor<{"x".join(map(str, case.weight_shape))}xi8>) outs(%f : {acc}) -> {acc}
{after}"""


def windows(case: Case, x: np.ndarray, value: int) -> np.ndarray:
    """[n, oh, ow, c, kh, kw] of a batch."""
    t, left, b, r = case.pads
    padded = np.pad(x.astype(np.int64), ((0, 0), (t, b), (left, r), (0, 0)), constant_values=value)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(case.dilations, case.kernel, strict=True))
    found = sliding_window_view(padded, spans, axis=(1, 2))[:, :: case.strides[0], :: case.strides[1]]
    return found[..., :: case.dilations[0], :: case.dilations[1]]


def sums(case: Case, given: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The layer's sums with their bias, wrapped to i32."""
    taps, weight = windows(case, x, int(given["padding"])), given.get("weight", np.ones(())).astype(np.int64)
    if case.kind == "sum":
        acc = taps.sum(axis=(4, 5))
    elif case.kind == "depthwise":
        acc = np.einsum("nhwckl,klc->nhwc", taps, weight)
    elif case.kind == "grouped":
        split = taps.reshape(*taps.shape[:3], case.groups, -1, *case.kernel)
        acc = np.einsum("nhwgckl,gfklc->nhwgf", split, weight).reshape(*taps.shape[:3], case.co)
    else:
        acc = np.einsum("nhwckl,klco->nhwo", taps, weight, optimize=True)
    return (acc + given["bias"]).astype(np.int32)


def expected(
    case: Case, form: str, given: dict[str, np.ndarray], total: dict[str, np.ndarray] | None, x: np.ndarray
) -> np.ndarray:
    """What ``module`` returns for ``x``."""
    acc = sums(case, given, x)
    if form == "real":
        return acc.astype(np.float32) * given["multiplier"]
    if form == "shift":
        steps = np.clip(np.rint(acc / 2.0 ** np.maximum(given["multiplier"], 0)), -512, 511)
        steps = steps * 2.0 ** np.maximum(-given["multiplier"], 0) + given["zero_point"]
    else:
        steps = np.rint(acc.astype(np.float32) * given["multiplier"]) + given["zero_point"]
    out = np.minimum(np.maximum(steps, given["min"]), given["max"]).astype(np.int8)
    if total is None:
        return out
    m_a, m_b, offset, shift, zero, low, high = (int(value) for value in total.values())
    added = (out.astype(np.int64) * m_a + x.astype(np.int64) * m_b + offset).astype(np.int32)
    return np.clip((added >> shift) + zero, low, high).astype(np.int8)


def run(text: str, variant: str, *inputs: np.ndarray) -> np.ndarray:
    """The result of a module whose kernels must be called, must leave nothing else to compute and survive printing."""
    parsed = ir.Module.parse(text, context=ir.Context())
    Pipeline.parse(f"quantune-lower-to-cpu-kernels{{features={variant}}}").run(parsed)
    printed = str(parsed)
    assert "flow.dispatch" in printed
    assert not [line for line in printed.splitlines() if "linalg." in line and not _is_plain(line)]
    (y,) = run_on_cpu.load_on_cpu(run_on_cpu.compile_for_cpu(printed))(*inputs)
    return y


def _is_plain(line: str) -> bool:
    """Whether a line only belongs to the change of signs at the program's ends."""
    return "linalg.generic" in line or "linalg.yield" in line


def check(case: Case, variant: str, form: str = "multiplier", *, residual: bool = False) -> None:
    """Fail unless a layer computes what numpy does."""
    given, total = numbers(case, form), sum_numbers(case.seed) if residual else None
    x = case.images()
    y = run(module(case, form, given, total), variant, x)
    np.testing.assert_array_equal(y, expected(case, form, given, total, x))
