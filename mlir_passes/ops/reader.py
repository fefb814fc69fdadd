"""linalg module -> Network, with the link back from each node to the operation that makes its tensor.

Works before and after quantize/dequantize pairs were inserted: a ``quant.dcast(quant.qcast(x))`` is looked through, and
the quantized types met on the way are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch_mlir import ir

from mlir_passes.base import Missed, PassFailure
from mlir_passes.ir import match
from mlir_passes.ir.build import defining_op, layer_of, reads, relaid_constant
from mlir_passes.network import FLOAT, INPUT, Network, Node
from mlir_passes.ops import rooms, windows

_SOURCES = {"arith.constant", "tensor.empty"}


class NetworkError(PassFailure):
    """The module is not a network this project can read; the message says what, and the operation where."""


@dataclass(eq=False)
class Site:
    """Where a node stands in the IR.

    op: the operation that does the work (the convolution, the window's sum, the compare-and-select, ...).
    sources: the values it reads, before padding, as they stand (a quant.dcast's result where the tensor is quantized).
    result: the value that holds the node's tensor. qcasts: the quantizations of it.
    weight_type: the quantized type of a layer's weight. steps: all operations of a function of one value.
    """

    node: Node
    op: ir.Operation | None
    sources: tuple[ir.Value, ...]
    result: ir.Value
    weight_type: ir.Type | None = None
    qcasts: list[ir.Operation] = field(default_factory=list)
    steps: tuple[ir.Operation, ...] = ()


@dataclass
class Reading:
    """A network and the place of each of its tensors in the IR."""

    network: Network
    sites: dict[str, Site]


def main_function(module: ir.Operation) -> ir.Operation:
    """The module's only function with a body. Raises NetworkError when there is none or several."""
    functions = [op.operation for op in module.regions[0].blocks[0].operations if op.operation.name == "func.func"]
    functions = [op for op in functions if len(op.regions[0].blocks)]
    if len(functions) != 1:
        raise NetworkError(module, f"is no network: expected one func.func with a body, found {len(functions)}")
    return functions[0]


def read_network(module: ir.Operation) -> Reading:
    """Read the only function of ``module``. Raises NetworkError for dynamic shapes or non-tensor results."""
    return Reader(main_function(module)).read()


class Reader:
    """What has been read so far. Rooms ask it for what they read, and enter what they find."""

    def __init__(self, function: ir.Operation) -> None:
        self._function, self._block = function, function.regions[0].blocks[0]
        self._rooms = tuple(rooms())
        self._names: dict[ir.Value, str] = {}
        self._sites: dict[str, Site] = {}
        self._constant: dict[ir.Operation, bool] = {}
        self._outputs: tuple[str, ...] = ()

    def read(self) -> Reading:
        """The whole network."""
        for i, argument in enumerate(self._block.arguments):
            self._static(self._function, argument, f"argument {i}")
            name = "input" if len(self._block.arguments) == 1 else f"input{i}"
            self._define(Node(name, "", INPUT, (), match.shape_of(argument)), None, (), argument)
        for op in self._block.operations:
            self._visit(op.operation)
        self._drop_unread()
        return Reading(Network(tuple(site.node for site in self._sites.values()), self._outputs), self._sites)

    def _drop_unread(self) -> None:
        """Forget steps of functions and blends that several of these took over, and nothing else reads."""
        read = set(self._outputs)
        for name, site in reversed(list(self._sites.items())):
            node, traits = site.node, site.node.traits
            is_step = node.function or node.places or node.taps or traits.clamps or traits.function
            if name in read or not is_step:
                read.update(site.node.inputs)
            else:
                del self._sites[name], self._names[site.result]

    def _visit(self, op: ir.Operation) -> None:
        if op.name == "func.return":
            self._outputs = tuple(self._name(op, self._peel(value)) for value in op.operands)
        elif op.name == "quant.qcast":
            if op.operands[0] in self._names:
                self._sites[self._names[op.operands[0]]].qcasts.append(op)
        elif op.name in ("quant.dcast", "quant.scast") or self._only_constants(op):
            return
        elif len(op.results) == 1 and isinstance(op.results[0].type, ir.RankedTensorType):
            self._static(op, op.results[0], op.name)
            self._tensor(op)
        else:
            self._several(op)

    def _several(self, op: ir.Operation) -> None:
        """An operation with several results, such as a maximum and where it is."""
        for result in op.results:
            if isinstance(result.type, ir.RankedTensorType):
                self._static(op, result, op.name)
                self._float(op, result=result)

    def _tensor(self, op: ir.Operation) -> None:
        if windows.is_absorbed(op):
            return
        for room in self._rooms:
            found = room.recognize(op, self)
            if isinstance(found, Missed):
                self._float(op, detail=found.reason)
                return
            if found:
                return
        self._float(op)

    # For the rooms

    def add(
        self,
        op: ir.Operation,
        kind: str,
        sources: Sequence[ir.Value],
        *,
        result: ir.Value | None = None,
        weight_type: ir.Type | None = None,
        **fields: Any,
    ) -> bool:
        """Enter a node that ``op`` computes from ``sources``; True, which is what a room then answers."""
        layer, result = layer_of(op) or "", result or op.results[0]
        names = tuple(self._name(op, self._peel(value)) for value in sources)
        node = Node(self._unique(layer or kind), layer, kind, names, match.shape_of(result), **fields)
        self._define(node, op, tuple(sources), result, weight_type)
        return True

    def extend(self, site: Site, op: ir.Operation, **changes: Any) -> bool:
        """Let ``op`` be the last step of ``site``'s node, which changes as given; True."""
        del self._names[site.result]
        values = {k: getattr(site.node, k) for k in site.node.__dataclass_fields__}
        site.node = Node(**{**values, **changes, "shape": match.shape_of(op.results[0])})
        site.result = op.results[0]
        self._names[site.result] = site.node.name
        return True

    def merge(
        self,
        op: ir.Operation,
        kind: str,
        sites: Sequence[Site],
        sources: Sequence[ir.Value],
        *,
        steps: tuple[ir.Operation, ...],
        **fields: Any,
    ) -> bool:
        """Enter a node that ``op`` computes from ``sources`` in the place of ``sites``, which go."""
        for site in sites:
            del self._names[site.result], self._sites[site.node.name]
        self.add(op, kind, sources, **fields)
        self._sites[self._names[op.results[0]]].steps = steps
        return True

    def maker_of(self, value: ir.Value) -> Site:
        """The node that makes a tensor of the network, quantized or not."""
        return self._sites[self._names[self._peel(value)]]

    def knows(self, value: ir.Value) -> bool:
        """Whether a value is a tensor of the network, quantized or not."""
        return self._peel(value) in self._names

    def site_of(self, value: ir.Value) -> Site | None:
        """The node whose tensor a value is; None for a quantized one."""
        name = self._names.get(value)
        return None if name is None else self._sites[name]

    def weight(self, value: ir.Value) -> tuple[np.ndarray | None, ir.Type | None]:
        """A constant weight and, where it is quantized, its type."""
        op = defining_op(value)
        if op is not None and op.name == "tensor.expand_shape" and self._peel(op.operands[0]) != op.operands[0]:
            value = op.operands[0]  # a grouped weight is quantized before its groups are split
        inner = self._peel(value)
        if inner == value:
            return relaid_constant(value), None
        cast = defining_op(value)
        assert cast is not None
        return relaid_constant(inner), ir.RankedTensorType(cast.operands[0].type).element_type

    # Helpers

    def _define(
        self,
        node: Node,
        op: ir.Operation | None,
        sources: tuple[ir.Value, ...],
        result: ir.Value,
        weight_type: ir.Type | None = None,
    ) -> None:
        self._sites[node.name] = Site(node, op, sources, result, weight_type)
        self._names[result] = node.name

    def _float(self, op: ir.Operation, *, detail: str = "", result: ir.Value | None = None) -> None:
        self.add(op, FLOAT, self._sources(op), detail=detail or match.float_detail(op), result=result)

    def _sources(self, op: ir.Operation) -> tuple[ir.Value, ...]:
        """The tensors ``op`` depends on; what is no tensor of the network itself is looked through."""
        found: dict[ir.Value, None] = {}
        for value in reads(op):
            maker = defining_op(value)
            if self.knows(value):
                found[value] = None
            elif maker is not None and not self._only_constants(maker):
                found.update(dict.fromkeys(self._sources(maker)))
        return tuple(found)

    def _unique(self, stem: str) -> str:
        name, count = stem, 1
        while name in self._sites:
            count += 1
            name = f"{stem}#{count}"
        return name

    def _peel(self, value: ir.Value) -> ir.Value:
        """Look through a dequantize of a quantize."""
        op = defining_op(value)
        if op is not None and op.name == "quant.dcast":
            cast = defining_op(op.operands[0])
            if cast is not None and cast.name == "quant.qcast":
                return cast.operands[0]
        return value

    def _name(self, op: ir.Operation, value: ir.Value) -> str:
        if value not in self._names:
            raise NetworkError(op, f"reads a value of type {value.type} that no known operation made")
        return self._names[value]

    def _is_constant(self, value: ir.Value) -> bool:
        op = defining_op(value)
        return op is not None and self._only_constants(op)

    def _only_constants(self, op: ir.Operation) -> bool:
        if op not in self._constant:
            values = reads(op)
            self._constant[op] = op.name in _SOURCES or (bool(values) and all(map(self._is_constant, values)))
        return self._constant[op]

    @staticmethod
    def _static(op: ir.Operation, value: ir.Value, what: str) -> None:
        if not isinstance(value.type, ir.RankedTensorType) or not ir.RankedTensorType(value.type).has_static_shape:
            raise NetworkError(
                op, f"is no network's: {what} has type {value.type}; expected a tensor of static shape "
                "(export with fixed sizes)"
            )  # fmt: skip
