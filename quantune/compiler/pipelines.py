"""Which passes run for which request, and running them: linalg -> qdq -> integer -> program."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlir_passes.base import PassFailure, PipelineFailure
from mlir_passes.pipeline import Pipeline
from quantune.compiler.targets import Target
from quantune.errors import PassFailed
from quantune.quantization.plan import QuantizationPlan
from quantune.quantization.precisions import PRECISIONS

if TYPE_CHECKING:
    from torch_mlir import ir

STAGES = ("linalg", "qdq", "integer", "vmfb")
"""What ``--emit`` may ask for, in the order in which they come."""

SUMMARY = "summary"
"""The function that quantune-summarize adds to an instrumented module."""


@dataclass(frozen=True)
class Debugging:
    """What to leave behind while passes run.

    dump_dir: a tree of the IR after each pass. print_ir: the same on stderr. reproducer_dir: where a failure's input
    and command go.
    """

    dump_dir: Path | None = None
    print_ir: bool = False
    reproducer_dir: Path | None = None


@dataclass(frozen=True)
class Lowered:
    """A module ready for IREE, and how it was made.

    module: MLIR bytecode with all numbers inside, or, where ``parameters`` is not None, text without them.
    parameters: name -> array, the numbers taken out. pipeline: the passes, as text. parameter_bytes: what those numbers
    take in an artifact, where narrow weights are packed. reasons: layer -> why it is not in integers or has no kernel.
    """

    module: bytes
    parameters: dict[str, np.ndarray] | None
    pipeline: str
    parameter_bytes: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)


QUANTIZE_PASSES = "quantune-annotate,quantune-insert-qdq"
"""f32 linalg that holds its plan -> quantize/dequantize pairs."""

INTEGER_PASSES = "quantune-lower-qdq-to-integer,quantune-lower-quant"
"""Quantize/dequantize pairs -> integer linalg. No folding pass may come before their end."""


def target_passes(target: Target, precision: str) -> str:
    """The last rewrites before IREE: layout, and what a target's code generation needs to be right."""
    passes = ["quantune-to-nhwc"]
    if PRECISIONS[precision].is_half:
        passes.insert(0, "quantune-convert-to-f16")
    return ",".join((*passes, *target.passes(precision)))


def lower(
    bytecode: bytes,
    plan: QuantizationPlan | None,
    target: Target,
    precision: str,
    *,
    until: str = "vmfb",
    outline: bool = False,
    debugging: Debugging | None = None,
) -> Lowered:
    """Run the passes on an imported module.

    until: a stage; ``vmfb`` includes the target's own rewrites. outline: take the numbers of an integer program out.
    Raises PassFailed with the pass's diagnostic and, where asked for, the reproducer.
    """
    from mlir_passes.ir.build import take_missed
    from mlir_passes.passes.annotate import hold_plan
    from mlir_passes.passes.set_constants import hold_constants

    debugging = debugging or Debugging()
    module, pipeline = parse(bytecode), _passes(plan, target, precision, until, outline=outline)
    if plan is not None and until != "linalg":
        hold_plan(module.operation, plan.to_json())
        if plan.constants:
            hold_constants(module.operation, {name: each.parts for name, each in plan.constants.items()})
    run(module, pipeline, debugging)
    reasons = take_missed(module.operation)
    if until in ("integer", "vmfb"):
        _assert_lowered(module)
    if not outline:
        return Lowered(to_bytecode(module), None, pipeline, reasons=reasons)
    from mlir_passes.passes.outline_parameters import collect_parameters
    from mlir_passes.passes.pack_weights import packed_bytes

    parameters = collect_parameters(module)
    run(module, "quantune-outline-parameters", debugging)
    narrow = plan is not None and plan.is_narrow
    return Lowered(
        module.operation.get_asm(enable_debug_info=True).encode(),
        parameters,
        f"{pipeline},quantune-outline-parameters",
        packed_bytes(parameters) if narrow else sum(array.nbytes for array in parameters.values()),
        reasons,
    )


def _passes(plan: QuantizationPlan | None, target: Target, precision: str, until: str, *, outline: bool) -> str:
    """The pipeline up to a stage."""
    text: list[str] = []
    if plan is not None and until != "linalg":
        if plan.constants:
            text.append("quantune-set-constants")
        text.append(QUANTIZE_PASSES)
        if until != "qdq":
            text.append(INTEGER_PASSES)
    if until == "vmfb":
        text.append(target_passes(target, precision))
        if plan is not None and plan.is_narrow and not outline:
            text.append("quantune-pack-weights")
    return ",".join(text)


def _assert_lowered(module: ir.Module) -> None:
    """IREE folds what is left of the quant dialect away without a word: nothing may be left."""
    from mlir_passes.passes.lower_quant import assert_no_quant

    try:
        assert_no_quant(module)
    except PassFailure as error:
        raise PassFailed(f"after lowering, '{error.op.name}' {error}") from error


def instrumented(bytecode: bytes, tensors: tuple[str, ...], target: Target, strides: Sequence[int] = ()) -> bytes:
    """The f32 module that also returns ``tensors``, for calibration.

    strides: one a tensor, for a second function ``SUMMARY`` that samples them.
    """
    module = parse(bytecode)
    passes = f'quantune-instrument{{tensors="{",".join(tensors)}"}},{target_passes(target, "f32")}'
    if strides:
        passes += f",quantune-summarize{{strides={','.join(map(str, strides))}}}"
    run(module, passes, Debugging())
    return to_bytecode(module)


def parse(bytecode: bytes) -> ir.Module:
    """Read MLIR text or bytecode into a context of its own."""
    from torch_mlir import ir

    return ir.Module.parse(bytecode, context=ir.Context())


def run(module: ir.Module, pipeline: str, debugging: Debugging) -> None:
    """Run a pipeline's text over ``module`` in place."""
    try:
        Pipeline.parse(pipeline).run(
            module,
            print_ir_after_all=debugging.print_ir,
            dump_dir=debugging.dump_dir,
            reproducer_dir=debugging.reproducer_dir,
        )
    except PipelineFailure as error:
        raise PassFailed(str(error)) from error


def to_bytecode(module: ir.Module) -> bytes:
    """MLIR bytecode, locations included."""
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer)
    return buffer.getvalue()
