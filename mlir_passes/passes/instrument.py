"""quantune-instrument: return chosen intermediate tensors as further results, for calibration.

before -> after, for ``tensors=features.0``:

    func.func @main(%x) -> tensor<…> { %1 = linalg.conv… {quantune.layer = "features.0"} … return %y }
    ->
    func.func @main(%x) -> (tensor<…>, tensor<…>) { … return %y, %1 }

Names are those of ``read_network``; ``all`` stands for every tensor. Leaves alone: the computation itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ops.reader import main_function, read_network


@dataclass(frozen=True)
class Instrument(Pass):
    """Appends the named tensors (separated by commas) to the function's results."""

    name: ClassVar[str] = "quantune-instrument"
    tensors: str

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure for a name that the network lacks."""
        sites = read_network(module).sites
        names = list(sites) if self.tensors == "all" else self.tensors.split(",")
        for name in names:
            if name not in sites:
                raise PassFailure(module, f"has no tensor named '{name}'")
        function = main_function(module)
        block = function.regions[0].blocks[0]
        old = block.operations[len(block.operations) - 1].operation
        values = [*old.operands, *(sites[name].result for name in names)]
        with ir.InsertionPoint(old), old.location:
            ir.Operation.create("func.return", [], values)
        old.erase()
        inputs = [argument.type for argument in block.arguments]
        signature = ir.FunctionType.get(inputs, [value.type for value in values], context=module.context)
        function.attributes["function_type"] = ir.TypeAttr.get(signature, context=module.context)
        if "res_attrs" in function.attributes:
            del function.attributes["res_attrs"]
