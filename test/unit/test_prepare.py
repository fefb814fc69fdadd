"""What every imported module gets: layers' names, and views around grouped convolutions."""

from __future__ import annotations

import pytest
from torch_mlir import ir

from mlir_passes.prepare import prepare
from mlir_passes.read_network import NetworkError, read_network


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
