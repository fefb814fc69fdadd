"""What the lowered quant casts compute, compiled for the CPU, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from run_on_cpu import compile_for_cpu, load_on_cpu
from torch_mlir import ir

from mlir_passes import PassFailure, Pipeline
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.passes.lower_quant import assert_no_quant

SPECS = {
    "unsigned": QuantSpec.per_tensor(0.02, 3, storage_min=0, storage_max=255, signed=False),
    "signed": QuantSpec.per_tensor(0.05),
    "four_bits": QuantSpec.per_tensor(0.7, 2, storage_min=-8, storage_max=7),
    "channels": QuantSpec.per_channel((0.1, 0.02, 3.3e-5), (0, 1, -5), axis=1),
}


def _module(spec: QuantSpec) -> ir.Module:
    """Quantize, show the storage, dequantize."""
    return ir.Module.parse(f"""
      func.func @main(%x: tensor<64x3xf32>) -> (tensor<64x3xi8>, tensor<64x3xf32>) {{
        %0 = quant.qcast %x : tensor<64x3xf32> to tensor<64x3x{spec.to_type()}>
        %1 = quant.scast %0 : tensor<64x3x{spec.to_type()}> to tensor<64x3xi8>
        %2 = quant.dcast %0 : tensor<64x3x{spec.to_type()}> to tensor<64x3xf32>
        return %1, %2 : tensor<64x3xi8>, tensor<64x3xf32>
      }}""")


def _samples(spec: QuantSpec) -> np.ndarray:
    """Ties between two integers, values beyond the range, and every special float."""
    generator = np.random.default_rng(0)
    scale = spec.scale_array.reshape(1, -1)
    ties = (generator.integers(-300, 300, (31, 3)) / 2).astype(np.float32) * scale
    normal = generator.normal(0, 1, (31, 3)).astype(np.float32) * scale * 100
    special = np.array([[np.nan, np.inf, -np.inf], [3e38, -3e38, 1e-45]], np.float32)
    return np.concatenate([ties, normal, special]).astype(np.float32)


@pytest.mark.parametrize("name", SPECS)
def test_compiled_casts_equal_numpy_bit_for_bit(name: str) -> None:
    spec = SPECS[name]
    with ir.Context():
        module = _module(spec)
        Pipeline.parse("quantune-lower-quant").run(module)
        main = load_on_cpu(compile_for_cpu(str(module)))
    real = _samples(spec)
    stored, back = main(real)
    np.testing.assert_array_equal(stored, spec.quantize(real))
    np.testing.assert_array_equal(back, spec.dequantize(spec.quantize(real)))


def test_assert_no_quant_names_what_is_left() -> None:
    with ir.Context():
        module = _module(SPECS["signed"])
        with pytest.raises(PassFailure, match="is left in a module"):
            assert_no_quant(module)
        Pipeline.parse("quantune-lower-quant").run(module)
        assert_no_quant(module)


@pytest.mark.parametrize(
    "text",
    [
        "func.func private @f(tensor<2x!quant.uniform<i8:f32, 0.5>>)",
        "func.func @f(%x: tensor<2x!quant.uniform<i8:f32, 0.5>>) { return }",
        "module attributes {test.type = !quant.uniform<i8:f32, 0.5>} {}",
        "func.func @f() { %0 = tensor.empty() : tensor<2x!quant.uniform<i8:f32, 0.5>> return }",
    ],
)
def test_assert_no_quant_sees_types_everywhere(text: str) -> None:
    with ir.Context(), pytest.raises(PassFailure, match="quantized type"):
        assert_no_quant(ir.Module.parse(text))
