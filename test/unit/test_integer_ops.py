"""The passes' own arithmetic equals the specification in quantune.numerics, which they may not import."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes.ir.build import elementwise, tensor_type
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import Node
from mlir_passes.ops import add, emit, requantize
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.schemes import SCHEMES
from quantune.numerics.simulate import bounds

SCALES = st.floats(-80, 80).map(lambda e: float(np.float32(math.ldexp(1 + (e % 1), math.floor(e)))))
scheme = st.sampled_from(sorted(SCHEMES))
RANGES = st.tuples(st.floats(-100, 0, width=32), st.floats(0, 100, width=32))


def _spec(params: QuantParams) -> QuantSpec:
    scale, zero_point, low, high = float(params.scale), int(params.zero_point), params.qmin, params.qmax
    return QuantSpec.per_tensor(scale, zero_point, storage_min=low, storage_max=high, signed=params.signed)


@given(SCALES, SCALES, SCALES)
def test_add_multipliers(a: float, b: float, out: float) -> None:
    assert add.multipliers(a, b, out) == affine.add_params(a, b, out)


@given(RANGES, scheme, st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_quantization_of_a_type_is_that_of_the_parameters_held_as_i8(
    limits: tuple[float, float], scheme: str, values: list[float]
) -> None:
    params = SCHEMES[scheme].params(*limits)
    spec, x = _spec(params), np.array(values, np.float32)
    offset = 0 if params.signed else 128
    stored = spec.quantize(x)
    np.testing.assert_array_equal(stored.astype(int) + offset, affine.quantize(x, params))
    np.testing.assert_array_equal(spec.dequantize(stored), affine.dequantize(affine.quantize(x, params), params))


@given(RANGES, scheme, st.floats(-50, 50, width=32), st.floats(0, 50, width=32))
@example((0.0, 1e-45), "asymmetric", 0.0, 0.0)  # 6.0 over the smallest scale is beyond f32
@example((-1e-38, 0.0), "symmetric", -50.0, 50.0)
def test_bounds_of_a_clamp(limits: tuple[float, float], scheme: str, low: float, extent: float) -> None:
    params = SCHEMES[scheme].params(*limits)
    offset = 0 if params.signed else 128
    for lo, hi in ((low, low + extent), (0.0, math.inf), (-math.inf, 6.0)):
        node = Node("c", "c", "clamp", ("x",), (1,), lo=lo, hi=hi)
        found = emit.limits(_spec(params).stored, node)
        assert tuple(bound + offset for bound in found) == bounds(node, params)


@given(SCALES, SCALES, SCALES)
def test_multipliers_and_shifts_of_scales(x: float, w: float, y: float) -> None:
    ratio = np.array([np.float64(w) * x / y])
    np.testing.assert_array_equal(requantize.to_f32(ratio), affine.multiplier(x, np.array([w]), y))
    powers = [2.0 ** math.floor(math.log2(scale)) for scale in (x, w, y)]
    exact = np.array([powers[0] * powers[1] / powers[2]])
    assert requantize.shifts(exact) == affine.shift_of(powers[0], np.array([powers[1]]), powers[2])


# The loop bodies, compiled for the CPU


def _accumulators() -> np.ndarray:
    """Every kind of i32: small, random of every size, and around the powers of two."""
    generator = np.random.default_rng(0)
    powers = [s * (1 << e) + d for e in range(31) for s in (-1, 1) for d in (-1, 0, 1)]
    random = generator.integers(-(1 << 31), 1 << 31, 4000) >> generator.integers(0, 31, 4000)
    limits = [-(1 << 31), (1 << 31) - 1]
    return np.array([*range(-600, 600), *powers, *random, *limits], np.int64).astype(np.int32)


def _run(body: object, arrays: list[np.ndarray]) -> np.ndarray:
    """One elementwise operation on tensors of one length, the accumulators first."""
    with ir.Context(), ir.Location.unknown():
        types = [tensor_type(array.shape, array.dtype) for array in arrays]
        module = ir.Module.parse("module {}")
        with ir.InsertionPoint(module.body):
            function = ir.Operation.parse(
                f"func.func @main({', '.join(f'%a{i}: {kind}' for i, kind in enumerate(types))}) -> "
                f"{tensor_type(arrays[0].shape, np.int8)} {{ "
                f"%0 = tensor.empty() : {tensor_type(arrays[0].shape, np.int8)} "
                f"return %0 : {tensor_type(arrays[0].shape, np.int8)} }}"
            )
            ir.InsertionPoint(module.body).insert(function)
        block = function.operation.regions[0].blocks[0]
        end = block.operations[1]
        with ir.InsertionPoint(end):
            out = elementwise(list(block.arguments), tensor_type(arrays[0].shape, np.int8), body)  # type: ignore[arg-type]
        end.operation.operands[0] = out
        return load_on_cpu(compile_for_cpu(str(module)))(*arrays)[0]


@pytest.mark.parametrize(("zero_point", "lo", "hi"), [(0, -128, 127), (-100, -100, 90)])
def test_the_shift_in_the_loop(zero_point: int, lo: int, hi: int) -> None:
    acc = np.repeat(_accumulators(), 40)
    shift = np.tile(np.arange(-9, 31, dtype=np.int32), len(acc) // 40)
    bias = np.zeros_like(acc)
    numbers = [np.full_like(acc, value) for value in (zero_point, lo, hi)]
    found = _run(requantize.SHIFT.body, [acc, bias, shift, *numbers])
    expected = affine.requantize_shift(acc, shift, zero_point, -128, 127)
    np.testing.assert_array_equal(found, np.clip(expected, lo, hi))


@pytest.mark.parametrize(("zero_point", "lo", "hi"), [(0, -128, 127), (-100, -100, 90)])
def test_the_multiplication_in_the_loop(zero_point: int, lo: int, hi: int) -> None:
    acc = np.repeat(_accumulators(), 20)
    generator = np.random.default_rng(1)
    multiplier = np.exp2(generator.uniform(-40, 10, len(acc))).astype(np.float32)
    multiplier[::20] = 0.5  # ties
    bias = generator.integers(-1000, 1000, len(acc)).astype(np.int32)
    numbers = [np.full(len(acc), value, np.float32) for value in (zero_point, lo, hi)]
    found = _run(requantize.MULTIPLIER.body, [acc, bias, multiplier, *numbers])
    with np.errstate(over="ignore"):
        total = acc + bias  # wraps, as the compiled sum does
    expected = affine.requantize(total, multiplier, zero_point, -128, 127)
    np.testing.assert_array_equal(found, np.clip(expected, lo, hi))
