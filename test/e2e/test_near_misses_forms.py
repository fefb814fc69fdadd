"""What is nearly one of torch-mlir's forms, a matrix product, a padding or a shuffle is taken for what it is."""

from __future__ import annotations

import numpy as np
import pytest
from integer_layers import BODIES, LOOPS, MAPS, module, numbers, run_on_cpu
from near_misses import CASE, IMAGE, KERNELS, evaluate, mutants, parse_form
from torch_mlir import ir

from mlir_passes.ir import match
from mlir_passes.pipeline import Pipeline

# torch-mlir's forms may be written in several ways: a near miss is not recognized, or as what it then is.


def _f32_form(ins: str, types: str, maps: str, body: str) -> str:
    image = IMAGE.replace("TYPE", "f32")
    arguments = ", ".join(f"%a{i}: f32" for i in range(ins.count("%")))
    return f"""{MAPS}
#c1 = affine_map<(n, h, w, c) -> (0, h, 0, 0)>
func.func @main(%x: {image}, %y: {image}) -> {image} {{
%b = arith.constant dense<[[[[1.0]], [[-2.0]], [[3.0]], [[0.5]]]]> : tensor<1x4x1x1xf32>
%low = arith.constant -0.5 : f32
%high = arith.constant 1.5 : f32
%n = arith.constant 3.0 : f32
%e = tensor.empty() : {image}
%r = linalg.generic {{indexing_maps = [{maps}, #id], {LOOPS}}}
  ins({ins} : {types.replace("T", image)}) outs(%e : {image}) {{
^bb0({arguments}, %old: f32):
{body}
}} -> {image}
return %r : {image}
}}"""


Operands = dict[ir.Value, np.ndarray]


def _said_add(op: ir.Operation, values: Operands) -> np.ndarray | None:
    found = match.match_add(op)
    return None if found is None else values[found[0]] + values[found[1]]


def _said_bias(op: ir.Operation, values: Operands) -> np.ndarray | None:
    found = match.match_bias_add(op)
    return None if found is None else values[found[0]] + found[1].reshape(1, -1, 1, 1)


def _said_clamp(op: ir.Operation, values: Operands) -> np.ndarray | None:
    found = match.match_clamp(op)
    return None if found is None else np.minimum(np.maximum(values[found[0]], found[1]), found[2])


def _said_divide(op: ir.Operation, values: Operands) -> np.ndarray | None:
    found = match.match_divide(op)
    return None if found is None else values[found[0]] / np.float32(found[1])


