"""The shared IR builders and readers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.ir import build


@pytest.fixture
def block() -> Iterator[ir.Block]:
    """The body of `@f(tensor<1x3x4x4xi32>)`, as insertion point."""
    with ir.Context(), ir.Location.name("here"):
        module = ir.Module.parse("func.func @f(%x: tensor<1x3x4x4xi32>) { return }")
        body = module.body.operations[0].regions[0].blocks[0]
        with ir.InsertionPoint.at_block_begin(body):
            yield body
        assert module.operation.verify()


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0, 3)])
def test_parameter_reads_back(block: ir.Block, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    for array in (np.arange(np.prod(shape)).reshape(shape).astype(dtype), np.full(shape, 7, dtype)):
        value = build.parameter("layer.role", array)
        read = build.constant_array(value)
        assert read is not None
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
        assert build.parameter_name(value.owner) == "layer.role"


def test_transposed_arrays_keep_their_order(block: ir.Block) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(build.constant_array(build.constant(array)), array)


def test_unknown_dtypes_are_named(block: ir.Block) -> None:
    with pytest.raises(ValueError, match="no element type for dtype float64; expected one of int8"):
        build.constant(np.zeros(2))


def test_constant_array_reads_nothing_else(block: ir.Block) -> None:
    assert build.constant_array(block.arguments[0]) is None
    resource = ir.DenseResourceElementsAttr.get_from_buffer(
        memoryview(bytes(8)), "r", build.tensor_type([2], np.float32)
    )
    assert build.constant_array(arith.ConstantOp(resource.type, resource).result) is None
    scalar = arith.constant(ir.F32Type.get(), 1.0)
    assert build.constant_array(scalar) is None


def test_relaid_constant_follows_transposes_and_reshapes() -> None:
    with ir.Context():
        module = ir.Module.parse("""
          func.func @f(%x: tensor<2x3xf32>) -> (tensor<3x2x1xf32>, tensor<6xf32>) {
            %w = arith.constant dense<[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]> : tensor<2x3xf32>
            %e = tensor.empty() : tensor<3x2xf32>
            %t = linalg.transpose ins(%w : tensor<2x3xf32>) outs(%e : tensor<3x2xf32>) permutation = [1, 0]
            %u = tensor.expand_shape %t [[0], [1, 2]] output_shape [3, 2, 1] : tensor<3x2xf32> into tensor<3x2x1xf32>
            %c = tensor.collapse_shape %x [[0, 1]] : tensor<2x3xf32> into tensor<6xf32>
            return %u, %c : tensor<3x2x1xf32>, tensor<6xf32>
          }""")
        *_, terminator = module.body.operations[0].regions[0].blocks[0].operations
        relaid = build.relaid_constant(terminator.operands[0])
        assert relaid is not None
        assert relaid.tolist() == [[[1], [4]], [[2], [5]], [[3], [6]]]
        assert build.relaid_constant(terminator.operands[1]) is None


def test_elementwise_maps_follow_from_ranks(block: ir.Block) -> None:
    image = block.arguments[0]
    bias, scalar = build.constant(np.arange(3, dtype=np.int32)), build.constant(np.int32(2))
    result = build.elementwise(
        [image, bias, scalar],
        build.tensor_type([1, 3, 4, 4], np.int32),
        lambda a, b, c: arith.addi(arith.addi(a, b), c),
        layer="features.0",
    )
    generic = result.owner
    assert build.layer_of(generic) == "features.0"
    maps = [str(each.value) for each in generic.attributes["indexing_maps"]]
    d = "(d0, d1, d2, d3)"
    assert maps == [f"{d} -> {d}", f"{d} -> (d1)", f"{d} -> ()", f"{d} -> {d}"]


def test_elementwise_takes_other_maps(block: ir.Block) -> None:
    row = build.constant(np.arange(4, dtype=np.int32))
    out = build.tensor_type([1, 3, 4, 4], np.int32)
    last = build.elementwise([block.arguments[0], row], out, arith.addi, channel=3)
    given = build.elementwise([block.arguments[0], row], out, arith.addi, maps=[None, build.channel_map(4, 2)])
    assert "-> (d3)" in str(last.owner.attributes["indexing_maps"])
    assert "-> (d2)" in str(given.owner.attributes["indexing_maps"])
    with pytest.raises(ValueError, match="rank 2 and a result of rank 4"):
        build.elementwise([build.constant(np.zeros((2, 2), np.int32))], out, lambda a: a)


def test_fresh_names_count_up_and_skip_tags_that_exist(block: ir.Block) -> None:
    build.parameter("conv.quantize.scale", np.float32(1))
    names = build.FreshNames(block.owner.operation)
    assert [names("conv", "quantize"), names("conv", "weight"), names("conv", "weight")] == [
        "conv.quantize1",
        "conv.weight",
        "conv.weight1",
    ]


def test_walk_is_in_program_order(block: ir.Block) -> None:
    build.elementwise([block.arguments[0]], build.tensor_type([1, 3, 4, 4], np.int32), lambda a: arith.addi(a, a))
    names = [op.name for op in build.walk(block.owner.operation)]
    assert names == ["func.func", "tensor.empty", "linalg.generic", "arith.addi", "linalg.yield", "func.return"]


def test_erase_if_unused_follows_data_movement_only() -> None:
    with ir.Context():
        module = ir.Module.parse("""
          func.func @f(%x: tensor<2x3xf32>) {
            %w = arith.constant dense<1.0> : tensor<2x3xf32>
            %e = tensor.empty() : tensor<3x2xf32>
            %t = linalg.transpose ins(%w : tensor<2x3xf32>) outs(%e : tensor<3x2xf32>) permutation = [1, 0]
            %s = math.absf %x : tensor<2x3xf32>
            %c = tensor.collapse_shape %s [[0, 1]] : tensor<2x3xf32> into tensor<6xf32>
            return
          }""")
        body = module.body.operations[0].regions[0].blocks[0]
        operations = list(body.operations)
        build.erase_if_unused(operations[0].results[0])
        assert len(list(body.operations)) == 6  # the transpose still reads it
        build.erase_if_unused(operations[2].results[0])
        build.erase_if_unused(operations[4].results[0])
        build.erase_if_unused(body.arguments[0])
        assert [op.operation.name for op in body.operations] == ["math.absf", "func.return"]
