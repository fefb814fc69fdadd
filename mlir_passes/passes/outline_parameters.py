"""Take the numbers out of a module: tagged constants become IREE parameters, and what is left is the program.

    %w = arith.constant {quantune.parameter = "conv.weight"} dense<…> : tensor<8x3xi8>
    ->
    "util.global"() {initial_value = #flow.parameter.named<"model"::"conv.weight"> : tensor<8x3xi8>,
                     sym_name = "model.conv.weight", …} : () -> ()                         (once, at the module's start)
    %w = "util.global.load"() {global = @model.conv.weight, is_immutable} : () -> tensor<8x3xi8>

IREE's dialects are unknown to these bindings, hence the generic form; iree-compile reads it. The module's text, and so
its hash, afterwards depends on no number: modules that differ only in tagged constants and in quantization annotations
(which are removed) become byte-identical. `collect_parameters` gives the numbers; call it before the pass.

Run it before any pass that folds or deduplicates constants (canonicalize, fusion): those merge two parameters that
happen to be equal, and drop the tags.

Leaves alone: constants without a tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir import build


@dataclass(frozen=True)
class OutlineParameters(Pass):
    """Turn every tagged constant into a named IREE parameter of the given scope."""

    name: ClassVar[str] = "quantune-outline-parameters"
    scope: str = "model"

    def __post_init__(self) -> None:
        if not self.scope.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"scope is '{self.scope}'; expected letters, digits, - and _")

    def run(self, module: ir.Operation) -> None:
        """Replace the constants by loads, declare a global for each tag, and remove the annotations."""
        # util and flow are IREE's: to these bindings they are unregistered dialects.
        module.context.allow_unregistered_dialects = True
        tagged = list(_tagged_constants(module))
        types = {name: op.results[0].type for name, op in tagged}
        for name, op in tagged:
            self._load(name, op)
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), ir.Location.unknown(module.context):
            for name, parameter_type in types.items():
                self._declare(name, parameter_type)
        for op in build.walk(module):
            build.strip_annotations(op)

    def _declare(self, name: str, parameter_type: ir.Type) -> None:
        value = f"#flow.parameter.named<{_quoted(self.scope)}::{_quoted(name)}> : {parameter_type}"
        attributes = {
            "sym_name": ir.StringAttr.get(self._symbol(name)),
            "sym_visibility": ir.StringAttr.get("private"),
            "type": ir.TypeAttr.get(parameter_type),
            "initial_value": ir.Attribute.parse(value),
        }
        ir.Operation.create("util.global", attributes=attributes)

    def _load(self, name: str, op: ir.Operation) -> None:
        with ir.InsertionPoint(op), op.location:
            symbol = ir.FlatSymbolRefAttr.get(self._symbol(name))
            attributes = {"global": symbol, "is_immutable": ir.UnitAttr.get()}
            load = ir.Operation.create("util.global.load", [op.results[0].type], [], attributes)
        op.results[0].replace_all_uses_with(load.results[0])
        op.erase()

    def _symbol(self, name: str) -> str:
        return f"{self.scope}.{name}"


def collect_parameters(module: ir.Module | ir.Operation) -> dict[str, np.ndarray]:
    """The numbers of the module's tagged constants by name; raises `PassFailure` when one name has several."""
    return {name: np.array(op.attributes["value"]) for name, op in _tagged_constants(module.operation)}


def _tagged_constants(module: ir.Operation) -> Iterator[tuple[str, ir.Operation]]:
    """Name and operation of each tagged constant, all checked; several of one name hold the same numbers."""
    seen: dict[str, ir.Attribute] = {}
    for op in build.walk(module):
        if build.PARAMETER not in op.attributes:
            continue
        tag = op.attributes[build.PARAMETER]
        if not isinstance(tag, ir.StringAttr) or not tag.value:
            raise PassFailure(op, f"has {build.PARAMETER} = {tag}; expected a name")
        value = op.attributes["value"] if op.name == "arith.constant" else None
        if not isinstance(value, ir.DenseElementsAttr):
            raise PassFailure(op, f"is parameter '{tag.value}' but no arith.constant with dense elements")
        # Attributes are unique in a context, so that this compares the numbers without reading them.
        if seen.setdefault(tag.value, value) != value:
            raise PassFailure(op, f"is parameter '{tag.value}' with other numbers than the one before it")
        yield tag.value, op


def _quoted(text: str) -> str:
    return str(ir.StringAttr.get(text))
