"""Quantization parameters: validation, MLIR types and the arithmetic in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_mlir import ir

from mlir_passes.ir.quant_types import QuantSpec, is_quantized

_SCALES = st.floats(min_value=2.0**-30, max_value=2.0**20, width=32)
_REALS = hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False))


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    signed = draw(st.booleans())
    low, high = (-128, 127) if signed else (0, 255)
    storage_min = draw(st.integers(low, high - 2))
    storage_max = draw(st.integers(storage_min + 2, high))
    channels = draw(st.integers(1, 4))
    axis = draw(st.none() | st.integers(0, 3)) if channels == 1 else draw(st.integers(0, 3))
    scales = draw(st.lists(_SCALES, min_size=channels, max_size=channels))
    points = draw(st.lists(st.integers(storage_min, storage_max), min_size=channels, max_size=channels))
    return QuantSpec(tuple(scales), tuple(points), storage_min, storage_max, signed, axis)


@st.composite
def per_tensor_specs(draw: st.DrawFn) -> QuantSpec:
    spec = draw(specs())
    return QuantSpec(spec.scales[:1], spec.zero_points[:1], spec.storage_min, spec.storage_max, spec.signed)


@given(specs())
def test_type_round_trip(spec: QuantSpec) -> None:
    with ir.Context():
        assert QuantSpec.from_type(spec.to_type()) == spec
        printed = ir.Type.parse(str(spec.to_type()))
        assert QuantSpec.from_type(printed) == spec
        assert QuantSpec.from_type(ir.RankedTensorType.get([2] * 4, printed, loc=ir.Location.unknown())) == spec


@given(specs())
def test_stored_is_signed_i8_on_the_same_grid(spec: QuantSpec) -> None:
    stored = spec.stored
    assert stored.signed
    assert stored.scales == spec.scales
    assert stored.stored == stored
    offset = 0 if spec.signed else -128
    assert spec.to_storage_offset == offset
    assert stored.zero_points == tuple(point + offset for point in spec.zero_points)
    assert (stored.storage_min, stored.storage_max) == (spec.storage_min + offset, spec.storage_max + offset)


@given(per_tensor_specs(), _REALS)
def test_quantize_is_nearest_and_saturates(spec: QuantSpec, real: np.ndarray) -> None:
    stored = spec.stored
    integers = spec.quantize(real).astype(np.float64)
    scale, zero_point = float(np.float32(spec.scales[0])), stored.zero_points[0]
    exact = real.astype(np.float64) / scale + zero_point
    inside = (exact >= stored.storage_min) & (exact <= stored.storage_max)
    # The f32 quotient may fall on the other side of a half: allow its rounding error.
    assert np.all(np.abs(integers - exact)[inside] <= 0.5 + 1e-4)
    assert np.all(integers[exact > stored.storage_max + 1] == stored.storage_max)
    assert np.all(integers[exact < stored.storage_min - 1] == stored.storage_min)


@given(per_tensor_specs())
def test_zero_and_every_integer_are_exact(spec: QuantSpec) -> None:
    stored = spec.stored
    assert spec.dequantize(spec.quantize(np.zeros(1, np.float32)))[0] == 0
    integers = np.arange(stored.storage_min, stored.storage_max + 1).astype(np.int8)
    np.testing.assert_array_equal(spec.quantize(spec.dequantize(integers)), integers)


@given(st.lists(_SCALES, min_size=1, max_size=4), st.data())
def test_per_channel_is_per_tensor_of_each_channel(scales: list[float], data: st.DataObject) -> None:
    real = data.draw(hnp.arrays(np.float32, (2, len(scales), 3), elements=st.floats(-1e6, 1e6, width=32)))
    spec = QuantSpec.per_channel(scales, axis=1)
    for channel, scale in enumerate(scales):
        alone = QuantSpec.per_tensor(scale, storage_min=-127)
        np.testing.assert_array_equal(spec.quantize(real)[:, channel], alone.quantize(real[:, channel]))


def test_quantize_rounds_half_to_even_and_defines_every_float() -> None:
    spec = QuantSpec.per_tensor(0.5, 3, storage_min=0, storage_max=255, signed=False)
    real = np.array([0.25, 0.75, 1.25, np.nan, np.inf, -np.inf, 3e38, -3e38], np.float32)
    assert (spec.quantize(real).astype(int) + 128).tolist() == [3, 5, 5, 0, 255, 0, 255, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": (0.0,)}, "scale is 0.0"),
        ({"scales": (-1.0,)}, "scale is -1.0"),
        ({"scales": (float("nan"),)}, "scale is nan"),
        ({"scales": (float("inf"),)}, "scale is inf"),
        ({"scales": (1e-60,)}, "scale is 1e-60"),
        ({"scales": (1e60,)}, "scale is 1e\\+60"),
        ({"zero_points": (200,)}, "zero point is 200"),
        ({"zero_points": (-8,), "storage_min": -7}, "zero point is -8"),
        ({"storage_min": -129}, "storage range \\[-129, 127\\]"),
        ({"signed": False}, "storage range \\[-128, 127\\].*\\[0, 255\\]"),
        ({"storage_min": 0, "storage_max": 1}, "storage range \\[0, 1\\]"),
        ({"scales": (), "zero_points": ()}, "0 scales"),
        ({"scales": (1.0, 1.0)}, "2 scales for 1 zero points"),
        ({"scales": (1.0, 1.0), "zero_points": (0, 0)}, "2 scales without an axis"),
        ({"axis": -1}, "axis is -1"),
    ],
)
def test_invalid_parameters_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantSpec(**{"scales": (1.0,), "zero_points": (0,), **arguments})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i8", "not a uniform quantized type"),
        ("tensor<2xf32>", "not a uniform quantized type"),
        ("!quant.uniform<i4:f32, 0.5>", "not stored in 8 bits"),
        ("!quant.uniform<i8:f32, 0.5:300>", "zero point is 300"),
    ],
)
def test_from_type_rejects(text: str, message: str) -> None:
    with ir.Context(), pytest.raises(ValueError, match=message):
        QuantSpec.from_type(ir.Type.parse(text))


def test_is_quantized_looks_inside() -> None:
    with ir.Context():
        assert is_quantized(ir.Type.parse("(tensor<2xf32>) -> tensor<2x!quant.uniform<i8:f32, 0.5>>"))
        assert not is_quantized(ir.Type.parse("(tensor<2xi8>) -> tensor<2xf32>"))
