"""Kernels that select or move numbers do so exactly: pools, joins, shuffles and slices of channels, the input image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_layers import (
    IMAGES,
    LOOPS,
    MAPS,
    RUNNABLE,
    SEEDS,
    Case,
    cases,
    constants,
    expected,
    module,
    numbers,
    padding,
    run,
    windows,
)

FEW = settings(max_examples=2, deadline=None, derandomize=True)
MANY = settings(FEW, max_examples=150, suppress_health_check=list(HealthCheck))
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


DTYPES = {"i8": np.int8, "f32": np.float32}
ELEMENTS = pytest.mark.parametrize("element", DTYPES)


def _max_pool(variant: str, case: Case, element: str = "i8") -> None:
    (oh, ow), (t, left, b, r) = case.out, case.pads
    x = f"{case.n}x{case.h}x{case.w}x{case.c}"
    y, padded = f"tensor<{case.n}x{oh}x{ow}x{case.c}xi8>", f"{case.n}x{case.h + t + b}x{case.w + left + r}x{case.c}"
    window = f"strides = dense<{list(case.strides)}> : tensor<2xi64>, dilations = dense<{list(case.dilations)}>"
    kernel = f"tensor<{case.kernel[0]}x{case.kernel[1]}xi8>"
    text = f"""
func.func @main(%x: tensor<{x}xi8>) -> {y} {{
%lowest = arith.constant LOWEST : i8
{padding(x, padded, case.pads, "%lowest")}
%win = tensor.empty() : {kernel}
%e = tensor.empty() : {y}
%f = linalg.fill ins(%lowest : i8) outs(%e : {y}) -> {y}
%r = linalg.pooling_nhwc_max {{{window} : tensor<2xi64>}}
  ins(%p, %win : tensor<{padded}xi8>, {kernel}) outs(%f : {y}) -> {y}
return %r : {y}
}}"""
    lowest = "-128" if element == "i8" else "0xFF800000"
    x = case.images() if element == "i8" else case.images().astype(np.float32)
    found = run(text.replace("LOWEST", lowest).replace("i8", element), variant, x)
    np.testing.assert_array_equal(found, windows(case, x, -128).max(axis=(4, 5)))


def _meets_image(case: Case) -> bool:
    """Whether every window of a pool holds a part of the image, as torch demands in all but odd cases."""
    inside = windows(case, np.ones((1, case.h, case.w, 1), np.int8), 0)
    return bool(inside.any(axis=(4, 5)).all())


@ELEMENTS
@pytest.mark.parametrize("variant", RUNNABLE)
@given(case=cases("sum").filter(_meets_image))
@settings(FEW, max_examples=5)
def test_max_pool_equals_numpy(variant: str, element: str, case: Case) -> None:
    _max_pool(variant, case, element)


@pytest.mark.parametrize("variant", RUNNABLE)
def test_a_dilated_max_pool_equals_numpy(variant: str) -> None:
    _max_pool(variant, Case("sum", 9, 8, 20, 20, (3, 2), (2, 1), (2, 3), (2, 3, 2, 1), 7, 2), "f32")


@pytest.mark.slow
@pytest.mark.parametrize("variant", RUNNABLE)
@given(case=cases("sum").filter(_meets_image))
@MANY
def test_many_max_pools_equal_numpy(variant: str, case: Case) -> None:
    _max_pool(variant, case)


@ELEMENTS
@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize("first", [True, False])
@given(seed=SEEDS, c=st.sampled_from([1, 5, 16, 58, 72]), size=SIZES, n=IMAGES)
@FEW
def test_channel_shuffle_and_slice_equal_numpy(
    variant: str, first: bool, element: str, seed: int, c: int, size: tuple[int, int], n: int
) -> None:
    h, w = size
    half, both = f"{n}x{h}x{w}x{c}x{element}", f"{n}x{h}x{w}x{2 * c}x{element}"
    text = f"""
func.func @main(%x: tensor<{half}>, %z: tensor<{half}>) -> tensor<{half}> {{
%j = tensor.concat dim(3) %x, %z : (tensor<{half}>, tensor<{half}>) -> tensor<{both}>
%g = tensor.expand_shape %j [[0], [1], [2], [3, 4]] output_shape [{n}, {h}, {w}, 2, {c}]
  : tensor<{both}> into tensor<{n}x{h}x{w}x2x{c}x{element}>
%e = tensor.empty() : tensor<{n}x{h}x{w}x{c}x2x{element}>
%t = linalg.transpose ins(%g : tensor<{n}x{h}x{w}x2x{c}x{element}>) outs(%e : tensor<{n}x{h}x{w}x{c}x2x{element}>)
  permutation = [0, 1, 2, 4, 3]
%s = tensor.collapse_shape %t [[0], [1], [2], [3, 4]] : tensor<{n}x{h}x{w}x{c}x2x{element}> into tensor<{both}>
%y = tensor.extract_slice %s[0, 0, 0, {0 if first else c}] [{n}, {h}, {w}, {c}] [1, 1, 1, 1]
  : tensor<{both}> to tensor<{half}>
return %y : tensor<{half}>
}}"""
    x, z = np.random.default_rng(seed).integers(-128, 128, (2, n, h, w, c)).astype(DTYPES[element])
    shuffled = np.stack([x, z], axis=-1).reshape(n, h, w, 2 * c)
    np.testing.assert_array_equal(run(text, variant, x, z), shuffled[..., :c] if first else shuffled[..., c:])


@ELEMENTS
@pytest.mark.parametrize("variant", RUNNABLE)
@given(
    seed=SEEDS, channels=st.lists(st.sampled_from([1, 2, 3, 7, 15, 16, 18, 33, 64, 70]), min_size=1, max_size=4),
    size=SIZES, n=IMAGES,
)  # fmt: skip
@settings(FEW, max_examples=4)
def test_join_and_slice_equal_numpy(
    variant: str, element: str, seed: int, channels: list[int], size: tuple[int, int], n: int
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(channels)
    first = int(rng.integers(0, total))
    count = int(rng.integers(1, total - first + 1))
    kinds = [f"tensor<{n}x{size[0]}x{size[1]}x{c}x{element}>" for c in (*channels, total, count)]
    names = [f"%x{i}" for i in range(len(channels))]
    arguments = ", ".join(f"{name}: {kind}" for name, kind in zip(names, kinds, strict=False))
    text = f"""
