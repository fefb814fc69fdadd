"""Packing of narrow weights: planes hold every integer, and the compiled initializer gives them back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes.ir import build
from mlir_passes.passes.pack_weights import from_planes, packed_bytes, to_planes, width_of
from mlir_passes.pipeline import Pipeline


@given(st.integers(2, 7), st.data())
def test_planes_give_back_every_integer_in_exactly_its_bits(bits: int, data: st.DataObject) -> None:
    largest = 2 ** (bits - 1) - 1
    values = data.draw(st.lists(st.integers(-largest, largest), min_size=1, max_size=70))
    integers = np.array(values, np.int8)
    planes = to_planes(integers, bits)
    assert planes.shape == (bits, -(-len(values) // 8))
    np.testing.assert_array_equal(from_planes(planes, len(values)), integers)


@pytest.mark.parametrize(
    ("values", "bits"), [([0], 2), ([1, -1], 2), ([2], 3), ([-7, 7], 4), ([8], 5), ([63], 7), ([-64], 8), ([-128], 9)]
)
def test_a_width_is_the_smallest_symmetric_range(values: list[int], bits: int) -> None:
    assert width_of(np.array(values, np.int8)) == bits


@pytest.mark.parametrize(("value", "bits"), [(-8, 4), (8, 4), (2, 2), (127, 7)])
def test_an_integer_outside_of_the_range_is_refused(value: int, bits: int) -> None:
    with pytest.raises(ValueError, match="outside of"):
        to_planes(np.array([value], np.int8), bits)


def test_only_weights_count_as_packed() -> None:
    narrow, wide = np.full((16, 32), -3, np.int8), np.full(512, 127, np.int8)
    assert packed_bytes({"a.weight": narrow}) == 512 * 3 // 8
    assert packed_bytes({"a.weight": wide, "a.other": narrow, "a.bias": np.zeros(4, np.int32)}) == 512 + 512 + 16


def test_a_compiled_program_holds_the_packed_bits_and_returns_the_integers() -> None:
    """Six widths, shapes of several ranks; the constants of the compiled file take the packed bytes, not the plain."""
    rng = np.random.default_rng(0)
    shapes = {2: (9, 9000), 3: (70, 3, 3, 140), 4: (50_000,), 5: (640, 64), 6: (3, 2, 9000), 7: (60, 999)}
    weights = {}
    for bits, shape in shapes.items():
        largest = 2 ** (bits - 1) - 1
        weights[bits] = rng.integers(-largest, largest + 1, shape).astype(np.int8)
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        results = [build.tensor_type(shape, np.int8) for shape in shapes.values()]
        with ir.InsertionPoint(module.body):
            function = ir.Operation.create(
                "func.func",
                attributes={
                    "sym_name": ir.StringAttr.get("main"),
                    "function_type": ir.TypeAttr.get(ir.FunctionType.get([], results)),
                },
                regions=1,
            )
        with ir.InsertionPoint(function.regions[0].blocks.append()):
            values = [build.parameter(f"layer{bits}.weight", w) for bits, w in weights.items()]
            ir.Operation.create("func.return", [], values)
        plain = compile_for_cpu(str(module))
        Pipeline.parse("quantune-pack-weights").run(module)
        vmfb = compile_for_cpu(str(module))
    for result, expected in zip(load_on_cpu(vmfb)(), weights.values(), strict=True):
        np.testing.assert_array_equal(result, expected)
    packed = packed_bytes({f"layer{bits}.weight": w for bits, w in weights.items()})
    assert packed < 0.55 * sum(w.nbytes for w in weights.values())
    code = 30_000  # six unpacking loops
    assert len(vmfb) < packed + code < len(plain)
