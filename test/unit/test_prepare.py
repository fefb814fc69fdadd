"""What every imported module gets: layers' names, and views around grouped convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from torch_mlir import ir

from mlir_passes.ops.prepare import prepare
from mlir_passes.ops.reader import NetworkError, read_network


def test_layers_are_named_after_locations() -> None:
    with ir.Context():
        module = ir.Module.parse("""
          func.func @f(%x: tensor<2x2xf32>) -> tensor<2x2xf32> {
            %e = tensor.empty() : tensor<2x2xf32> loc("a.b")
            %t = linalg.transpose ins(%x : tensor<2x2xf32>) outs(%e : tensor<2x2xf32>) permutation = [1, 0] loc("a.b")
            %u = linalg.transpose ins(%t : tensor<2x2xf32>) outs(%e : tensor<2x2xf32>) permutation = [1, 0]
              {quantune.layer = "kept"} loc("other")
            %v = linalg.transpose ins(%u : tensor<2x2xf32>) outs(%e : tensor<2x2xf32>) permutation = [1, 0] loc(unknown)
            return %v : tensor<2x2xf32>
          }""")
        prepare(module.operation)
        names = [(node.layer, node.name) for node in read_network(module.operation).network.nodes[1:]]
    assert names == [("a.b", "a.b"), ("kept", "kept"), ("", "transpose")]


GROUPED = """
  func.func @f(%x: tensor<1x6x4x4xf32>) -> tensor<1x64xf32> {{
    %w = arith.constant dense<1.0> : tensor<2x2x3x1x1xf32>
    %start = arith.constant dense<0.0> : tensor<1x2x2x4x4xf32>
    %s = tensor.expand_shape %x {split} output_shape [1, 2, 3, 4, 4] : tensor<1x6x4x4xf32> into tensor<1x2x3x4x4xf32>
    %y = linalg.conv_2d_ngchw_gfchw {{dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}}
      ins(%s, %w : tensor<1x2x3x4x4xf32>, tensor<2x2x3x1x1xf32>) outs(%start : tensor<1x2x2x4x4xf32>)
      -> tensor<1x2x2x4x4xf32>
    %r = tensor.collapse_shape %y [[0], [1, 2, 3, 4]] : tensor<1x2x2x4x4xf32> into tensor<1x64xf32>
    return %r : tensor<1x64xf32>
  }}"""


def test_a_view_that_swallowed_the_joining_of_groups_is_split_again() -> None:
    with ir.Context():
        module = ir.Module.parse(GROUPED.format(split="[[0], [1, 2], [3], [4]]"))
        before = read_network(module.operation).network
        assert before.nodes[1].kind == "float"
        assert "views of its groups" in before.nodes[1].detail
        prepare(module.operation)
        assert module.operation.verify()
        nodes = read_network(module.operation).network.nodes
        assert [(node.kind, node.shape) for node in nodes[1:]] == [
            ("conv", (1, 4, 4, 4)),
            ("reshape", (1, 2, 2, 4, 4)),
            ("reshape", (1, 64)),
        ]
        text = str(module)
        prepare(module.operation)
        assert str(module) == text


def test_one_function_is_expected() -> None:
    with ir.Context(), pytest.raises(NetworkError, match="found 0"):
        prepare(ir.Module.parse("module {}").operation)


def _prepared(text: str) -> ir.Module:
    module = ir.Module.parse(text)
    prepare(module.operation)
    assert module.operation.verify()
    return module


POOL = """
  func.func @f(%x: tensor<1x1x{size}xf32>) -> tensor<1x1x{out}xf32> {{
    %lowest = arith.constant 0xFF800000 : f32
    %p = tensor.pad %x low[0, 0, {low}] high[0, 0, {high}] {{
    ^bb0(%i: index, %j: index, %k: index, %l: index):
      tensor.yield %lowest : f32
    }} : tensor<1x1x{size}xf32> to tensor<1x1x{padded}xf32>
    %window = tensor.empty() : tensor<{kernel}xf32>
    %start = arith.constant dense<0xFF800000> : tensor<1x1x{out}xf32>
    %y = linalg.pooling_nchw_max {{dilations = dense<1> : vector<2xi64>, strides = dense<{stride}> : vector<2xi64>}}
      ins(%p, %window : tensor<1x1x{padded}xf32>, tensor<{kernel}xf32>) outs(%start : tensor<1x1x{out}xf32>)
      -> tensor<1x1x{out}xf32>
    return %y : tensor<1x1x{out}xf32>
  }}"""


@pytest.mark.parametrize(
    ("form", "pads", "sliced"),
    [
        pytest.param(
            {"size": "6x6", "low": "0, 0", "high": "2, 2", "padded": "8x8", "kernel": "3x3", "stride": 2, "out": "3x3"},
            (0, 0, 1, 1), None, id="rounding up",
        ),
        pytest.param(
            {"size": "5x7", "low": "0, 0", "high": "2, 2", "padded": "7x9", "kernel": "3x3", "stride": 2, "out": "2x3"},
            (0, 0, 0, 0), None, id="no padding needed",
        ),
        pytest.param(
            {"size": "2x4", "low": "1, 1", "high": "1, 1", "padded": "4x6", "kernel": "3x3", "stride": 2, "out": "1x2"},
            (1, 1, 0, 0), None, id="one row",
        ),
        pytest.param(
            {"size": "8x4", "low": "1, 0", "high": "0, 0", "padded": "9x4", "kernel": "3x2", "stride": 8, "out": "1x1"},
            (1, 0, 0, 0), (1, 1, 2, 2), id="what no window reaches",
        ),
        pytest.param(
            {"size": "4x4", "low": "1, 1", "high": "1, 1", "padded": "6x6", "kernel": "3x3", "stride": 1, "out": "4x4"},
            (1, 1, 1, 1), None, id="all of it is read",
        ),
    ],
)  # fmt: skip
def test_windows_are_padded_no_further_than_they_reach(
    form: dict[str, object], pads: tuple[int, ...], sliced: tuple[int, ...] | None
) -> None:
    with ir.Context():
        module = _prepared(POOL.format(**form))
        *rest, pool = read_network(module.operation).network.nodes
        assert pool.kind == "maxpool"
        assert pool.pads == pads
        assert [(node.kind, node.shape) for node in rest[1:]] == ([("slice", sliced)] if sliced else [])
        assert str(module).count("tensor.pad") == any(pads)


def test_one_padding_may_serve_windows_of_different_reach() -> None:
    with ir.Context():
        module = _prepared("""
          func.func @f(%x: tensor<1x1x6x6xf32>) -> (tensor<1x1x3x3xf32>, tensor<1x1x6x6xf32>) {
            %lowest = arith.constant 0xFF800000 : f32
            %p = tensor.pad %x low[0, 0, 0, 0] high[0, 0, 2, 2] {
            ^bb0(%i: index, %j: index, %k: index, %l: index):
              tensor.yield %lowest : f32
            } : tensor<1x1x6x6xf32> to tensor<1x1x8x8xf32>
            %window = tensor.empty() : tensor<3x3xf32>
            %a = arith.constant dense<0xFF800000> : tensor<1x1x3x3xf32>
            %b = arith.constant dense<0xFF800000> : tensor<1x1x6x6xf32>
            %y = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<2> : vector<2xi64>}
              ins(%p, %window : tensor<1x1x8x8xf32>, tensor<3x3xf32>) outs(%a : tensor<1x1x3x3xf32>)
              -> tensor<1x1x3x3xf32>
            %z = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
              ins(%p, %window : tensor<1x1x8x8xf32>, tensor<3x3xf32>) outs(%b : tensor<1x1x6x6xf32>)
              -> tensor<1x1x6x6xf32>
            return %y, %z : tensor<1x1x3x3xf32>, tensor<1x1x6x6xf32>
          }""")
        nodes = read_network(module.operation).network.nodes
        assert [(node.kind, node.pads) for node in nodes[1:]] == [("maxpool", (0, 0, 1, 1)), ("maxpool", (0, 0, 2, 2))]


def test_grouped_convolutions_are_fitted_before_their_groups_are_split() -> None:
    with ir.Context():
        module = _prepared("""
          func.func @f(%x: tensor<1x6x3x4xf32>) -> tensor<1x4x1x2xf32> {
            %w = arith.constant dense<1.0> : tensor<2x2x3x2x2xf32>
            %start = arith.constant dense<0.0> : tensor<1x2x2x1x2xf32>
            %s = tensor.expand_shape %x [[0], [1, 2], [3], [4]] output_shape [1, 2, 3, 3, 4]
              : tensor<1x6x3x4xf32> into tensor<1x2x3x3x4xf32>
            %y = linalg.conv_2d_ngchw_gfchw {dilations = dense<1> : vector<2xi64>, strides = dense<2> : vector<2xi64>}
              ins(%s, %w : tensor<1x2x3x3x4xf32>, tensor<2x2x3x2x2xf32>) outs(%start : tensor<1x2x2x1x2xf32>)
              -> tensor<1x2x2x1x2xf32>
            %r = tensor.collapse_shape %y [[0], [1, 2], [3], [4]] : tensor<1x2x2x1x2xf32> into tensor<1x4x1x2xf32>
            return %r : tensor<1x4x1x2xf32>
          }""")
        nodes = read_network(module.operation).network.nodes
        assert [(node.kind, node.shape) for node in nodes[1:]] == [("slice", (1, 6, 2, 4)), ("conv", (1, 4, 1, 2))]


def test_f64_bounds_become_the_nearest_f32() -> None:
    """IREE cuts f64 off instead: 1.1 would become 1.0999999."""
    with ir.Context():
        module = ir.Module.parse("""
          func.func @f(%x: tensor<2xf32>) -> tensor<2xf32> {
            %bound = arith.constant 1.1 : f64
            %e = tensor.empty() : tensor<2xf32>
            %y = linalg.generic {indexing_maps = [affine_map<(d) -> (d)>, affine_map<(d) -> (d)>],
                iterator_types = ["parallel"]} ins(%x : tensor<2xf32>) outs(%e : tensor<2xf32>) {
            ^bb0(%v: f32, %old: f32):
              %b = arith.truncf %bound : f64 to f32
              %inside = arith.cmpf ult, %v, %b : f32
              %kept = arith.select %inside, %v, %b : f32
              linalg.yield %kept : f32
            } -> tensor<2xf32>
            return %y : tensor<2xf32>
          }""")
        prepare(module.operation)
        assert "arith.truncf" not in str(module)
        (clamp,) = read_network(module.operation).network.nodes[1:]
    assert (clamp.kind, clamp.hi) == ("clamp", float(np.float32(1.1)))
