"""One compiled program for several sets of numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes import PassFailure, Pipeline
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.passes.outline_parameters import collect_parameters

# The layer's name has a quote and a blank: names of modules are free text.
SOURCE = """
#channel = affine_map<(a, b) -> (b)>
#identity = affine_map<(a, b) -> (a, b)>
func.func @main(%x: tensor<5x3xf32> {{quantune.output = {activation}}}) -> (tensor<5x3xi8>, tensor<5x3xf32>) {{
  %0 = quant.qcast %x {{quantune.layer = "in\\22 put"}} : tensor<5x3xf32> to tensor<5x3x{activation}>
  %1 = quant.dcast %0 {{quantune.layer = "in\\22 put"}} : tensor<5x3x{activation}> to tensor<5x3xf32>
  %s = quant.scast %0 : tensor<5x3x{activation}> to tensor<5x3xi8>
  %w = arith.constant dense<{weight}> : tensor<3xf32>
  %q = quant.qcast %w {{quantune.layer = "scale"}} : tensor<3xf32> to tensor<3x{weight_type}>
  %d = quant.dcast %q {{quantune.layer = "scale"}} : tensor<3x{weight_type}> to tensor<3xf32>
  %e = tensor.empty() : tensor<5x3xf32>
  %o = linalg.generic {{indexing_maps = [#identity, #channel, #identity], iterator_types = ["parallel", "parallel"]}}
      ins(%1, %d : tensor<5x3xf32>, tensor<3xf32>) outs(%e : tensor<5x3xf32>) {{
  ^bb0(%a: f32, %b: f32, %c: f32):
    %m = arith.mulf %a, %b : f32
    linalg.yield %m : f32
  }} -> tensor<5x3xf32>
  return %s, %o : tensor<5x3xi8>, tensor<5x3xf32>
}}
"""
SETS = [
    (QuantSpec.per_tensor(0.02, 3, storage_min=0, storage_max=255, signed=False), (0.1, 0.2, 0.3), [1.0, -2.0, 3.0]),
    (QuantSpec.per_tensor(0.75), (0.5, 0.5, 0.5), [1.0, 1.0, 1.0]),
    (QuantSpec.per_tensor(3.3e-5, -7, storage_min=-8, storage_max=7), (2.0, 1e-3, 1.0), [0.0, -0.1, 100.0]),
]


def _outlined(numbers: tuple[QuantSpec, tuple[float, ...], list[float]]) -> tuple[str, bytes, dict[str, np.ndarray]]:
    activation, scales, weight = numbers
    with ir.Context():
        weight_type = QuantSpec.per_channel(scales, axis=0).to_type()
        text = SOURCE.format(activation=activation.to_type(), weight_type=weight_type, weight=weight)
        module = ir.Module.parse(text)
        Pipeline.parse("quantune-lower-quant").run(module)
        parameters = collect_parameters(module)
        Pipeline.parse("quantune-outline-parameters").run(module)
        bytecode = io.BytesIO()
        module.operation.write_bytecode(bytecode)
        return str(module), bytecode.getvalue(), parameters


def test_one_program_runs_every_set_of_numbers() -> None:
    outlined = [_outlined(each) for each in SETS]
    assert len({text for text, _, _ in outlined}) == 1
    assert len({bytecode for _, bytecode, _ in outlined}) == 1
    vmfb = compile_for_cpu(outlined[0][0])
    real = np.random.default_rng(0).normal(0, 1, (5, 3)).astype(np.float32)
    for (activation, scales, weight), (_, _, parameters) in zip(SETS, outlined, strict=True):
        stored, result = load_on_cpu(vmfb, parameters)(real)
        np.testing.assert_array_equal(stored, activation.quantize(real))
        per_channel = QuantSpec.per_channel(scales, axis=0)
        factor = per_channel.dequantize(per_channel.quantize(weight))
        np.testing.assert_array_equal(result, activation.dequantize(activation.quantize(real)) * factor)


def test_collect_gives_numbers_by_name() -> None:
    parameters = _outlined(SETS[0])[2]
    assert sorted(parameters) == [
        *(f'in" put.{each}' for each in ("dequantize.scale", "dequantize.zero_point")),
        *(f'in" put.quantize.{each}' for each in ("high", "low", "scale", "zero_point")),
        "scale.dequantize.scale",
        "scale.dequantize.zero_point",
        "scale.weight",
    ]
    assert parameters["scale.weight"].tolist() == [10, -10, 10]
    assert parameters["scale.weight"].dtype == np.int8
    assert parameters['in" put.quantize.zero_point'].shape == ()


def test_collect_rejects_one_name_with_two_sets_of_numbers() -> None:
    constant = '%{} = arith.constant {{quantune.parameter = "a.b"}} dense<{}> : tensor<2xi8>'
    body = "\n".join(constant.format(i, numbers) for i, numbers in enumerate(("[1, 2]", "[1, 2]", "[1, 3]")))
    with ir.Context(), pytest.raises(PassFailure, match=r"parameter 'a\.b' with other numbers"):
        collect_parameters(ir.Module.parse(f"func.func @f() {{\n{body}\nreturn\n}}"))
