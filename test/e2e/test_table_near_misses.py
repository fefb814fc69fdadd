"""What is nearly hard-swish is read as what it computes: each operand, predicate, map and loop changed in turn."""

from __future__ import annotations

import numpy as np
from near_misses import evaluate, mutants
from torch_mlir import ir

from mlir_passes.ir.build import walk
from mlir_passes.ops.reader import read_network

IMAGE = "tensor<2x2x2x2xf32>"
HARD_SWISH = f"""
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
func.func @main(%x: {IMAGE}) -> {IMAGE} {{
%c3 = arith.constant 3.0 : f32
%c6 = arith.constant 6.0 : f32
%zero = arith.constant 0.0 : f32
%e = tensor.empty() : {IMAGE}
%y = linalg.generic {{indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
    ins(%x : {IMAGE}) outs(%e : {IMAGE}) {{
^bb0(%v: f32, %old: f32):
  %a = arith.addf %v, %c3 : f32
  %p = arith.cmpf ogt, %a, %zero : f32
  %b = arith.select %p, %a, %zero : f32
  %d = arith.minimumf %b, %c6 : f32
  %m = arith.mulf %v, %d : f32
  %r = arith.divf %m, %c6 : f32
  linalg.yield %r : f32
}} -> {IMAGE}
return %y : {IMAGE}
}}"""


def test_a_changed_operation_is_read_as_what_it_computes() -> None:
    module = ir.Module.parse(HARD_SWISH, context=ir.Context())
    original = next(op for op in walk(module.operation) if op.name == "linalg.generic")
    changed = mutants(original)
    x = np.random.default_rng(0).normal(0, 4, (2, 2, 2, 2)).astype(np.float32)
    start = np.full_like(x, 77.0)
    tables = others = 0
    for op in changed:
        other = _with(op)
        (node,) = (node for node in read_network(other.operation).network.nodes if node.kind != "input")
        value, fine = evaluate(op, [x, start])
        reads_start = not np.array_equal(value, evaluate(op, [x, start + 1])[0], equal_nan=True)
        assert not (node.kind == "table" and reads_start), op
        if node.kind != "table":
            others += 1
            continue
        tables += 1
        assert node.function is not None
        np.testing.assert_allclose(node.function(x)[fine], value[fine], rtol=1e-5, atol=1e-6, err_msg=str(op))
    assert tables > 20
    assert others > 10


def _with(op: ir.Operation) -> ir.Module:
    """A module whose network is one changed operation."""
    module = ir.Module.parse(HARD_SWISH, context=op.context)
    old = next(each for each in walk(module.operation) if each.name == "linalg.generic")
    with ir.Location.unknown(op.context):
        outside = dict(zip(_captured(op), _captured(old), strict=False))
        new = op.clone(ip=ir.InsertionPoint.after(old))
        for inner in walk(new):
            for i, operand in enumerate(inner.operands):
                if operand in outside:
                    inner.operands[i] = outside[operand]
    old.results[0].replace_all_uses_with(new.results[0])
    old.erase()
    return module


def _captured(op: ir.Operation) -> list[ir.Value]:
    """What stands before an operation of ``HARD_SWISH``, in order."""
    function = op.parent
    block = function.regions[0].blocks[0]
    results = [
        o.operation.results[0] for o in block.operations if o.operation.name in ("arith.constant", "tensor.empty")
    ]
    return [*block.arguments, *results]
