"""Layers: convolutions (dense, depthwise, grouped) and matrix products with constant weights, and their bias.

q_y(clamp(conv(pad(dq(x)), dq(q(W))) + b))
->
acc = conv(pad(x, z_x), W_i8) : i32                            exact;  B = roundeven(b / (s_x·s_w)) − z_x·ΣW
y   = clamp(roundeven(f32(acc + B) · m) + z_y, lo, hi)         m = s_x·s_w/s_y, or a shift (see requantize)
conv(dq(x), dq(q(W))) + b   ->  f32(acc + B) · (s_x·s_w)       a result that nobody quantizes
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor

from mlir_passes.base import Missed, PassFailure
from mlir_passes.ir import match
from mlir_passes.ir.build import REQUANTIZE, constant, defining_op, elementwise, parameter
from mlir_passes.ir.moves import join_groups, split_groups
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.ir.same_body import is_plain
from mlir_passes.ops.emit import Emitter, window_of, wrap
from mlir_passes.ops.layout import Layouts, window_attributes
from mlir_passes.ops.reader import Reader, Site
from mlir_passes.ops.requantize import power2
from mlir_passes.ops.windows import unpadded

_DENSE, _DEPTHWISE = "linalg.conv_2d_nchw_fchw", "linalg.depthwise_conv_2d_nchw_chw"
_GROUPED, _MATMUL = match.GROUPED_CONV, "linalg.matmul"
WINDOWS = {_DENSE: 0.0, _DEPTHWISE: 0.0, _GROUPED: 0.0}
_BIAS_LIMIT = 2**31 - 1


def recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    """A layer, a view between the groups of one, or the bias behind one."""
    if op.name == _MATMUL or op.name in WINDOWS:
        if not is_plain(op):
            return Missed(f"{op.name} with casts, maps or a body of its own")
        return _matrix_product(op, reader) if op.name == _MATMUL else _convolution(op, reader)
    if match.splits_groups(op) and _all_read_by_grouped_convs(op):
        return True
    site = reader.site_of(op.operands[0]) if len(op.operands) else None
    if site is not None and _joins(site, op):
        return reader.extend(site, op)
    biased = match.match_bias_add(op)
    layer = reader.site_of(biased[0]) if biased is not None else None
    if biased is None or layer is None or not layer.node.traits.weighted or not match.is_read_once(biased[0]):
        return False
    return reader.extend(layer, op, bias=layer.node.bias + biased[1])


def _convolution(op: ir.Operation, reader: Reader) -> bool | Missed:
    maker = defining_op(op.operands[0])
    if op.name == _GROUPED and not (match.splits_groups(maker) and match.joining_reader(op.results[0])):
        return Missed(f"{op.name} between views of its groups")
    source, pads = unpadded(maker.operands[0] if maker is not None and op.name == _GROUPED else op.operands[0])
    weight, weight_type = reader.weight(op.operands[1])
    bias = match.channel_bias(op.operands[2], math.prod(match.shape_of(op.results[0])[1:-2]))
    if weight is None or bias is None:
        return Missed(f"{op.name} without constant weights")
    groups = 1
    if op.name == _DEPTHWISE:
        weight, groups = weight[:, None], weight.shape[0]
    elif op.name == _GROUPED:
        groups, _, *rest = match.shape_of(op.operands[1])
        weight = weight.reshape(-1, *rest)
    return reader.add(
        op, "conv", (source,), weight=weight, bias=bias, groups=groups, pads=pads, kernel=weight.shape[2:],
        strides=match.ints(op, "strides"), dilations=match.ints(op, "dilations"), weight_type=weight_type,
    )  # fmt: skip


def _matrix_product(op: ir.Operation, reader: Reader) -> bool | Missed:
    weight, weight_type = reader.weight(op.operands[1])
    start = match.scalar(op.operands[2])
    if weight is None or start is None:
        return Missed("matmul without constant weights")
    bias = np.full(weight.shape[1], start, np.float32)
    return reader.add(op, "matmul", (op.operands[0],), weight=weight.T, bias=bias, weight_type=weight_type)


def _all_read_by_grouped_convs(split: ir.Operation) -> bool:
    return all(use.owner.operation.name == _GROUPED and use.operand_number == 0 for use in split.results[0].uses)


def _joins(site: Site, op: ir.Operation) -> bool:
    """Whether ``op`` is the last step of ``site``'s grouped convolution: the view that joins its groups."""
    if site.op is None or site.op.name != _GROUPED:
        return False
    reader = match.joining_reader(site.op.results[0])
    return reader is not None and reader == op


