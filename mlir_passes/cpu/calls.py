"""Calls of kernels and the constants they read."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed
from mlir_passes.cpu.patterns import Parameter
from mlir_passes.ir.build import constant, layer_of, parameter, set_layer
from mlir_passes.kernels.text import NAME, Layout
from mlir_passes.kernels.work import KernelSpec


@dataclass(frozen=True)
class Buffer:
    """A tensor as kernels hold it: u8 bytes or f32 in a layout."""

    value: ir.Value
    layout: Layout


@functools.lru_cache(maxsize=1024)
def _text(spec: KernelSpec) -> str:
    """The text of a kernel; a search lowers one network again and again, and its kernels stay the same."""
    return spec.text()


class Calls:
    """The kernels of a module.

    buffers: the form that kernels read of each value they make. missed: by its result, why an operation became no
    kernel; an operation itself has another hash when its operands are others.
    """

    def __init__(self, module: ir.Operation) -> None:
        self.module = module
        self.buffers: dict[ir.Value, Buffer] = {}
        self.missed: dict[ir.Value, str] = {}
        self._names: dict[str, str] = {}

    def miss(self, op: ir.Operation, missed: Missed) -> None:
        """Remember why an operation becomes no kernel; the first reason stays."""
        self.missed.setdefault(op.results[0], missed.reason)

    def call(self, spec: KernelSpec, operands: Sequence[ir.Value], result: ir.Type, source: ir.Operation) -> ir.Value:
        """Call a kernel, at the location and for the layer of ``source``; an equal kernel is there only once."""
        name = self._kernel(spec)
        count = len(operands)
        attributes = {
            "entry_points": ir.Attribute.parse(f"[@{name}::@{name}]"),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([0, count, 0, 0]),
            "tied_operands": ir.Attribute.parse("[-1 : index]"),
        }
        if spec.macs:
            attributes["quantune.macs"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), spec.macs)
        op = ir.Operation.create("flow.dispatch", [result], list(operands), attributes, loc=source.location)
        set_layer(op, layer_of(source))
        return op.results[0]

    def _kernel(self, spec: KernelSpec) -> str:
        text = _text(spec)
        if text not in self._names:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(spec).__name__).lower()
            self._names[text] = name = f"quantune_{kind}_{len(self._names)}"
            parsed = ir.Module.parse(text.replace(NAME, name), context=self.module.context)
            parsed.body.operations[0].operation.clone(
                ip=ir.InsertionPoint.at_block_begin(self.module.regions[0].blocks[0])
            )
        return self._names[text]


def numbers_as(tag: str | None, numbers: np.ndarray) -> ir.Value:
    """A constant, tagged if there is a tag."""
    return constant(numbers) if tag is None else parameter(tag, numbers)


def tag_like(given: Parameter, role: str) -> str | None:
    """The tag of another number of the same layer."""
    return None if given.tag is None else f"{given.tag.rpartition('.')[0]}.{role}"


def border_byte(number: Parameter | None) -> int:
    """The u8 that fills a border; 0 where there is none."""
    return 0 if number is None else int(number.numbers) + 128


def makes_tensor(op: ir.Operation) -> bool:
    """Whether an operation has one result, a ranked tensor."""
    return len(op.results) == 1 and isinstance(op.results[0].type, ir.RankedTensorType)
