"""Rewrites of linalg and quant modules through the MLIR Python bindings: a float network in, an integer network out.

Each pass reads and writes nothing but the module (and what its options name), so each runs from a text file alone:
`quantune-opt --pass-pipeline=...`. Importing this package does not import the bindings.
"""

from __future__ import annotations

from .base import Pass, PassFailure, PipelineError, PipelineFailure
from .pipeline import Pipeline
from .registry import PASSES, load_pass

__all__ = ["PASSES", "Pass", "PassFailure", "Pipeline", "PipelineError", "PipelineFailure", "load_pass"]
