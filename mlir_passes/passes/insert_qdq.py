"""quantune-insert-qdq: annotations -> quantize/dequantize pairs of the quant dialect.

before -> after:

    %y = linalg.conv… ins(%x, %w) {quantune.output = !qy, quantune.weight = !qw}     use(%y)
    ->
    %wq = quant.qcast %w : … to tensor<…x!qw>       %wd = quant.dcast %wq
    %y = linalg.conv… ins(%x, %wd)
    %yq = quant.qcast %y : … to tensor<…x!qy>       %yd = quant.dcast %yq             use(%yd)

The annotations are spent. Of an operation with several results the first is quantized. Leaves alone: everything without
annotation. From here to ``quantune-lower-qdq-to-integer`` no pass may fold: upstream MLIR folds ``dcast(qcast(x))`` to
``x``, which silently removes the quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import match
from mlir_passes.ir.build import strip_annotations
from mlir_passes.ir.moves import reshape
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.reader import main_function
from mlir_passes.passes.annotate import OUTPUT, WEIGHT

_GROUPS = "[[0, 1], [2], [3], [4]]"


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Turns ``quantune.output`` and ``quantune.weight`` into quant.qcast and quant.dcast pairs."""

    name: ClassVar[str] = "quantune-insert-qdq"

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure for a type that is not a valid uniform quantized type or stands on a non-f32 tensor."""
        function = main_function(module)
        block = function.regions[0].blocks[0]
        first = block.operations[0].operation
        arguments = list(function.attributes["arg_attrs"]) if "arg_attrs" in function.attributes else []
        for argument, attributes in zip(block.arguments, arguments, strict=False):
            if OUTPUT in attributes:
                with ir.InsertionPoint(first), function.location:
                    _quantize_uses(function, argument, attributes[OUTPUT])
        strip_annotations(function)
        for op in [op.operation for op in block.operations]:
            if WEIGHT in op.attributes:
                with ir.InsertionPoint(op), op.location:
                    _quantize_weight(op)
            if OUTPUT in op.attributes:
                if not len(op.results):
                    raise PassFailure(op, "has no result to quantize")
                with ir.InsertionPoint.after(op), op.location:
                    _quantize_uses(op, op.results[0], op.attributes[OUTPUT])
            strip_annotations(op)


def _qdq(op: ir.Operation, value: ir.Value, quantized: ir.Attribute) -> tuple[ir.Operation, ir.Value]:
    element = ir.TypeAttr(quantized).value
    try:
        QuantSpec.from_type(element)
    except ValueError as error:
        raise PassFailure(op, f"has no usable quantized type: {error}") from error
    real = ir.RankedTensorType(value.type)
    if not isinstance(real.element_type, ir.F32Type):
        raise PassFailure(op, f"has elements of type {real.element_type}; expected f32 to quantize")
    try:
        cast = ir.Operation.create("quant.qcast", [ir.RankedTensorType.get(real.shape, element)], [value])
        return cast, ir.Operation.create("quant.dcast", [real], [cast.result]).result
    except (ir.MLIRError, ValueError) as error:
        raise PassFailure(op, f"has a quantized type that does not fit its tensor {real}: {element}") from error


def _quantize_uses(op: ir.Operation, value: ir.Value, quantized: ir.Attribute) -> None:
    cast, real = _qdq(op, value, quantized)
    value.replace_all_uses_except(real, cast)


def _quantize_weight(op: ir.Operation) -> None:
    weight = op.operands[1]
    shape = match.shape_of(weight)
    if op.name != match.GROUPED_CONV:
        op.operands[1] = _qdq(op, weight, op.attributes[WEIGHT])[1]
        return
    # One scale per output channel spans the two leading dimensions of a grouped weight: quantize it as [g*f, c, h, w].
    collapsed = reshape(weight, [math.prod(shape[:2]), *shape[2:]], _GROUPS)
    real = _qdq(op, collapsed, op.attributes[WEIGHT])[1]
    op.operands[1] = reshape(real, shape, _GROUPS)