func.func @main({arguments}) -> {kinds[-1]} {{
%j = tensor.concat dim(3) {", ".join(names)} : ({", ".join(kinds[:-2])}) -> {kinds[-2]}
%y = tensor.extract_slice %j[0, 0, 0, {first}] [{n}, {size[0]}, {size[1]}, {count}] [1, 1, 1, 1]
  : {kinds[-2]} to {kinds[-1]}
return %y : {kinds[-1]}
}}"""
    inputs = [rng.integers(-128, 128, (n, *size, c)).astype(DTYPES[element]) for c in channels]
    joined = np.concatenate(inputs, axis=-1)
    np.testing.assert_array_equal(run(text, variant, *inputs), joined[..., first : first + count])


def _quantization(rng: np.random.Generator, n: int, c: int, h: int, w: int) -> tuple[str, np.ndarray, np.ndarray]:
    """%x quantized from f32 planes %image and laid out channels last; an image, and what it becomes."""
    image, x = f"tensor<{n}x{c}x{h}x{w}xf32>", f"tensor<{n}x{h}x{w}x{c}xi8>"
    planes = image.replace("f32", "i8")
    low, high = np.sort(rng.choice(np.arange(-128, 128), 2, replace=False))
    given = {"scale": rng.uniform(0.01, 0.1), "zero": rng.integers(-128, 128), "low": low, "high": high}
    text = f"""{constants({name: np.asarray(value, np.float32) for name, value in given.items()})}
%planes = tensor.empty() : {planes}
%q = linalg.generic {{indexing_maps = [#id, #s, #s, #s, #s, #id], {LOOPS}}}
  ins(%image, %scale, %zero, %low, %high : {image}{", tensor<f32>" * 4}) outs(%planes : {planes}) {{
^bb0(%v: f32, %step: f32, %z: f32, %l: f32, %u: f32, %old: i8):
  %t0 = arith.divf %v, %step : f32
  %t1 = math.roundeven %t0 : f32
  %t2 = arith.addf %t1, %z : f32
  %t3 = arith.maxnumf %t2, %l : f32
  %t4 = arith.minnumf %t3, %u : f32
  %t5 = arith.fptosi %t4 : f32 to i8
  linalg.yield %t5 : i8
}} -> {planes}
%turned = tensor.empty() : {x}
%x = linalg.transpose ins(%q : {planes}) outs(%turned : {x}) permutation = [0, 2, 3, 1]"""
    real = rng.normal(0, 3, (n, c, h, w)).astype(np.float32)
    real.reshape(-1)[: min(3, real.size)] = [np.inf, -np.inf, 1e30][: min(3, real.size)]
    steps = np.rint(real / np.float32(given["scale"])) + np.float32(given["zero"])
    return text, real, np.clip(steps, low, high).astype(np.int8).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("variant", RUNNABLE)
@given(seed=SEEDS, c=st.sampled_from([1, 3, 4, 5, 9, 15, 16, 21]), size=SIZES, n=IMAGES)
@settings(FEW, max_examples=4)
def test_the_quantized_image_equals_numpy(variant: str, seed: int, c: int, size: tuple[int, int], n: int) -> None:
    quantization, real, x = _quantization(np.random.default_rng(seed), n, c, *size)
    image, y = f"tensor<{n}x{c}x{size[0]}x{size[1]}xf32>", f"tensor<{n}x{size[0]}x{size[1]}x{c}xi8>"
    text = f"{MAPS}func.func @main(%image: {image}) -> {y} {{\n{quantization}\nreturn %x : {y}\n}}"
    np.testing.assert_array_equal(run(text, variant, real), x)


def _first_layer(variant: str, case: Case) -> None:
    """A convolution of the quantized image, whose few channels lie in memory without gaps."""
    quantization, real, x = _quantization(np.random.default_rng(case.seed), case.n, case.c, case.h, case.w)
    given = numbers(case, "multiplier")
    head = f"(%x: tensor<{case.n}x{case.h}x{case.w}x{case.c}xi8>)"
    image = f"(%image: tensor<{case.n}x{case.c}x{case.h}x{case.w}xf32>)"
    before, after = module(case, "multiplier", given).split(head)
    result, body = after.split("{", 1)
    text = f"{before}{image}{result}{{\n{quantization}\n{body}"
    np.testing.assert_array_equal(run(text, variant, real), expected(case, "multiplier", given, None, x))


FEW_CHANNELS = cases("conv").flatmap(lambda case: st.sampled_from([replace(case, c=c) for c in (1, 2, 3, 4)]))


@pytest.mark.parametrize("variant", RUNNABLE)
@given(case=FEW_CHANNELS)
@settings(FEW, max_examples=4)
def test_the_first_layer_equals_numpy(variant: str, case: Case) -> None:
    _first_layer(variant, case)


@pytest.mark.slow
@pytest.mark.parametrize("variant", RUNNABLE)
@given(case=FEW_CHANNELS)
@MANY
def test_many_first_layers_equal_numpy(variant: str, case: Case) -> None:
    _first_layer(variant, case)
