"""Which operations become which kernels: a table from their names to what recognizes them and what calls the kernel.

A recognizer edits nothing: it answers what it found, or None for what is not its own, or `Missed` with the reason why
no kernel computes this. The first rule that finds something calls its kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu import layers, moves
from mlir_passes.cpu.calls import makes_tensor
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, MATMUL, MAX_POOL
from mlir_passes.cpu.tensors import Tensors, is_image

GENERIC, TRANSPOSE = "linalg.generic", "linalg.transpose"
CONCAT, SLICE = "tensor.concat", "tensor.extract_slice"
COLLAPSE, EXPAND = "tensor.collapse_shape", "tensor.expand_shape"


@dataclass(frozen=True)
class Rule:
    """Some operations, by name; what recognizes them, and what calls the kernel for what that finds.

    element: the number type whose tensors both get, where it is not that of the result: integers may end in f32.
    """

    names: tuple[str, ...]
    find: Callable[[ir.Operation, Tensors], Any]
    call: Callable[[Any, Tensors], None]
    element: str | None = None


RULES = (
    Rule((GENERIC,), layers.requantized_layer, layers.call_layer, "i8"),
    Rule((GENERIC,), layers.requantized_mean, layers.call_mean, "i8"),
    Rule((DENSE, DEPTHWISE, MATMUL, COLLAPSE), layers.clamped_layer, layers.call_layer, "f32"),
    Rule((GENERIC,), layers.divided_mean, layers.call_mean, "f32"),
    Rule((GENERIC,), lambda op, tensors: tensors.added(op), layers.call_sum),
    Rule((MAX_POOL,), moves.max_pool, moves.call_move),
    Rule((CONCAT,), moves.joined, moves.call_move),
    Rule((SLICE,), moves.sliced, moves.share),
    Rule((SLICE,), moves.copied, moves.call_move),
    Rule((COLLAPSE, EXPAND), moves.one_pixel, moves.share),
    Rule((COLLAPSE, EXPAND), moves.shuffled, moves.call_move),
    Rule((TRANSPOSE,), moves.quantized_image, moves.call_quantize, "i8"),
    Rule((TRANSPOSE,), moves.image, moves.call_transpose, "f32"),
)


def select(op: ir.Operation, tensors: Mapping[str, Tensors]) -> None:
    """Call the kernel for ``op``, or find the buffer that it is a view of, or remember why not.

    tensors: by their element type; a layer among them may wait for the addition behind it.
    """
    if not makes_tensor(op) or not is_image(op.results[0]):
        return
    own = str(ir.RankedTensorType(op.results[0].type).element_type)
    for rule in (rule for rule in RULES if op.name in rule.names):
        held = tensors.get(rule.element or own)
        found = None if held is None else rule.find(op, held)
        if held is None or found is None:
            continue
        if isinstance(found, Missed):
            held.calls.miss(op, found)
            continue
        rule.call(found, held)
        return
