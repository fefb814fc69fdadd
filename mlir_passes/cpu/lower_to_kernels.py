"""quantune-lower-to-cpu-kernels: layers with channels innermost -> calls of kernels written for their shape.

before -> after:

    acc = conv_2d_nhwc_hwcf(pad(x, z_x), W)                 x' (u8, bordered by z_x where a reader pads it)
    y   = clamp(roundeven(f32(acc + B) · m) + z_y)   ->     y' = flow.dispatch @conv::@conv(x', W', B', m', range)
    q(dq(y) + dq(r)), y read by nobody else          ->     the same kernel, with r' and the sum's numbers
    depthwise, matmul, average, max-pool, add, concat, quantizing the input: likewise

    clamp(conv(x, W) + b) or clamp(clamp(conv(x, W) + b) + r) in f32, or matmul   ->     one flow.dispatch; grouped too
    depthwise, average, max-pool, concat, channel shuffle in f32, transposing the input: likewise, bordered by 0

    x' = x + 128, held as u8; W' = W in the order in which the kernel reads it; B' = B − 128·ΣW, exact in 32 bits

The kernels stand in the module as stream.executables. Dispatches and kernels of IREE's dialects have their generic
form, which these bindings can hold. Constants keep the tag of the constant they come from, or get one of the same
layer, and the text depends on shapes only: one compiled program serves every set of numbers. Where another operation
reads or writes a tensor of a kernel, it is converted there; what no kernel covers stays as it is.
Requires: quantune-to-nhwc, and no folding pass before it. Leaves alone: f32 arithmetic that is not behind a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir

from mlir_passes.base import Pass
from mlir_passes.cpu.calls import Calls
from mlir_passes.cpu.isa import VARIANTS
from mlir_passes.cpu.select import select
from mlir_passes.cpu.tensors import FloatTensors, StoredTensors, plain_value
from mlir_passes.ir import match
from mlir_passes.ir.build import erase_dead, layer_of, note_missed
from mlir_passes.ops.reader import main_function


@dataclass(frozen=True)
class LowerToCpuKernels(Pass):
    """Calls generated kernels for integer and f32 layers; ``features`` names the vector instructions they use."""

    name: ClassVar[str] = "quantune-lower-to-cpu-kernels"
    features: str

    def __post_init__(self) -> None:
        if self.features not in VARIANTS:
            raise ValueError(f"features is '{self.features}'; expected one of {', '.join(VARIANTS)}")

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure when the module has no single function."""
        function = main_function(module)
        # stream and flow are IREE's: to these bindings they are unregistered dialects.
        module.context.allow_unregistered_dialects = True
        calls = Calls(module)
        isa = VARIANTS[self.features]
        tensors = {each.element: each(calls, isa) for each in (StoredTensors, FloatTensors)}
        for op in [op.operation for op in function.regions[0].blocks[0].operations]:
            with ir.InsertionPoint(op), op.location:
                select(op, tensors)
        _convert_at_other_readers(function, calls)
        erase_dead(function)
        note_missed(module, _reasons(function, calls))


def _reasons(function: ir.Operation, calls: Calls) -> dict[str, str]:
    """Layer -> why it, or a part of it, became no kernel."""
    found: dict[str, str] = {}
    for op in (each.operation for each in function.regions[0].blocks[0].operations):
        layer = layer_of(op)
        missed = next((calls.missed[result] for result in op.results if result in calls.missed), None)
        if layer is None or not (op.name.startswith("linalg.") or missed):
            continue
        if missed:
            found[layer] = f"no kernel: {missed}"
        else:
            found.setdefault(layer, f"no kernel computes {match.float_detail(op)}")
    return found


def _convert_at_other_readers(function: ir.Operation, calls: Calls) -> None:
    """Give operations that stay the signed, unbordered form of tensors that kernels make."""
    operations = [op.operation for op in function.regions[0].blocks[0].operations]
    stack, seen = [operations[-1], *(op for op in operations if op.name == "flow.dispatch")], set()
    plain: dict[ir.Value, ir.Value] = {}
    while stack:
        op = stack.pop()
        if op in seen:
            continue
        seen.add(op)
        for i, operand in enumerate(op.operands):
            if operand not in calls.buffers:
                if (producer := match.owner(operand)) is not None:
                    stack.append(producer)
                continue
            if operand not in plain:
                with ir.InsertionPoint.after(calls.buffers[operand].value.owner), op.location:
                    plain[operand] = plain_value(operand, calls.buffers[operand])
            op.operands[i] = plain[operand]
        for inner in (inner for region in op.regions for block in region.blocks for inner in block.operations):
            stack.append(inner.operation)