def output_axis(op: ir.Operation) -> int:
    """The dimension of a layer's weight, as its operation holds it, that counts the outputs."""
    return 1 if op.name == _MATMUL else 0


def set_weight(site: Site, numbers: np.ndarray) -> None:
    """Let a layer have another weight, of the shape of its node's; only in f32."""
    op = site.op
    assert op is not None
    relaid = numbers.T if op.name == _MATMUL else numbers.reshape(match.shape_of(op.operands[1]))
    with ir.InsertionPoint(op), op.location:
        op.operands[1] = constant(np.ascontiguousarray(relaid))


def set_bias(site: Site, numbers: np.ndarray) -> None:
    """Let a layer have another bias f32[outputs], where its own is or behind a matrix product without one."""
    op = site.op
    assert op is not None
    added = _bias_adds(site)
    with ir.InsertionPoint(op), op.location:
        if added or op.name == _MATMUL:
            _start_at(op, np.zeros_like(numbers))
        else:
            _start_at(op, numbers)
    if not added and op.name == _MATMUL:
        with ir.InsertionPoint.after(op), op.location:
            total = elementwise(
                [op.results[0], constant(numbers)], op.results[0].type, arith.addf, layer=site.node.layer or None
            )
            op.results[0].replace_all_uses_except(total, total.owner.operation)
    for last, (adding, index) in enumerate(reversed(added)):
        shape = match.shape_of(adding.operands[index])
        with ir.InsertionPoint(adding), adding.location:
            adding.operands[index] = constant((np.zeros_like(numbers) if last else numbers).reshape(shape))


def _bias_adds(site: Site) -> list[tuple[ir.Operation, int]]:
    """The additions of constants behind a layer, in order, and which operand of each is the constant."""
    found: list[tuple[ir.Operation, int]] = []
    value = site.result
    while (adding := defining_op(value)) is not None and (biased := match.match_bias_add(adding)) is not None:
        found.append((adding, 1 if adding.operands[0] == biased[0] else 0))
        value = biased[0]
    return found[::-1]


def _start_at(op: ir.Operation, bias: np.ndarray) -> None:
    """Let the accumulator of a layer start at ``bias``."""
    init = op.operands[2]
    kind = ir.RankedTensorType(init.type)
    if not bias.any():
        zero = arith.ConstantOp(kind.element_type, ir.FloatAttr.get(kind.element_type, 0.0)).result
        op.operands[2] = linalg.fill(zero, outs=[tensor.empty(kind.shape, kind.element_type)])
        return
    n, *groups, h, w = kind.shape
    image = tensor.empty([n, math.prod(groups), h, w], kind.element_type)
    start = linalg.broadcast(constant(bias), outs=[image], dimensions=[0, 2, 3]).results[0]
    op.operands[2] = split_groups(start, groups[0]) if op.name == _GROUPED else start


def integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value | Missed:
    """Convolution or matrix product, bias and requantization."""
    (x,), w = inputs, _weight_spec(emit.site)
    total, bias = _accumulate(emit, x, w)
    ratio = _scales(emit, x, w) / float(y.scale_array)
    shift = REQUANTIZE in emit.op.attributes
    if shift and not power2(x, w, y):
        raise PassFailure(emit.op, "is to requantize by shifts, but its scales are no powers of two")
    return emit.requantize(total, bias, ratio, y, bounds, shift=shift)


def real(emit: Emitter, inputs: Sequence[QuantSpec]) -> ir.Value:
    """The layer's sums as f32."""
    (x,), w = inputs, _weight_spec(emit.site)
    total, bias = _accumulate(emit, x, w)
    return emit.real(total, bias, _scales(emit, x, w))


