"""quantune-set-constants: other weights and biases in place of a network's own.

before -> after, for ``quantune.constants = {features.0 = {bias = dense<…> : tensor<8xf32>, weight = dense<…> : …}}`` on
the module:

    %1 = linalg.conv_2d_nchw_fchw ins(%x, %w) outs(%b) {quantune.layer = "features.0"}
    ->
    %1 = linalg.conv_2d_nchw_fchw ins(%x, %w1) outs(%b1) {quantune.layer = "features.0"}

The numbers are in the module, so a reproducer has them; the attribute is spent. Names and shapes are those of
``read_network``: weights f32[O, I/groups, kh, kw] of convolutions and f32[O, I] of matrix products, biases f32[O]. A
layer without a bias gets one. Each part of an entry may be left out. Leaves alone: layers that are not named.
Requires: the network in f32, before ``quantune-insert-qdq``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Pass, PassFailure
from mlir_passes.ir.build import dense, erase_dead
from mlir_passes.ops.layer import set_bias, set_weight
from mlir_passes.ops.reader import Site, main_function, read_network

CONSTANTS = "quantune.constants"
"""On the module: layer name -> its new weight and bias; spent by the pass."""

_SETTERS = {"weight": set_weight, "bias": set_bias}


def hold_constants(module: ir.Operation, constants: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Put constants (layer -> weight, bias -> numbers) into the module, where the pass finds them."""
    with module.context:
        entries = {
            layer: ir.DictAttr.get({part: dense(numbers) for part, numbers in parts.items()})
            for layer, parts in constants.items()
        }
        module.attributes[CONSTANTS] = ir.DictAttr.get(entries)


@dataclass(frozen=True)
class SetConstants(Pass):
    """Puts the weights and biases that the module holds in place of its layers' own."""

    name: ClassVar[str] = "quantune-set-constants"

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure for an entry without its layer, of another shape, or with numbers that are not finite."""
        if CONSTANTS not in module.attributes:
            raise PassFailure(module, f"has no constants to set: {CONSTANTS} is missing")
        held = module.attributes[CONSTANTS]
        if not isinstance(held, ir.DictAttr):
            raise PassFailure(module, f"has no constants to set: {CONSTANTS} is {held}")
        del module.attributes[CONSTANTS]
        sites = read_network(module).sites
        for named in held:
            site = sites.get(named.name)
            if site is None:
                raise PassFailure(module, f"has no layer named '{named.name}', which is to get constants")
            if site.op is None or not site.node.traits.weighted:
                raise PassFailure(
                    site.op or module, f"has no constants to set: '{named.name}' is of kind {site.node.kind}"
                )
            if not isinstance(named.attr, ir.DictAttr):
                raise PassFailure(site.op, f"has no usable constants: {named.attr}; expected weight and bias")
            for part in named.attr:
                _set(site, part.name, part.attr)
        erase_dead(main_function(module))


def _set(site: Site, part: str, attribute: ir.Attribute) -> None:
    op, setter = site.op, _SETTERS.get(part)
    assert op is not None
    if setter is None:
        raise PassFailure(op, f"cannot have '{part}' set; expected {' or '.join(_SETTERS)}")
    own = getattr(site.node, part)
    numbers = np.array(attribute) if isinstance(attribute, ir.DenseElementsAttr) else np.empty(0)
    if numbers.dtype != np.float32 or numbers.shape != own.shape:
        raise PassFailure(
            op, f"has a {part} of f32{list(own.shape)}; cannot be set to {numbers.dtype}{list(numbers.shape)}"
        )
    if not np.isfinite(numbers).all():
        raise PassFailure(op, f"cannot have a {part} with {np.count_nonzero(~np.isfinite(numbers))} numbers not finite")
    setter(site, numbers)
