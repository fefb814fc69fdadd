"""Recognizers of linalg forms: what each takes, and the near misses that it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from torch_mlir import ir

from mlir_passes.ir import match

IDENTITY = "affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>"
PARALLEL = '["parallel", "parallel", "parallel", "parallel"]'
T = "tensor<1x3x4x4xf32>"

_alive: list[ir.Module] = []  # an operation does not keep its module


@pytest.fixture(autouse=True)
def _context() -> Iterator[None]:
    with ir.Context(), ir.Location.unknown():
        yield
        _alive.clear()


def _function(body: str, arguments: str = f"%x: {T}, %y: {T}") -> dict[str, ir.Operation]:
    """The operations of a function by name, the last of each."""
    module = ir.Module.parse(f"func.func @f({arguments}) {{\n{body}\nreturn\n}}")
    _alive.append(module)
    block = module.body.operations[0].regions[0].blocks[0]
    return {op.operation.name: op.operation for op in block.operations}


def _elementwise(steps: str, ins: str = "%x", constants: str = "", maps: str = IDENTITY) -> ir.Operation:
    count = ins.count("%")
    types = ", ".join([T] * count)
    arguments = ", ".join(f"%a{i}: f32" for i in range(count))
    operations = _function(f"""
      %zero = arith.constant 0.0 : f32
      %six = arith.constant 6.0 : f32
      {constants}
      %e = tensor.empty() : {T}
      %r = linalg.generic {{indexing_maps = [{", ".join([maps] * count)}, {IDENTITY}], iterator_types = {PARALLEL}}}
        ins({ins} : {types}) outs(%e : {T}) {{
      ^bb0({arguments}, %out: f32):
        {steps}
      }} -> {T}""")
    return operations["linalg.generic"]


CLAMPS = {
    "relu": ("%c = arith.cmpf ugt, %a0, %zero : f32\n%s = arith.select %c, %a0, %zero : f32", (0, math.inf)),
    "relu, constant first": (
        "%c = arith.cmpf olt, %zero, %a0 : f32\n%s = arith.select %c, %a0, %zero : f32",
        (0, math.inf),
    ),
    "relu, constant picked": (
        "%c = arith.cmpf ule, %a0, %zero : f32\n%s = arith.select %c, %zero, %a0 : f32",
        (0, math.inf),
    ),
    "min": ("%c = arith.cmpf ult, %a0, %six : f32\n%s = arith.select %c, %a0, %six : f32", (-math.inf, 6)),
    "min, written as not above": (
        "%c = arith.cmpf ogt, %a0, %six : f32\n%s = arith.select %c, %six, %a0 : f32",
        (-math.inf, 6),
    ),
    "both": (
        "%c = arith.cmpf ult, %a0, %zero : f32\n%t = arith.select %c, %zero, %a0 : f32\n"
        "%d = arith.cmpf ugt, %t, %six : f32\n%s = arith.select %d, %six, %t : f32",
        (0, 6),
    ),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_clamp(name: str) -> None:
    steps, bounds = CLAMPS[name]
    op = _elementwise(f"{steps}\nlinalg.yield %s : f32")
    found = match.match_clamp(op)
    assert found is not None
    assert found[0] == op.operands[0]
    assert found[1:] == bounds


NO_CLAMPS = {
    "equality": (
        "%c = arith.cmpf oeq, %a0, %zero : f32\n%s = arith.select %c, %a0, %zero : f32\nlinalg.yield %s : f32"
    ),
    "another value picked": (
        "%c = arith.cmpf ugt, %a0, %zero : f32\n%s = arith.select %c, %a0, %six : f32\nlinalg.yield %s : f32"
    ),
    "two constants": (
        "%c = arith.cmpf ugt, %six, %zero : f32\n%s = arith.select %c, %six, %zero : f32\nlinalg.yield %s : f32"
    ),
    "the old value of the result": (
        "%c = arith.cmpf ugt, %out, %zero : f32\n%s = arith.select %c, %out, %zero : f32\nlinalg.yield %s : f32"
    ),
    "the result is not the select": (
        "%c = arith.cmpf ugt, %a0, %zero : f32\n%s = arith.select %c, %a0, %zero : f32\nlinalg.yield %a0 : f32"
    ),
    "the second step bounds the argument again": (
        "%c = arith.cmpf ult, %a0, %zero : f32\n%t = arith.select %c, %zero, %a0 : f32\n"
        "%d = arith.cmpf ugt, %a0, %six : f32\n%s = arith.select %d, %six, %a0 : f32\nlinalg.yield %s : f32"
    ),
    "the select asks another comparison": (
        "%c = arith.cmpf ult, %a0, %zero : f32\n%t = arith.select %c, %zero, %a0 : f32\n"
        "%d = arith.cmpf ugt, %t, %six : f32\n%s = arith.select %c, %six, %t : f32\nlinalg.yield %s : f32"
    ),
    "nothing": "linalg.yield %a0 : f32",
}


@pytest.mark.parametrize("name", NO_CLAMPS)
def test_near_misses_of_clamp(name: str) -> None:
    assert match.match_clamp(_elementwise(NO_CLAMPS[name])) is None


def test_clamp_needs_the_identity_map() -> None:
    swapped = "affine_map<(d0, d1, d2, d3) -> (d0, d1, d3, d2)>"
    op = _elementwise(f"{CLAMPS['relu'][0]}\nlinalg.yield %s : f32", maps=swapped)
    assert match.match_clamp(op) is None


def test_a_bound_may_be_a_splat_tensor() -> None:
    steps = "%c = arith.cmpf ugt, %a0, %a1 : f32\n%s = arith.select %c, %a0, %a1 : f32\nlinalg.yield %s : f32"
    op = _elementwise(steps, ins="%x, %three", constants=f"%three = arith.constant dense<3.0> : {T}")
    found = match.match_clamp(op)
    assert found is not None
    assert found[1:] == (3, math.inf)
    assert match.match_clamp(_elementwise(steps, ins="%x, %y")) is None  # the larger of two tensors


@pytest.mark.parametrize(
    ("first", "then", "both"),
    [
        ((0, math.inf), (-math.inf, 6), (0, 6)),
        ((-math.inf, 6), (0, math.inf), (0, 6)),
        ((-1, 1), (0, 6), (0, 1)),
        ((-math.inf, -1), (0, math.inf), (0, 0)),
        ((7, 9), (0, 6), (6, 6)),
    ],
)
def test_clamps_compose(first: tuple[float, float], then: tuple[float, float], both: tuple[float, float]) -> None:
    assert match.compose_clamps(first, then) == both
    values = np.linspace(-10, 10, 41)
    np.testing.assert_array_equal(np.clip(np.clip(values, *first), *then), np.clip(values, *both))


def test_add_of_two_tensors_or_of_one_twice() -> None:
    op = _elementwise("%s = arith.addf %a0, %a1 : f32\nlinalg.yield %s : f32", ins="%x, %y")
    assert match.match_add(op) == (op.operands[0], op.operands[1])
    op = _elementwise("%s = arith.addf %a0, %a0 : f32\nlinalg.yield %s : f32")
    assert match.match_add(op) == (op.operands[0], op.operands[0])


@pytest.mark.parametrize(
    "steps",
    [
        "%s = arith.subf %a0, %a1 : f32",
        "%s = arith.addf %a0, %six : f32",
        "%s = arith.addf %a0, %out : f32",
        "%t = arith.addf %a0, %a1 : f32\n%s = arith.addf %t, %a1 : f32",
    ],
)
def test_near_misses_of_add(steps: str) -> None:
    assert match.match_add(_elementwise(f"{steps}\nlinalg.yield %s : f32", ins="%x, %y")) is None


def test_add_of_a_transposed_tensor_is_none() -> None:
    swapped = "affine_map<(d0, d1, d2, d3) -> (d0, d1, d3, d2)>"
    steps = "%s = arith.addf %a0, %a1 : f32\nlinalg.yield %s : f32"
    assert match.match_add(_elementwise(steps, ins="%x, %y", maps=swapped)) is None


def _bias_add(kind: str, bias_map: str, shape: str, dims: str) -> ir.Operation:
    identity = f"affine_map<({dims}) -> ({dims})>"
    parallel = ", ".join(['"parallel"'] * (dims.count(",") + 1))
    return _function(
        f"""
      %b = arith.constant dense<2.0> : tensor<{kind}xf32>
      %e = tensor.empty() : tensor<{shape}xf32>
      %r = linalg.generic {{indexing_maps = [{identity}, affine_map<({dims}) -> ({bias_map})>, {identity}],
        iterator_types = [{parallel}]}} ins(%x, %b : tensor<{shape}xf32>, tensor<{kind}xf32>)
        outs(%e : tensor<{shape}xf32>) {{
      ^bb0(%p: f32, %q: f32, %out: f32):
        %s = arith.addf %p, %q : f32
        linalg.yield %s : f32
      }} -> tensor<{shape}xf32>""",
        f"%x: tensor<{shape}xf32>",
    )["linalg.generic"]


@pytest.mark.parametrize(
    ("kind", "bias_map", "shape", "dims"),
    [
        ("4", "d1", "2x4", "d0, d1"),
        ("1x4", "0, d1", "2x4", "d0, d1"),
        ("4x1x1", "d1, 0, 0", "2x4x3x3", "d0, d1, d2, d3"),
        ("1x4x1x1", "0, d1, 0, 0", "2x4x3x3", "d0, d1, d2, d3"),
        ("1x4x1x1", "d0, d1, 0, 0", "1x4x3x3", "d0, d1, d2, d3"),
    ],
)
def test_bias_add(kind: str, bias_map: str, shape: str, dims: str) -> None:
    op = _bias_add(kind, bias_map, shape, dims)
    found = match.match_bias_add(op)
    assert found is not None
    assert found[0] == op.operands[0]
    np.testing.assert_array_equal(found[1], np.full(4, 2, np.float32))


@pytest.mark.parametrize(
    ("kind", "bias_map", "shape", "dims"),
    [
        pytest.param("4", "d0", "4x4", "d0, d1", id="along the batch"),
        pytest.param("4", "d3", "1x4x4x4", "d0, d1, d2, d3", id="along the width"),
        pytest.param("4x1x1", "d3, 0, 0", "1x4x4x4", "d0, d1, d2, d3", id="its channels along the width"),
        pytest.param("1x4x3x3", "d0, d1, d2, d3", "1x4x3x3", "d0, d1, d2, d3", id="one for each element"),
        pytest.param("4", "d0", "4", "d0", id="rank 1"),
    ],
)
def test_near_misses_of_bias_add(kind: str, bias_map: str, shape: str, dims: str) -> None:
    assert match.match_bias_add(_bias_add(kind, bias_map, shape, dims)) is None


def test_divide_by_a_constant() -> None:
    op = _elementwise("%s = arith.divf %a0, %six : f32\nlinalg.yield %s : f32")
    assert match.match_divide(op) == (op.operands[0], 6)
    steps = "%s = arith.divf %a0, %a1 : f32\nlinalg.yield %s : f32"
    op = _elementwise(steps, ins="%x, %nine", constants=f"%nine = arith.constant dense<9.0> : {T}")
    assert match.match_divide(op) == (op.operands[0], 9)


@pytest.mark.parametrize("steps", ["arith.divf %six, %a0", "arith.divf %a0, %a0", "arith.divf %out, %six"])
def test_near_misses_of_divide(steps: str) -> None:
    assert match.match_divide(_elementwise(f"%s = {steps} : f32\nlinalg.yield %s : f32")) is None


def _sum(out_shape: str, out_map: str, start: float = 0.0, step: str = "arith.addf") -> ir.Operation:
    return _function(f"""
      %start = arith.constant {start} : f32
      %e = tensor.empty() : tensor<{out_shape}xf32>
      %f = linalg.fill ins(%start : f32) outs(%e : tensor<{out_shape}xf32>) -> tensor<{out_shape}xf32>
      %r = linalg.generic {{indexing_maps = [{IDENTITY}, affine_map<(d0, d1, d2, d3) -> ({out_map})>],
        iterator_types = ["parallel", "parallel", "reduction", "reduction"]}}
        ins(%x : {T}) outs(%f : tensor<{out_shape}xf32>) {{
      ^bb0(%in: f32, %out: f32):
        %s = {step} %in, %out : f32
        linalg.yield %s : f32
      }} -> tensor<{out_shape}xf32>""")["linalg.generic"]


def test_spatial_sum() -> None:
    for op in (_sum("1x3", "d0, d1"), _sum("1x3x1x1", "d0, d1, 0, 0")):
        assert match.match_spatial_sum(op) == op.operands[0]
    assert match.match_spatial_sum(_sum("1x3", "d0, d1", start=1.0)) is None
    assert match.match_spatial_sum(_sum("1x3", "d0, d1", step="arith.mulf")) is None
    assert match.match_spatial_sum(_sum("3x1", "d1, d0")) is None


PADS = {
    "outer constant": "tensor.yield %c : f32",
    "inner constant": "%d = arith.constant 2.5 : f32\ntensor.yield %d : f32",
}


@pytest.mark.parametrize("name", PADS)
def test_pad(name: str) -> None:
    op = _function(f"""
      %c = arith.constant 2.5 : f32
      %p = tensor.pad %x low[0, 0, 1, 2] high[0, 0, 3, 4] {{
      ^bb0(%i: index, %j: index, %k: index, %l: index):
        {PADS[name]}
      }} : {T} to tensor<1x3x8x10xf32>""")["tensor.pad"]
    assert match.match_pad(op) == match.Pad(op.operands[0], (0, 0, 1, 2), (0, 0, 3, 4), 2.5)


def test_near_misses_of_pad() -> None:
    operations = _function(
        f"""
      %c = arith.constant 2.5 : f32
      %p = tensor.pad %x low[0, 0, 1, 1] high[0, 0, 1, 1] {{
      ^bb0(%i: index, %j: index, %k: index, %l: index):
        tensor.yield %v : f32
      }} : {T} to tensor<1x3x6x6xf32>""",
        f"%x: {T}, %v: f32",
    )
    assert match.match_pad(operations["tensor.pad"]) is None
    assert match.match_pad(operations["arith.constant"]) is None
    dynamic = _function(
        f"""
      %c = arith.constant 2.5 : f32
      %p = tensor.pad %x low[0, 0, %n, 1] high[0, 0, 1, 1] {{
      ^bb0(%i: index, %j: index, %k: index, %l: index):
        tensor.yield %c : f32
      }} : {T} to tensor<1x3x?x6xf32>""",
        f"%x: {T}, %n: index",
    )
    assert match.match_pad(dynamic["tensor.pad"]) is None


def test_scalars_are_seen_through_fills_splats_and_reshapes() -> None:
    operations = _function("""
      %c = arith.constant 1.5 : f32
      %e = tensor.empty() : tensor<4xf32>
      %f = linalg.fill ins(%c : f32) outs(%e : tensor<4xf32>) -> tensor<4xf32>
      %r = tensor.expand_shape %f [[0, 1]] output_shape [2, 2] : tensor<4xf32> into tensor<2x2xf32>""")
    assert match.scalar(operations["tensor.expand_shape"].results[0]) == 1.5
    assert match.scalar(operations["tensor.empty"].results[0]) is None
    mixed = _function("%c = arith.constant dense<[1.0, 2.0]> : tensor<2xf32>")["arith.constant"]
    assert match.scalar(mixed.results[0]) is None


def test_channel_bias_is_a_broadcast_constant_or_one_number() -> None:
    broadcast = """
      %b = arith.constant dense<[1.0, 2.0, 3.0]> : tensor<3xf32>
      %e = tensor.empty() : tensor<1x3x4x4xf32>
      %r = linalg.broadcast ins(%b : tensor<3xf32>) outs(%e : tensor<1x3x4x4xf32>) dimensions = [0, 2, 3]"""
    value = _function(broadcast)["linalg.broadcast"].results[0]
    bias = match.channel_bias(value, 3)
    assert bias is not None
    assert bias.tolist() == [1, 2, 3]
    assert match.channel_bias(value, 4) is None
    operations = _function(f"%c = arith.constant dense<0.5> : {T}")
    bias = match.channel_bias(operations["arith.constant"].results[0], 3)
    assert bias is not None
    assert bias.tolist() == [0.5] * 3
    along_width = broadcast.replace("tensor<3xf32>", "tensor<4xf32>").replace("3.0]", "3.0, 4.0]")
    value = _function(along_width.replace("[0, 2, 3]", "[0, 1, 2]"))["linalg.broadcast"].results[0]
    assert match.channel_bias(value, 4) is None
    assert match.channel_bias(value, 3) is None


def test_float_detail_names_the_arithmetic() -> None:
    op = _elementwise("%s = math.exp %a0 : f32\n%t = arith.divf %s, %six : f32\nlinalg.yield %t : f32")
    assert match.float_detail(op) == "math.exp + arith.divf"
    assert match.float_detail(_elementwise("linalg.yield %a0 : f32")) == "broadcast"
    assert match.float_detail(_function(f"%e = tensor.empty() : {T}")["tensor.empty"]) == "tensor.empty"