RECOGNIZERS = {
    "add": (_said_add, "%x, %y", "T, T", "#id, #id", "%s = arith.addf %a0, %a1 : f32\nlinalg.yield %s : f32"),
    "bias": (
        _said_bias, "%x, %b", "T, tensor<1x4x1x1xf32>", "#id, #c1",
        "%s = arith.addf %a0, %a1 : f32\nlinalg.yield %s : f32",
    ),
    "clamp": (
        _said_clamp, "%x", "T", "#id",
        "%c = arith.cmpf ult, %a0, %low : f32\n%s = arith.select %c, %low, %a0 : f32\n"
        "%d = arith.cmpf ugt, %s, %high : f32\n%t = arith.select %d, %high, %s : f32\nlinalg.yield %t : f32",
    ),
    "divide": (_said_divide, "%x", "T", "#id", "%s = arith.divf %a0, %n : f32\nlinalg.yield %s : f32"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOGNIZERS)
def test_a_near_miss_of_torchs_forms_is_recognized_as_what_it_is_or_not_at_all(name: str) -> None:
    said, *form = RECOGNIZERS[name]
    module_, function, op = parse_form(_f32_form(*form))
    arrays = np.random.default_rng(2).normal(0, 2, (2, 4, 4, 4, 4)).astype(np.float32)
    values: Operands = dict(zip(function.regions[0].blocks[0].arguments, arrays, strict=True))
    missed = 0
    for each in (op, *mutants(op)):
        operands = [values.get(operand, _constant(operand)) for operand in each.operands]
        if "reduction" in str(each.attributes["iterator_types"]):
            assert said(each, values) is None
            continue
        found = said(each, values)
        missed += found is None
        if found is not None:
            value, defined = evaluate(each, operands)
            np.testing.assert_allclose(value[defined], found[defined], rtol=1e-6, err_msg=str(each))
    assert said(op, values) is not None
    assert missed > 5
    assert module_.operation.verify()


def _constant(value: ir.Value) -> np.ndarray:
    found = match.owner(value)
    if found is not None and found.name == "arith.constant":
        return np.array(found.attributes["value"])
    return np.zeros((4, 4, 4, 4), np.float32)


# What has no body to compare, or one that follows from its name


STORED, SUMS = IMAGE.replace("TYPE", "i8"), IMAGE.replace("TYPE", "i32")
_REAL = """
%bias = arith.constant dense<[1, 2, 3, 4]> : tensor<4xi32>
%m = arith.constant dense<[0.5, 0.25, 1.0, 2.0]> : tensor<4xf32>"""
MATMUL = f"""
#two = affine_map<(a, c) -> (a, c)>
#c = affine_map<(a, c) -> (c)>
func.func @main(%x: tensor<4x4xi8>) -> tensor<4x4xf32> {{
{_REAL}
%w = arith.constant dense<[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, -12], [13, 14, 15, 16]]> : tensor<4x4xi8>
%zero = arith.constant 0 : i32
%o = tensor.empty() : tensor<4x4xi32>
%f = linalg.fill ins(%zero : i32) outs(%o : tensor<4x4xi32>) -> tensor<4x4xi32>
%s = linalg.matmul CHANGE ins(%x, %w : tensor<4x4xi8>, tensor<4x4xi8>) outs(%f : tensor<4x4xi32>) -> tensor<4x4xi32>
%e = tensor.empty() : tensor<4x4xf32>
%y = linalg.generic {{indexing_maps = [#two, #c, #c, #two], iterator_types = ["parallel", "parallel"]}}
  ins(%s, %bias, %m : tensor<4x4xi32>, tensor<4xi32>, tensor<4xf32>) outs(%e : tensor<4x4xf32>) {{
^bb0(%acc: i32, %b: i32, %k: f32, %old: f32):{BODIES["real"].replace("%m ", "%k ")}
}} -> tensor<4x4xf32>
return %y : tensor<4x4xf32>
}}"""
_TURNED = (
    "indexing_maps = [affine_map<(a, b, c) -> (a, c)>, affine_map<(a, b, c) -> (b, c)>, "
    "affine_map<(a, b, c) -> (a, b)>]"
)


def _product(change: str) -> tuple[int, np.ndarray, np.ndarray]:
    """How many kernels a matrix product becomes, its input, and its result less bias and scales."""
    parsed = ir.Module.parse(MATMUL.replace("CHANGE", change), context=ir.Context())
    Pipeline.parse(KERNELS).run(parsed)
    x = np.random.default_rng(3).integers(-128, 128, (4, 4)).astype(np.int8)
    (y,) = run_on_cpu.load_on_cpu(run_on_cpu.compile_for_cpu(str(parsed)))(x)
    sums = y / np.array([0.5, 0.25, 1.0, 2.0], np.float32) - np.array([1, 2, 3, 4], np.float32)
    return str(parsed).count("flow.dispatch"), x.astype(np.int64), sums


def test_a_matrix_product_with_maps_or_casts_of_its_own_is_another() -> None:
    w = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, -12], [13, 14, 15, 16]])
    count, x, y = _product("")
    assert count == 1
    np.testing.assert_array_equal(y, x @ w)
    count, x, y = _product(_TURNED)
    assert count == 0
    np.testing.assert_array_equal(y, x @ w.T)
    count, x, y = _product("{cast = #linalg.type_fn<cast_unsigned>}")
    assert count == 0
    np.testing.assert_array_equal(y, (x & 255) @ (w & 255))


