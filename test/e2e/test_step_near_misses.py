"""What is nearly a difference, product, step with constants or reduction is recognized as what it is, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from near_misses import evaluate, mutants
from torch_mlir import ir

from mlir_passes.ir import match
from mlir_passes.ir.build import walk
from mlir_passes.ir.match_steps import match_channel_step, match_reduction

IMAGE, LOOPS = "tensor<4x4x4x4xf32>", '["parallel", "parallel", "parallel", "parallel"]'
Values = dict[ir.Value, np.ndarray]


def _binary(name: str, compute: np.ufunc) -> Callable[[ir.Operation, Values], np.ndarray | None]:
    def said(op: ir.Operation, values: Values) -> np.ndarray | None:
        found = match.match_binary(op, name)
        return None if found is None else compute(values[found[0]], values[found[1]])

    return said


def _step(op: ir.Operation, values: Values) -> np.ndarray | None:
    found = match_channel_step(op)
    if found is None:
        return None
    factor, shift = (numbers.reshape(1, -1, 1, 1) for numbers in (found.factor, found.shift))
    return values[found.source] * factor + shift


def _reduction(op: ir.Operation, values: Values) -> np.ndarray | None:
    found = match_reduction(op)
    if found is None:
        return None
    combine = np.add if found.kind == "sum" else np.maximum
    value = combine.reduce(values[found.source], axis=found.axes, keepdims=True)
    return value.reshape(match.shape_of(op.results[0]))


CONSTANT, PLACES, CORNER = "tensor<1x4x1x1xf32>", "tensor<4x1x4x4xf32>", "tensor<4x1xf32>"
FORMS: dict[str, tuple] = {
    "difference": (
        _binary("arith.subf", np.subtract), IMAGE, "#id", LOOPS, IMAGE, PLACES, "#places", "arith.subf %a, %b",
    ),
    "product": (
        _binary("arith.mulf", np.multiply), IMAGE, "#id", LOOPS, IMAGE, CORNER, "#corner", "arith.mulf %a, %b",
    ),
    "factors": (_step, IMAGE, "#id", LOOPS, IMAGE, CONSTANT, "#channels", "arith.mulf %a, %b"),
    "divisors": (_step, IMAGE, "#id", LOOPS, IMAGE, CONSTANT, "#channels", "arith.divf %a, %b"),
    "shifts": (_step, IMAGE, "#id", LOOPS, IMAGE, CONSTANT, "#channels", "arith.subf %a, %b"),
    "from shifts": (_step, IMAGE, "#id", LOOPS, IMAGE, CONSTANT, "#channels", "arith.subf %b, %a"),
    "sum": (
        _reduction, "tensor<4x1x4x1xf32>", "affine_map<(n, c, h, w) -> (n, 0, h, 0)>",
        '["parallel", "reduction", "parallel", "reduction"]', IMAGE, None, None, "arith.addf %a, %old",
    ),
    "maximum": (
        _reduction, "tensor<4x4xf32>", "affine_map<(n, c, h, w) -> (n, w)>",
        '["parallel", "reduction", "reduction", "parallel"]', IMAGE, None, None, "arith.maximumf %a, %old",
    ),
}  # fmt: skip


def _text(result: str, map_: str, loops: str, image: str, other: str | None, other_map: str | None, step: str) -> str:
    is_constant = other == CONSTANT
    inputs = f"%x: {image}" + (f", %y: {other}" if other is not None and not is_constant else "")
    second = "" if other is None else ", %k" if is_constant else ", %y"
    start = "0xFF800000" if "maximum" in step else "0.0"
    return f"""
#id = affine_map<(n, c, h, w) -> (n, c, h, w)>
#places = affine_map<(n, c, h, w) -> (n, 0, h, w)>
#corner = affine_map<(n, c, h, w) -> (h, 0)>
#channels = affine_map<(n, c, h, w) -> (0, c, 0, 0)>
func.func @main({inputs}) -> {result} {{
%k = arith.constant dense<[[[[1.5]], [[-2.0]], [[3.0]], [[0.5]]]]> : {CONSTANT}
%start = arith.constant {start} : f32
%empty = tensor.empty() : {result}
%e = linalg.fill ins(%start : f32) outs(%empty : {result}) -> {result}
%r = linalg.generic {{indexing_maps = [#id, {f"{other_map}, " if other_map else ""}{map_}], iterator_types = {loops}}}
  ins(%x{second} : {image}{f", {other}" if other else ""}) outs(%e : {result}) {{
^bb0(%a: f32, {"%b: f32, " if other else ""}%old: f32):
%s = {step} : f32
linalg.yield %s : f32
}} -> {result}
return %r : {result}
}}"""


@pytest.mark.parametrize("name", FORMS)
def test_a_near_miss_is_recognized_as_what_it_is_or_not_at_all(name: str) -> None:
    said, *form = FORMS[name]
    module = ir.Module.parse(_text(*form), context=ir.Context())
    function = module.body.operations[0].operation
    op = next(each for each in walk(function) if each.name == "linalg.generic")
    generator = np.random.default_rng(0)
    values: Values = {
        argument: generator.normal(0, 1, match.shape_of(argument)).astype(np.float32)
        for argument in function.regions[0].blocks[0].arguments
    }
    assert said(op, values) is not None
    missed = 0
    for each in (op, *mutants(op)):
        operands = [values[operand] if operand in values else _constant(operand) for operand in each.operands]
        found = said(each, values)
        missed += found is None
        if found is not None:
            value, defined = evaluate(each, operands)
            found = np.broadcast_to(found, value.shape)
            np.testing.assert_allclose(value[defined], found[defined], rtol=1e-5, atol=1e-6, err_msg=str(each))
    assert missed > 5


def _constant(value: ir.Value) -> np.ndarray:
    number = match.scalar(value)
    if number is not None:
        return np.full(match.shape_of(value), number, np.float32)
    found = match.owner(value)
    assert found is not None
    return np.array(found.attributes["value"])


@pytest.mark.parametrize(("name", "own", "other"), [("sum", " 0.0", " 1.0"), ("maximum", "0xFF800000", "0.0")])
def test_a_reduction_that_starts_elsewhere_is_none(name: str, own: str, other: str) -> None:
    _, *form = FORMS[name]
    for start, expected in ((own, name), (other, None)):
        text = _text(*form).replace(
            f"%start = arith.constant {own.strip()}", f"%start = arith.constant {start.strip()}"
        )
        module = ir.Module.parse(text, context=ir.Context())
        op = next(each for each in walk(module.operation) if each.name == "linalg.generic")
        found = match_reduction(op)
        assert (None if found is None else found.kind) == expected