def _scales(emit: Emitter, x: QuantSpec, w: QuantSpec) -> np.ndarray:
    """Of each output's sums."""
    assert emit.node.bias is not None
    return np.broadcast_to(w.scale_array, emit.node.bias.shape).astype(np.float64) * float(x.scale_array)


def _accumulate(emit: Emitter, x: QuantSpec, w: QuantSpec) -> tuple[ir.Value, np.ndarray]:
    """The i32 accumulator of a layer, and the bias i32[channels] still to be added to it."""
    node, op = emit.node, emit.op
    assert node.weight is not None
    assert node.bias is not None
    flat = QuantSpec(w.scales, w.zero_points, w.storage_min, w.storage_max, w.signed, None if w.axis is None else 0)
    integers = flat.quantize(node.weight)
    sums = integers.reshape(len(integers), -1).astype(np.int64).sum(axis=1)
    rounded = np.clip(np.rint(node.bias.astype(np.float64) / _scales(emit, x, w)), -_BIAS_LIMIT - 1, _BIAS_LIMIT)
    bias = wrap(rounded.astype(np.int64) - int(x.zero_point_array) * sums)
    if op.name == _MATMUL:
        weight = parameter(f"{emit.name}.weight", np.ascontiguousarray(integers.T))
        return emit.named(linalg.matmul(emit.inputs[0], weight, outs=[emit.filled(np.int32, 0)])), bias
    padded = emit.zero_padded(x)
    weight = parameter(f"{emit.name}.weight", np.ascontiguousarray(integers.reshape(match.shape_of(op.operands[1]))))
    if op.name != _GROUPED:
        build = getattr(linalg, op.name.removeprefix("linalg."))
        return emit.named(build(padded, weight, outs=[emit.filled(np.int32, 0)], **window_of(node))), bias
    n, channels, *image = node.shape
    init = emit.filled(np.int32, 0, [n, node.groups, channels // node.groups, *image])
    split = split_groups(padded, node.groups)
    return join_groups(emit.named(linalg.conv_2d_ngchw_gfchw(split, weight, outs=[init], **window_of(node)))), bias


def _weight_spec(site: Site) -> QuantSpec:
    """How a layer's weight is quantized. Raises PassFailure unless it is symmetric, per tensor or output channel."""
    op, weight = site.op, site.node.weight
    assert op is not None
    assert weight is not None
    try:
        spec = QuantSpec.from_type(site.weight_type)
    except ValueError as error:
        raise PassFailure(op, f"has unusable quantization parameters for its weight: {error}") from error
    if any(spec.stored.zero_points):
        raise PassFailure(op, f"has a weight with zero points {spec.stored.zero_points}; expected 0, signed")
    if spec.axis not in (None, output_axis(op)) or len(spec.scales) not in (1, weight.shape[0]):
        raise PassFailure(
            op, f"has a weight with {len(spec.scales)} scales along dimension {spec.axis}; expected 1 or one per output"
        )
    return spec


def _dense_last(op: ir.Operation, layouts: Layouts) -> ir.Value:
    x, w, init = op.operands
    operands = layouts.last(x), layouts.weight(w, (2, 3, 1, 0))
    return linalg.conv_2d_nhwc_hwcf(*operands, outs=[layouts.last(init)], **window_attributes(op))


def _depthwise_last(op: ir.Operation, layouts: Layouts) -> ir.Value:
    x, w, init = op.operands
    operands = layouts.last(x), layouts.weight(w, (1, 2, 0))
    return linalg.depthwise_conv_2d_nhwc_hwc(*operands, outs=[layouts.last(init)], **window_attributes(op))


def _grouped_last(op: ir.Operation, layouts: Layouts) -> ir.Value:
    x, w, init = op.operands
    operands = layouts.last(x), layouts.weight(w, (0, 1, 3, 4, 2))
    return linalg.conv_2d_nhwgc_gfhwc(*operands, outs=[layouts.last(init)], **window_attributes(op))


CHANNELS_LAST = {_DENSE: _dense_last, _DEPTHWISE: _depthwise_last, _GROUPED: _grouped_last}
