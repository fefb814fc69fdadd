"""quantune-annotate: a quantization plan -> attributes on the operations it speaks of.

The plan is the module's ``quantune.plan``, JSON in a string, or a file named by ``plan=``.

before -> after, for the plan ``{"activations": {"features.0": …}, "weights": {"features.0": …}}``:

    %1 = linalg.conv_2d_nchw_fchw … {quantune.layer = "features.0"}
    ->
    %1 = linalg.conv_2d_nchw_fchw … {quantune.layer = "features.0",
                                     quantune.output = !quant.uniform<u8:f32, 0.02:3>,
                                     quantune.weight = !quant.uniform<i8<-127:127>:f32:0, {…}>}

``quantune.output`` stands on the operation that makes the tensor (the last of a fused group), or on the function's
argument. With ``"requantize": "shift"`` in the plan, whose scales then are powers of two, its layers have the attribute
``quantune.requantize = "shift"``.

Names are those of ``read_network``. Leaves alone: tensors the plan does not name. A name the network lacks is
an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch_mlir import ir

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir.build import ANNOTATIONS, REQUANTIZE, defining_op
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ops.layer import output_axis
from mlir_passes.ops.reader import Reading, Site, main_function, read_network

OUTPUT, WEIGHT = ANNOTATIONS
PLAN = "quantune.plan"
"""On the module: the plan, as JSON; spent by the pass."""


def hold_plan(module: ir.Operation, plan: str) -> None:
    """Put a plan (JSON) into the module, where the pass finds it and a reproducer has it."""
    module.attributes[PLAN] = ir.StringAttr.get(plan, context=module.context)


@dataclass(frozen=True)
class Annotate(Pass):
    """Puts the quantized types of a plan (the module's, or a JSON file) on what makes its tensors."""

    name: ClassVar[str] = "quantune-annotate"
    plan: str = ""

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure for an unreadable plan, an unknown name or parameters that do not fit."""
        if not self.plan and PLAN not in module.attributes:
            raise PassFailure(module, f"cannot be annotated: it has no {PLAN}; hold one in it, or name a file as plan=")
        try:
            held = "" if self.plan else ir.StringAttr(module.attributes[PLAN]).value
            plan = json.loads(Path(self.plan).read_text(encoding="utf-8") if self.plan else held)
            activations, weights = dict(plan["activations"]), dict(plan["weights"])
            shifts = {"shift": True, "multiplier": False}[plan.get("requantize", "multiplier")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            where = f"plan '{self.plan}'" if self.plan else PLAN
            raise PassFailure(module, f"cannot be annotated: {where} is unreadable: {error}") from error
        if PLAN in module.attributes:
            del module.attributes[PLAN]
        reading = read_network(module)
        for name, entry in activations.items():
            _set_output(module, _site(module, reading, name), name, _spec(module, name, entry, axis=None))
        for name, entry in weights.items():
            site = _site(module, reading, name)
            _set_weight(module, site, name, entry)
            if shifts and site.op is not None:
                site.op.attributes[REQUANTIZE] = ir.StringAttr.get("shift", context=module.context)


def _site(module: ir.Operation, reading: Reading, name: str) -> Site:
    if name not in reading.sites:
        raise PassFailure(module, f"has no tensor named '{name}', which the plan quantizes")
    return reading.sites[name]


def _spec(op: ir.Operation, name: str, entry: dict[str, Any], axis: int | None) -> QuantSpec:
    try:
        low = int(entry["min"])
        scales, points = tuple(map(float, entry["scale"])), tuple(map(int, entry["zero_point"]))
        return QuantSpec(scales, points, low, int(entry["max"]), low < 0, axis)
    except (KeyError, TypeError, ValueError) as error:
        raise PassFailure(op, f"has no usable quantization for '{name}': {error}") from error


def _set_output(module: ir.Operation, site: Site, name: str, spec: QuantSpec) -> None:
    attribute = ir.TypeAttr.get(spec.to_type(module.context), context=module.context)
    op = defining_op(site.result)
    if op is not None and op.results[0] != site.result:
        raise PassFailure(op, f"cannot have '{name}' quantized: only its first result can be")
    if op is not None:
        op.attributes[OUTPUT] = attribute
        return
    function = main_function(module)
    index = list(function.regions[0].blocks[0].arguments).index(site.result)
    old = list(function.attributes["arg_attrs"]) if "arg_attrs" in function.attributes else []
    old += [ir.DictAttr.get({}, context=module.context)] * (len(function.regions[0].blocks[0].arguments) - len(old))
    entries = {named.name: named.attr for named in old[index]}
    old[index] = ir.DictAttr.get({**entries, OUTPUT: attribute}, context=module.context)
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(old, context=module.context)


def _set_weight(module: ir.Operation, site: Site, name: str, entry: dict[str, Any]) -> None:
    weight, op = site.node.weight, site.op
    if weight is None or op is None:
        raise PassFailure(op or module, f"has no constant weight to quantize: '{name}' is a {site.node.kind}")
    spec = _spec(op, name, entry, output_axis(op) if isinstance(entry, dict) and entry.get("per_channel") else None)
    if spec.axis is not None and len(spec.scales) != weight.shape[0]:
        raise PassFailure(op, f"has {weight.shape[0]} output channels, but the plan has {len(spec.scales)} scales")
    op.attributes[WEIGHT] = ir.TypeAttr.get(spec.to_type(module.context), context=module.context)
