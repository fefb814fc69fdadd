"""Compute an f32 network's convolutions and matrix products on f16 operands, accumulating in f32.

    %r = linalg.conv_2d… ins(%x, %w : f32, f32) outs(%acc : f32)
    ->
    %x16 = linalg.generic: arith.truncf %x
    %w16 = arith.constant dense<…> : f16
    %r = linalg.conv_2d… ins(%x16, %w16 : f16, f16) outs(%acc : f32)

Inputs, results and everything between stay f32 in the text; the compiler fuses each truncation into the operation
before it, so that what is stored between layers is f16. Weights, also transposed and reshaped ones, become f16
constants named `<layer>.weight`. A `tensor.pad` of an operand is done in f16. An operand used twice is truncated once.

Rounding is to nearest even. An activation beyond 65504 becomes infinite; a finite weight beyond it is an error.

Leaves alone: contractions on other types than f32 (integer layers of a mixed network), and all other operations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import build

_CONTRACTION = re.compile(r"linalg\.((depthwise_)?conv_\w+|(batch_)?matmul|matvec|vecmat)")


@dataclass(frozen=True)
class ConvertToF16(Pass):
    """Feed f32 convolutions and matrix products f16 operands and f16 weights; they accumulate in f32."""

    name: ClassVar[str] = "quantune-convert-to-f16"

    def run(self, module: ir.Operation) -> None:
        """Rewrite every f32 contraction."""
        rewriter = _Rewriter(build.FreshNames(module))
        for op in [each for each in build.walk(module) if _is_f32_contraction(each)]:
            rewriter.convert(op)


def _is_f32_contraction(op: ir.Operation) -> bool:
    if not _CONTRACTION.fullmatch(op.name) or len(op.operands) != 3:
        return False
    return all(isinstance(_element(value), ir.F32Type) for value in op.operands)


@dataclass
class _Rewriter:
    names: build.FreshNames
    truncated: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def convert(self, op: ir.Operation) -> None:
        *inputs, accumulator = op.operands
        with ir.InsertionPoint(op), op.location:
            operands = [self._operand(op, value) for value in inputs]
            replacement = ir.Operation.create(
                op.name,
                [result.type for result in op.results],
                [*operands, accumulator],
                dict(op.attributes.items()),
                regions=1,
            )
            linalg.fill_builtin_region(replacement)
        op.results[0].replace_all_uses_with(replacement.results[0])
        op.erase()
        for value in inputs:
            build.erase_if_unused(value)

    def _operand(self, op: ir.Operation, value: ir.Value) -> ir.Value:
        """The f16 value of one operand of the contraction `op`."""
        numbers = build.relaid_constant(value)
        if numbers is None:
            return self._truncate(value)
        with np.errstate(over="ignore"):
            halves = numbers.astype(np.float16)
        lost = np.isinf(halves) & np.isfinite(numbers)
        if lost.any():
            raise PassFailure(op, f"has the weight {numbers[lost].flat[0]:g}, which f16 cannot hold")
        layer = build.layer_of(op)
        return build.constant(halves) if layer is None else build.parameter(self.names(layer, "weight"), halves)

    def _truncate(self, value: ir.Value) -> ir.Value:
        """An f16 copy of `value`, made right behind it so that all its users can share the copy."""
        if value not in self.truncated:
            op = build.defining_op(value)
            point = ir.InsertionPoint.at_block_begin(value.owner) if op is None else ir.InsertionPoint.after(op)
            with point, ir.Location.current if op is None else op.location:
                self.truncated[value] = self._padded(op) or _truncf(value)
        return self.truncated[value]

    def _padded(self, op: ir.Operation | None) -> ir.Value | None:
        """The `tensor.pad` `op` done in f16; None if it is no pad with a constant."""
        if op is None or op.name != "tensor.pad" or len(op.operands) != 1:
            return None
        padding = op.regions[0].blocks[0].operations[0]
        constant = build.defining_op(padding.operands[0]) if padding.operation.name == "tensor.yield" else None
        if constant is None or constant.name != "arith.constant":
            return None
        half = arith.constant(ir.F16Type.get(), ir.FloatAttr(constant.attributes["value"]).value)
        source = self._truncate(op.operands[0])
        pad = op.clone()
        pad.operands[0] = source
        pad.results[0].set_type(_with_element(op.results[0].type, ir.F16Type.get()))
        pad.regions[0].blocks[0].operations[0].operands[0] = half
        return pad.results[0]


def _truncf(value: ir.Value) -> ir.Value:
    half = ir.F16Type.get()
    return build.elementwise([value], _with_element(value.type, half), lambda element: arith.truncf(half, element))


def _element(value: ir.Value) -> ir.Type | None:
    return value.type.element_type if isinstance(value.type, ir.RankedTensorType) else None


def _with_element(tensor_type: ir.RankedTensorType, element: ir.Type) -> ir.RankedTensorType:
    return ir.RankedTensorType.get(tensor_type.shape, element)