def _kernels(text: str) -> int:
    parsed = ir.Module.parse(text, context=ir.Context())
    Pipeline.parse(KERNELS).run(parsed)
    return str(parsed).count("flow.dispatch")


LAYER = module(CASE, "multiplier", numbers(CASE, "multiplier"))
CHANGES = {
    "sums begin at 1": ("%c0 = arith.constant 0 : i32", "%c0 = arith.constant 1 : i32"),
    "sums begin anywhere": ("outs(%f :", "outs(%e :"),
    "images are padded too": ("low[0, 1, 1, 0] high[0, 1, 1, 0]", "low[1, 1, 1, 0] high[-1, 1, 1, 0]"),
    "a padding that is computed": (
        "tensor.yield %pad : i8", "%more = arith.addi %pad, %pad : i8\n  tensor.yield %more : i8",
    ),
    "a padding of several numbers": (
        "%pad = tensor.extract %padding[] : tensor<i8>",
        "%several = arith.constant dense<[1, 2]> : tensor<2xi8>\n%at = arith.constant 1 : index\n"
        "%pad = tensor.extract %several[%at] : tensor<2xi8>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_layer_with_other_sums_or_another_padding_gets_no_kernel(name: str) -> None:
    before, after = CHANGES[name]
    assert before in LAYER
    assert _kernels(LAYER) == 1
    assert _kernels(LAYER.replace(before, after)) == 0


SHUFFLE = """
func.func @main(%a: tensor<1x4x4x1xTYPE>, %b: tensor<1x4x4x1xTYPE>) -> tensor<1x4x4x2xTYPE> {
%x = tensor.concat dim(3) %a, %b : (tensor<1x4x4x1xTYPE>, tensor<1x4x4x1xTYPE>) -> tensor<1x4x4x2xTYPE>
%g = tensor.expand_shape %x FIRST output_shape [1, 4, SIZES] : tensor<1x4x4x2xTYPE> into tensor<1x4xSHAPExTYPE>
%e = tensor.empty() : tensor<1x4xOTHERxTYPE>
%t = linalg.transpose ins(%g : tensor<1x4xSHAPExTYPE>) outs(%e : tensor<1x4xOTHERxTYPE>) permutation = [0, 1, 2, 4, 3]
%s = tensor.collapse_shape %t LAST : tensor<1x4xOTHERxTYPE> into tensor<1x4x4x2xTYPE>
return %s : tensor<1x4x4x2xTYPE>
}"""


@pytest.mark.parametrize(("first", "last", "sizes", "taken"), [
    ("[[0], [1], [2], [3, 4]]", "[[0], [1], [2], [3, 4]]", (4, 2, 1), True),
    ("[[0], [1], [2, 3], [4]]", "[[0], [1], [2, 3], [4]]", (2, 2, 2), False),
])  # fmt: skip
def test_a_shuffle_of_columns_is_not_one_of_channels(
    first: str, last: str, sizes: tuple[int, ...], taken: bool
) -> None:
    other = (sizes[0], sizes[2], sizes[1])
    text = SHUFFLE.replace("FIRST", first).replace("LAST", last).replace("TYPE", "i8")
    text = text.replace("SIZES", ", ".join(map(str, sizes))).replace("SHAPE", "x".join(map(str, sizes)))
    parsed = ir.Module.parse(text.replace("OTHER", "x".join(map(str, other))), context=ir.Context())
    Pipeline.parse(KERNELS).run(parsed)
    assert ("interleave" in str(parsed)) == taken
    a, b = np.random.default_rng(4).integers(-128, 128, (2, 1, 4, 4, 1)).astype(np.int8)
    (y,) = run_on_cpu.load_on_cpu(run_on_cpu.compile_for_cpu(str(parsed)))(a, b)
    turned = np.concatenate([a, b], axis=3).reshape(1, 4, *sizes).transpose(0, 1, 2, 4, 3)
    np.testing.assert_array_equal(y, turned.reshape(1, 4, 4, 2))
