"""linalg module -> Network, with the link back from each node to the operation that makes its tensor.

Works before and after quantize/dequantize pairs were inserted: a ``quant.dcast(quant.qcast(x))`` is looked through, and
the quantized types met on the way are reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch_mlir import ir

from mlir_passes import match
from mlir_passes.build import defining_op, layer_of, reads, relaid_constant
from mlir_passes.ir.same_body import is_plain
from mlir_passes.network import Network, Node

_CONVS = {
    "linalg.conv_2d_nchw_fchw": "dense",
    "linalg.depthwise_conv_2d_nchw_chw": "depthwise",
    match.GROUPED_CONV: "grouped",
}
_SOURCES = {"arith.constant", "tensor.empty"}
_FILL = {**dict.fromkeys(_CONVS, 0.0), "linalg.pooling_nchw_max": -math.inf, "linalg.pooling_nchw_sum": 0.0}
"""What a window operation that takes a padding over must be padded with."""
_NAMED = (*_FILL, "linalg.matmul")
WINDOWS = tuple(_FILL)
"""The operations that move a window over images: convolutions and pools, channels first."""


class NetworkError(ValueError):
    """The module is not a network this project can read; the message says what and where."""


@dataclass
class Site:
    """Where a node stands in the IR.

    op: the operation that does the work (the convolution, the window's sum, the compare-and-select, ...).
    sources: the values it reads, before padding, as they stand (a quant.dcast's result where the tensor is quantized).
    result: the value that holds the node's tensor. qcasts: the quantizations of it.
    weight_type: the quantized type of a layer's weight.
    """

    node: Node
    op: ir.Operation | None
    sources: tuple[ir.Value, ...]
    result: ir.Value
    weight_type: ir.Type | None = None
    qcasts: list[ir.Operation] = field(default_factory=list)


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
        raise NetworkError(f"expected one func.func with a body, found {len(functions)}")
    return functions[0]


def read_network(module: ir.Operation) -> Reading:
    """Read the only function of ``module``. Raises NetworkError for dynamic shapes or non-tensor results."""
    return _Reader(main_function(module)).read()


class _Reader:
    def __init__(self, function: ir.Operation) -> None:
        self.block = function.regions[0].blocks[0]
        self.names: dict[ir.Value, str] = {}
        self.sites: dict[str, Site] = {}
        self.constant: dict[ir.Operation, bool] = {}
        self.outputs: tuple[str, ...] = ()

    def read(self) -> Reading:
        for i, argument in enumerate(self.block.arguments):
            self._static(argument, f"argument {i}")
            name = "input" if len(self.block.arguments) == 1 else f"input{i}"
            self._define(Node(name, "", "input", (), match.shape_of(argument)), None, (), argument)
        for op in self.block.operations:
            self._visit(op.operation)
        return Reading(Network(tuple(site.node for site in self.sites.values()), self.outputs), self.sites)

    def _visit(self, op: ir.Operation) -> None:
        if op.name == "func.return":
            self.outputs = tuple(self._name(self._peel(value)) for value in op.operands)
        elif op.name == "quant.qcast":
            if op.operands[0] in self.names:
                self.sites[self.names[op.operands[0]]].qcasts.append(op)
        elif op.name in ("quant.dcast", "quant.scast") or self._only_constants(op):
            return
        elif len(op.results) == 1 and isinstance(op.results[0].type, ir.RankedTensorType):
            self._static(op.results[0], op.name)
            self._tensor(op)
        else:
            self._several(op)

    def _several(self, op: ir.Operation) -> None:
        """An operation with several results, such as a maximum and where it is."""
        for result in op.results:
            if isinstance(result.type, ir.RankedTensorType):
                self._static(result, op.name)
                self._float(op, result=result)

    def _tensor(self, op: ir.Operation) -> None:
        if op.name in _NAMED and not is_plain(op):
            self._float(op, detail=f"{op.name} with casts, maps or a body of its own")
        elif op.name in _CONVS:
            self._conv(op)
        elif op.name == "linalg.matmul":
            self._matmul(op)
        elif op.name in ("linalg.pooling_nchw_max", "linalg.pooling_nchw_sum"):
            self._pool(op)
        elif match.splits_groups(op) and _all_read_by_grouped_convs(op):
            return
        elif (site := self._site_of(op.operands[0]) if len(op.operands) else None) and _joins(site, op):
            self._extend(site, op)
        elif op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
            self._add(op, "reshape", (op.operands[0],))
        elif op.name == "linalg.transpose":
            self._add(op, "transpose", (op.operands[0],), permutation=match.ints(op, "permutation"))
        elif op.name == "tensor.concat" and all(self._knows(v) for v in op.operands):
            self._add(op, "concat", tuple(op.operands), axis=ir.IntegerAttr(op.attributes["dim"]).value)
        elif op.name == "tensor.extract_slice" and self._is_plain_slice(op):
            self._add(op, "slice", (op.operands[0],), offsets=match.ints(op, "static_offsets"))
        elif op.name == "tensor.pad" and self._absorbed_by_window(op):
            return
        else:
            self._generic(op)

    def _generic(self, op: ir.Operation) -> None:
        clamp, add = match.match_clamp(op), match.match_add(op)
        if clamp is not None:
            source, lo, hi = clamp
            before = self._site_of(source)
            if before is not None and before.node.kind == "clamp" and self._read_once(before.result):
                lo, hi = match.compose_clamps((before.node.lo, before.node.hi), (lo, hi))
                self._extend(before, op, lo=lo, hi=hi)
                return
            self._add(op, "clamp", (source,), lo=lo, hi=hi)
        elif (biased := match.match_bias_add(op)) and self._takes_bias(biased[0]):
            site = self._site_of(biased[0])
            assert site is not None
            self._extend(site, op, bias=site.node.bias + biased[1])
        elif add is not None and all(self._knows(v) for v in add):
            self._add(op, "add", add)
        elif (divided := match.match_divide(op)) and (site := self._sum_of(divided[0])) is not None:
            self._extend(site, op, divisor=divided[1])
        elif (summed := match.match_spatial_sum(op)) is not None:
            self._add(op, "avgpool", (summed,), kernel=match.shape_of(summed)[2:])
        else:
            self._float(op)

    def _conv(self, op: ir.Operation) -> None:
        form = _CONVS[op.name]
        maker = defining_op(op.operands[0])
        if form == "grouped" and not (match.splits_groups(maker) and match.joining_reader(op.results[0])):
            self._float(op, detail=f"{op.name} between views of its groups")
            return
        source, pads = self._unpad(maker.operands[0] if maker is not None and form == "grouped" else op.operands[0])
        weight, weight_type = self._weight(op.operands[1])
        channels = math.prod(match.shape_of(op.results[0])[1:-2])
        bias = match.channel_bias(op.operands[2], channels)
        if weight is None or bias is None:
            self._float(op, detail=f"{op.name} without constant weights")
            return
        groups = 1
        if form == "depthwise":
            weight, groups = weight[:, None], weight.shape[0]
        elif form == "grouped":
            groups, _, *rest = match.shape_of(op.operands[1])
            weight = weight.reshape(-1, *rest)
        self._add(
            op, "conv", (source,), weight=weight, bias=bias, groups=groups, pads=pads, kernel=weight.shape[2:],
            strides=match.ints(op, "strides"), dilations=match.ints(op, "dilations"), weight_type=weight_type,
        )  # fmt: skip

    def _matmul(self, op: ir.Operation) -> None:
        weight, weight_type = self._weight(op.operands[1])
        start = match.scalar(op.operands[2])
        if weight is None or start is None:
            self._float(op, detail="matmul without constant weights")
            return
        bias = np.full(weight.shape[1], start, np.float32)
        self._add(op, "matmul", (op.operands[0],), weight=weight.T, bias=bias, weight_type=weight_type)

    def _pool(self, op: ir.Operation) -> None:
        is_max = op.name.endswith("max")
        if match.scalar(op.operands[2]) != _FILL[op.name]:
            self._float(op, detail=op.name)
            return
        source, pads = self._unpad(op.operands[0], fill=_FILL[op.name])
        window = {
            "kernel": match.shape_of(op.operands[1]), "pads": pads,
            "strides": match.ints(op, "strides"), "dilations": match.ints(op, "dilations"),
        }  # fmt: skip
        if is_max:
            self._add(op, "maxpool", (source,), **window)
        else:  # divided by 1 until a division by another number follows
            self._add(op, "avgpool", (source,), **window)

    # Helpers

    def _define(self, node: Node, op: ir.Operation | None, sources: tuple, result: ir.Value, weight_type=None) -> None:
        self.sites[node.name] = Site(node, op, sources, result, weight_type)
        self.names[result] = node.name

    def _add(
        self, op: ir.Operation, kind: str, sources: tuple[ir.Value, ...], *, result=None, weight_type=None, **fields
    ) -> None:
        layer, result = layer_of(op) or "", result or op.results[0]
        names = tuple(self._name(self._peel(v)) for v in sources)
        node = Node(self._unique(layer or kind), layer, kind, names, match.shape_of(result), **fields)
        self._define(node, op, sources, result, weight_type)

    def _float(self, op: ir.Operation, *, detail: str = "", result: ir.Value | None = None) -> None:
        self._add(op, "float", self._sources(op), detail=detail or match.float_detail(op), result=result)

    def _sources(self, op: ir.Operation) -> tuple[ir.Value, ...]:
        """The tensors ``op`` depends on; what is no tensor of the network itself is looked through."""
        found: dict[ir.Value, None] = {}
        for value in reads(op):
            maker = defining_op(value)
            if self._knows(value):
                found[value] = None
            elif maker is not None and not self._only_constants(maker):
                found.update(dict.fromkeys(self._sources(maker)))
        return tuple(found)

    def _extend(self, site: Site, op: ir.Operation, **changes) -> None:
        """Let ``op`` be the last step of ``site``'s node."""
        del self.names[site.result]
        values = {k: getattr(site.node, k) for k in site.node.__dataclass_fields__}
        site.node = Node(**{**values, **changes, "shape": match.shape_of(op.results[0])})
        site.result = op.results[0]
        self.names[site.result] = site.node.name

    def _unique(self, stem: str) -> str:
        name, count = stem, 1
        while name in self.sites:
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

    def _weight(self, value: ir.Value) -> tuple[np.ndarray | None, ir.Type | None]:
        op = defining_op(value)
        if op is not None and op.name == "tensor.expand_shape" and self._peel(op.operands[0]) != op.operands[0]:
            value = op.operands[0]  # a grouped weight is quantized before its groups are split
        inner = self._peel(value)
        if inner == value:
            return relaid_constant(value), None
        cast = defining_op(value)
        assert cast is not None
        return relaid_constant(inner), ir.RankedTensorType(cast.operands[0].type).element_type

    def _name(self, value: ir.Value) -> str:
        if value not in self.names:
            raise NetworkError(f"a value of type {value.type} is read that no known operation made")
        return self.names[value]

    def _knows(self, value: ir.Value) -> bool:
        return self._peel(value) in self.names

    def _site_of(self, value: ir.Value) -> Site | None:
        name = self.names.get(value)
        return None if name is None else self.sites[name]

    def _is_constant(self, value: ir.Value) -> bool:
        op = defining_op(value)
        return op is not None and self._only_constants(op)

    def _only_constants(self, op: ir.Operation) -> bool:
        if op not in self.constant:
            values = reads(op)
            self.constant[op] = op.name in _SOURCES or (bool(values) and all(map(self._is_constant, values)))
        return self.constant[op]

    def _takes_bias(self, value: ir.Value) -> bool:
        site = self._site_of(value)
        return site is not None and site.node.kind in ("conv", "matmul") and self._read_once(value)

    def _sum_of(self, value: ir.Value) -> Site | None:
        """The average pool whose sum, not yet divided, is ``value`` and read by nothing else."""
        site = self._site_of(value)
        is_sum = site is not None and site.node.kind == "avgpool" and site.op == defining_op(value)
        return site if is_sum and self._read_once(value) else None

    def _absorbed_by_window(self, op: ir.Operation) -> bool:
        """Whether every reader of a tensor.pad is a convolution or pool that takes the padding over."""
        pad = match.match_pad(op)
        return pad is not None and all(
            use.operand_number == 0 and self._takes_padding(use.owner.operation, pad) for use in op.results[0].uses
        )

    @staticmethod
    def _takes_padding(reader: ir.Operation, pad: match.Pad) -> bool:
        if match.splits_groups(reader):
            return _all_read_by_grouped_convs(reader) and _is_spatial(pad, 0.0)
        return reader.name in _FILL and _is_spatial(pad, _FILL[reader.name])

    @staticmethod
    def _unpad(value: ir.Value, *, fill: float = 0.0) -> tuple[ir.Value, tuple[int, int, int, int]]:
        """What a window operation reads, before a padding that it can take over, and (top, left, bottom, right)."""
        op = defining_op(value)
        pad = match.match_pad(op) if op is not None else None
        if pad is None or not _is_spatial(pad, fill):
            return value, (0, 0, 0, 0)
        (top, left), (bottom, right) = pad.low[2:], pad.high[2:]
        return pad.source, (top, left, bottom, right)

    @staticmethod
    def _read_once(value: ir.Value) -> bool:
        return len(list(value.uses)) == 1

    @staticmethod
    def _is_plain_slice(op: ir.Operation) -> bool:
        return len(op.operands) == 1 and set(match.ints(op, "static_strides")) == {1}

    @staticmethod
    def _static(value: ir.Value, what: str) -> None:
        if not isinstance(value.type, ir.RankedTensorType) or not ir.RankedTensorType(value.type).has_static_shape:
            raise NetworkError(
                f"{what} has type {value.type}; expected a tensor of static shape (export with fixed sizes)"
            )


def _is_spatial(pad: match.Pad, fill: float) -> bool:
    """Whether only height and width of a four-dimensional tensor are padded, with ``fill``."""
    return pad.value == fill and len(pad.low) == 4 and not any(pad.low[:2] + pad.high[:2])


def _all_read_by_grouped_convs(split: ir.Operation) -> bool:
    return all(u.owner.operation.name == match.GROUPED_CONV and u.operand_number == 0 for u in split.results[0].uses)


def _joins(site: Site, op: ir.Operation) -> bool:
    """Whether ``op`` is the last step of ``site``'s grouped convolution: the view that joins its groups."""
    if site.node.kind != "conv" or site.op is None:
        return False
    reader = match.joining_reader(site.op.results[0])
    return reader is not None and reader == op
