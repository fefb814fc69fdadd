"""Lower what is left of the quant dialect to linalg on i8 tensors.

    q = quant.qcast x   ->   q = linalg.generic: fptosi(minnum(maxnum(roundeven(x / scale) + zero_point, low), high))
    y = quant.dcast q   ->   y = linalg.generic: (sitofp(q) - zero_point) * scale
    r = quant.scast q   ->   q, or its i8 tensor
    quant.qcast(constant)  ->  an i8 constant, computed here

Types: every `!quant.uniform` becomes i8, also in function signatures and between operations that only move data.
Unsigned types are held shifted by -128 (see quant_types): an scast to or from `u8` is that shifted view.

Numbers: scale, zero_point, low and high are parameters `<layer>.quantize.scale` and so on, where <layer> is the cast's
`quantune.layer` ("cast" without one); a layer's second cast is `quantize1`. All four are always there, whatever their
values, so that modules that differ only in numbers stay the same program. A constant becomes `<layer>.weight`.

Rounding: the division is a true f32 division and the clamp comes before the conversion, so every f32 is defined:
infinities saturate and NaN becomes `low` (maxnum returns its other operand).

MLIR's own lower-quant-ops truncates, converts before it clamps, and folds `dcast(qcast(x))` to `x`; this one does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, math, quant

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import build
from mlir_passes.ir.quant_types import QuantSpec, is_quantized
from mlir_passes.ir.same_body import Elementwise

_NO_LAYER = "cast"


@dataclass(frozen=True)
class LowerQuant(Pass):
    """Lower the casts of the quant dialect that are left to linalg on i8; afterwards no quantized type remains."""

    name: ClassVar[str] = "quantune-lower-quant"

    def run(self, module: ir.Operation) -> None:
        """Rewrite all casts, then retype what carried their results."""
        # All parameters are read before anything changes: retyping and replacing destroy the types they are in.
        casts = [(op, _cast_spec(op)) for op in build.walk(module) if op.name.startswith("quant.")]
        names = build.FreshNames(module)
        for op, spec in casts:
            _LOWERINGS[op.name](op, spec, names)
        for op in build.walk(module):
            _retype(op)
            build.strip_annotations(op)
        assert_no_quant(module)


def assert_no_quant(module: ir.Module | ir.Operation) -> None:
    """Raise `PassFailure` at the first operation of the quant dialect, or with a quantized type in it.

    IREE knows the quant dialect and folds it away silently: a module that still has it computes something else.
    """
    for op in build.walk(module.operation):
        if op.name.startswith("quant."):
            raise PassFailure(op, "is left in a module that must not hold the quant dialect")
        arguments = (argument for region in op.regions for block in region.blocks for argument in block.arguments)
        types = [value.type for value in (*op.results, *arguments)]
        types += [attribute.value for attribute in op.attributes.values() if isinstance(attribute, ir.TypeAttr)]
        left = next((each for each in types if is_quantized(each)), None)
        if left is not None:
            raise PassFailure(op, f"still has the quantized type {left}")


def _cast_spec(op: ir.Operation) -> QuantSpec | None:
    if op.name not in _LOWERINGS:
        raise PassFailure(op, "has no lowering; expected quant.qcast, quant.dcast or quant.scast")
    if not isinstance(op.results[0].type, ir.RankedTensorType) or not op.results[0].type.has_static_shape:
        raise PassFailure(op, f"casts {op.results[0].type}; expected a tensor with static shape")
    if op.name == "quant.scast":
        return None
    quantized = op.results[0].type if op.name == "quant.qcast" else op.operands[0].type
    try:
        return QuantSpec.from_type(quantized).stored
    except ValueError as error:
        raise PassFailure(op, f"has unusable quantization parameters: {error}") from error


def _lower_qcast(op: ir.Operation, spec: QuantSpec, names: build.FreshNames) -> None:
    source = op.operands[0]
    numbers = build.constant_array(source)
    with ir.InsertionPoint(op), op.location:
        if numbers is not None:
            layer, stored = build.layer_of(op), spec.quantize(numbers)
            _replace(op, build.constant(stored) if layer is None else build.parameter(names(layer, "weight"), stored))
            build.erase_if_unused(source)
            return
        stem = names(build.layer_of(op) or _NO_LAYER, "quantize")
        scale, zero_point = _scale_and_zero_point(spec, stem)
        low = build.parameter(f"{stem}.low", np.float32(spec.storage_min))
        high = build.parameter(f"{stem}.high", np.float32(spec.storage_max))
        shape = ir.RankedTensorType(source.type).shape
        result = build.elementwise(
            [source, scale, zero_point, low, high],
            build.tensor_type(shape, np.int8),
            QUANTIZE.body,
            channel=spec.axis or 0,
            layer=build.layer_of(op),
        )
    _replace(op, result)


def _lower_dcast(op: ir.Operation, spec: QuantSpec, names: build.FreshNames) -> None:
    with ir.InsertionPoint(op), op.location:
        scale, zero_point = _scale_and_zero_point(spec, names(build.layer_of(op) or _NO_LAYER, "dequantize"))
        result = build.elementwise(
            [op.operands[0], scale, zero_point],
            ir.RankedTensorType(op.results[0].type),
            _dequantize_element,
            channel=spec.axis or 0,
            layer=build.layer_of(op),
        )
    _replace(op, result)


def _lower_scast(op: ir.Operation, spec: None, names: build.FreshNames) -> None:
    _replace(op, op.operands[0])


_LOWERINGS: dict[str, Callable[..., None]] = {
    "quant.qcast": _lower_qcast,
    "quant.dcast": _lower_dcast,
    "quant.scast": _lower_scast,
}


def _scale_and_zero_point(spec: QuantSpec, stem: str) -> tuple[ir.Value, ir.Value]:
    scale = build.parameter(f"{stem}.scale", spec.scale_array)
    return scale, build.parameter(f"{stem}.zero_point", spec.zero_point_array.astype(np.float32))


def _quantize_element(real: ir.Value, scale: ir.Value, zero_point: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    steps = arith.addf(math.roundeven(arith.divf(real, scale)), zero_point)
    return arith.fptosi(ir.IntegerType.get_signless(8), arith.minnumf(arith.maxnumf(steps, low), high))


QUANTIZE = Elementwise(_quantize_element, ("f32", *["f32 one"] * 4), "i8")
"""Quantizing a tensor with one scale, zero point, lower and upper bound."""


def _dequantize_element(stored: ir.Value, scale: ir.Value, zero_point: ir.Value) -> ir.Value:
    return arith.mulf(arith.subf(arith.sitofp(ir.F32Type.get(), stored), zero_point), scale)


def _replace(op: ir.Operation, value: ir.Value) -> None:
    op.results[0].replace_all_uses_with(value)
    op.erase()


def _retype(op: ir.Operation) -> None:
    """Give the operation's results, block arguments and signature their storage types."""
    arguments = (argument for region in op.regions for block in region.blocks for argument in block.arguments)
    for value in (*op.results, *arguments):
        if is_quantized(value.type):
            value.set_type(_storage_type(op, value.type))
    if op.name == "func.func" and is_quantized(op.attributes["function_type"].value):
        signature = op.attributes["function_type"].value
        inputs, results = ([_storage_type(op, each) for each in part] for part in (signature.inputs, signature.results))
        op.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results, context=op.context))


def _storage_type(op: ir.Operation, any_type: ir.Type) -> ir.Type:
    if not is_quantized(any_type):
        return any_type
    i8 = ir.IntegerType.get_signless(8, context=op.context)
    if isinstance(any_type, quant.QuantizedType):
        return i8
    if isinstance(any_type, ir.RankedTensorType):
        return ir.RankedTensorType.get(any_type.shape, i8, loc=op.location)
    raise PassFailure(op, f"has the quantized type {any_type}; expected a ranked tensor")
