"""The passes by name."""

from __future__ import annotations

import difflib
import importlib

from mlir_passes.base import Pass, PipelineError

#: Where each pass lives, in the order in which a network meets them. Loaded on first use.
PASSES: dict[str, str] = {
    "quantune-set-constants": "mlir_passes.passes.set_constants:SetConstants",
    "quantune-annotate": "mlir_passes.passes.annotate:Annotate",
    "quantune-insert-qdq": "mlir_passes.passes.insert_qdq:InsertQdq",
    "quantune-instrument": "mlir_passes.passes.instrument:Instrument",
    "quantune-lower-qdq-to-integer": "mlir_passes.passes.lower_qdq_to_integer:LowerQdqToInteger",
    "quantune-lower-quant": "mlir_passes.passes.lower_quant:LowerQuant",
    "quantune-convert-to-f16": "mlir_passes.passes.convert_to_f16:ConvertToF16",
    "quantune-to-nhwc": "mlir_passes.passes.to_nhwc:ToNhwc",
    "quantune-lower-to-cpu-kernels": "mlir_passes.cpu.lower_to_kernels:LowerToCpuKernels",
    "quantune-vulkan-sign-extension": "mlir_passes.vulkan.sign_extension:SignExtension",
    "quantune-pack-weights": "mlir_passes.passes.pack_weights:PackWeights",
    "quantune-summarize": "mlir_passes.passes.summarize:Summarize",
    "quantune-outline-parameters": "mlir_passes.passes.outline_parameters:OutlineParameters",
}

# Only for the hint after a misspelled name: MLIR does not list its passes to Python.
_COMMON_NATIVE_PASSES = ("canonicalize", "cse", "symbol-dce", "inline", "linalg-generalize-named-ops")


def load_pass(name: str) -> type[Pass]:
    """The class of the pass called `name`; raises `PipelineError` with the nearest names when there is none."""
    if name not in PASSES:
        raise PipelineError(f"unknown pass '{name}'{near_misses(name)}")
    module, _, cls = PASSES[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def near_misses(name: str) -> str:
    """The end of a message about an unknown pass: what was meant."""
    near = difflib.get_close_matches(name, (*PASSES, *_COMMON_NATIVE_PASSES), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "; see quantune-opt --list-passes"
