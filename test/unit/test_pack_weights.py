"""Packing of narrow weights: planes hold every integer, and the compiled initializer gives them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes.ir import build
from mlir_passes.passes.pack_weights import Storage, from_planes, packed_bytes, storage_of, to_planes, width_of
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


@pytest.mark.parametrize(
    ("values", "storage"),
    [
        ([-3, -1, 1, 3], Storage(2, True, 133)),
        ([5], Storage(1, True, 67)),
        ([-1, 0, 1], Storage(2, False, 128)),  # a table would take more
        ([-128, 127], Storage(1, True, 67)),
        (range(-7, 8), Storage(4, False, 256)),
        (range(-64, 63), Storage(7, True, 4 * (7 * 64 + 1) + 128)),
        (range(-64, 65), None),
    ],
)
def test_a_weight_is_stored_by_what_takes_the_fewest_bytes(values: Iterable[int], storage: Storage | None) -> None:
    integers = np.array([*values], np.int8)
    if storage is not None and storage.bytes > 512:
        integers = np.tile(integers, 16)
    assert storage_of(integers) == storage
    assert packed_bytes({"a.weight": integers}) == (integers.nbytes if storage is None else storage.bytes)


def test_only_weights_count_as_packed() -> None:
    narrow, wide = np.resize(np.arange(-3, 4, dtype=np.int8), (16, 32)), np.arange(-128, 128, dtype=np.int8).repeat(2)
    assert packed_bytes({"a.weight": narrow}) == 512 * 3 // 8
    assert packed_bytes({"a.weight": wide, "a.other": narrow, "a.bias": np.zeros(4, np.int32)}) == 512 + 512 + 16


def _of_widths(rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Weights of all integers of a width, in shapes of several ranks."""
    shapes = {2: (9, 9000), 3: (70, 3, 3, 140), 4: (50_000,), 5: (640, 64), 6: (3, 2, 9000), 7: (60, 999)}
    limits = {bits: 2 ** (bits - 1) - 1 for bits in shapes}
    return {bits: rng.integers(-limits[bits], limits[bits] + 1, s).astype(np.int8) for bits, s in shapes.items()}


def _of_tables(rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Weights of a few integers: one, two, a pair's rows, -128, one format twice, 100 of them, and 150 small layers."""
    tables = [[9], [-1, 1], [-3, -1, 1, 3], [-128, -2, 5, 127], [*range(-15, 16, 2)], [-64, -9, *range(14)]]
    tables += [[*rng.choice(np.arange(-127, 128), 100, replace=False)]]
    sizes = [(70, 9), (3, 3, 4000), (40_000,), (5, 99), (130, 300), (80_001,), (9, 7001)]
    weights = [rng.choice(np.array(t, np.int8), size) for t, size in zip(tables, sizes, strict=True)]
    return dict(
        enumerate([*weights, *(rng.choice(np.array([-3, -1, 1, 3 + i % 90], np.int8), 40) for i in range(150))])
    )


@pytest.mark.parametrize("made", [_of_widths, _of_tables])
def test_a_compiled_program_holds_the_packed_bits_and_returns_the_integers(
    made: Callable[[np.random.Generator], dict[int, np.ndarray]],
) -> None:
    """The constants of the compiled file take the packed bytes, not the plain."""
    weights = made(np.random.default_rng(0))
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        results = [build.tensor_type(shape, np.int8) for shape in (w.shape for w in weights.values())]
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
    assert packed < 0.6 * sum(w.nbytes for w in weights.values())
    code = 30_000 + 300 * len(weights)  # unpacking loops
    assert len(vmfb) < packed + code < len(plain)
