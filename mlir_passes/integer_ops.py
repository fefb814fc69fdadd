"""The integer form of each network operation, as linalg on i8 and i32, for quantune-lower-qdq-to-integer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg, tensor
from torch_mlir.dialects import math as math_dialect

from mlir_passes import match
from mlir_passes.build import element_type, elementwise, join_groups, parameter, set_layer, split_groups, tensor_type
from mlir_passes.ir.same_body import Elementwise
from mlir_passes.network import Node
from mlir_passes.quant_types import QuantSpec
from mlir_passes.read_network import Site

_BIAS_LIMIT = 2**31 - 1
_ADD_LIMIT = 1 << 21
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Emitter:
    """Emits one node's integer operations at the current insertion point.

    name: prefix of the parameters' names. inputs: the i8 tensors that the node reads.
    """

    def __init__(self, name: str, site: Site, inputs: Sequence[ir.Value]) -> None:
        self.name, self.site, self.node, self.inputs = name, site, site.node, list(inputs)

    # What a node becomes

    def layer(self, x: QuantSpec, w: QuantSpec, y: QuantSpec, bounds: tuple[int, int]) -> ir.Value:
        """Convolution or matrix product, bias and requantization."""
        total, bias = self._accumulate(x, w)
        scales = np.broadcast_to(w.scale_array, bias.shape).astype(np.float64) * float(x.scale_array)
        return self._requantize(total, bias, scales / float(y.scale_array), y, bounds, allow_shift=_power2(x, w, y))

    def average(self, x: QuantSpec, y: QuantSpec, bounds: tuple[int, int]) -> ir.Value:
        """Sum over a window and requantization of the mean."""
        total, bias = self._window_sum(x)
        ratio = float(x.scale_array) / (float(y.scale_array) * self.node.divisor)
        return self._requantize(total, bias, np.full(bias.shape, ratio), y, bounds, allow_shift=False)

    def add(self, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value:
        """Residual addition in i32 fixed point; rounds half up."""
        a, b = inputs
        m_a, m_b, shift = add_multipliers(float(a.scale_array), float(b.scale_array), float(y.scale_array))
        offset = (1 << (shift - 1)) - int(a.zero_point_array) * m_a - int(b.zero_point_array) * m_b
        numbers = {"m_a": m_a, "m_b": m_b, "offset": offset, "shift": shift, "zero_point": int(y.zero_point_array)}
        scalars = [self._scalar(role, np.int32(_wrap(value))) for role, value in numbers.items()]
        scalars += self._bounds(bounds, np.int32)
        return ADD.build([*self.inputs, *scalars], self.node.shape, self.node.layer)

    def real(self, x: QuantSpec, w: QuantSpec | None) -> ir.Value:
        """A layer (w given) or an average as f32: ``f32(acc + B) · scale``."""
        if w is None:
            total, bias = self._window_sum(x)
            scale = np.full(bias.shape, float(x.scale_array) / self.node.divisor)
        else:
            total, bias = self._accumulate(x, w)
            scale = np.broadcast_to(w.scale_array, bias.shape).astype(np.float64) * float(x.scale_array)

        operands = [total, parameter(f"{self.name}.bias", bias), parameter(f"{self.name}.scale", _to_f32(scale))]
        return REAL.build(operands, self.node.shape, self.node.layer)

    def moved(self, bounds: tuple[int, int]) -> ir.Value:
        """An operation that selects or moves values, on the integers themselves."""
        node, x = self.node, self.inputs[0]
        if node.kind == "clamp":

            def body(x, lo, hi):
                return arith.minsi(arith.maxsi(x, lo), hi)

            return elementwise([x, *self._bounds(bounds, np.int8)], self._type(np.int8), body, layer=node.layer)
        if node.kind == "maxpool":
            lowest = ir.IntegerAttr.get(_i8(), -128)
            padded = self._pad(x, arith.ConstantOp(_i8(), lowest).result)
            return self._pool(linalg.pooling_nchw_max, padded, self._filled(np.int8, -128))
        if node.kind == "transpose":
            out = tensor.empty(list(node.shape), _i8())
            result = linalg.transpose(x, outs=[out], permutation=list(node.permutation))
            return self._named(result if isinstance(result, ir.Value) else result.results[0])
        op = self.site.op
        assert op is not None
        attributes = {name: op.attributes[name] for name in op.attributes}
        return ir.Operation.create(op.name, [self._type(np.int8)], self.inputs, attributes).result

    def bounds(self, y: QuantSpec, node: Node) -> tuple[int, int]:
        """The i8 bounds of a result: the storage range, cut by the clamp ``node`` if it is one."""
        scale, zero_point = np.float32(y.scale_array), int(y.zero_point_array)

        def bound(value: float, fallback: int) -> int:
            if node.kind != "clamp" or not math.isfinite(value):
                return fallback
            with np.errstate(over="ignore"):  # an overflow is an infinity, which saturates
                steps = np.rint(np.float32(value) / scale)
            return int(np.clip(steps + zero_point, y.storage_min, y.storage_max))

        return bound(node.lo, y.storage_min), bound(node.hi, y.storage_max)

    # Pieces

    def _accumulate(self, x: QuantSpec, w: QuantSpec) -> tuple[ir.Value, np.ndarray]:
        """The i32 accumulator of a layer, and the bias i32[channels] still to be added to it."""
        node, op = self.node, self.site.op
        assert op is not None
        assert node.weight is not None
        assert node.bias is not None
        flat = QuantSpec(w.scales, w.zero_points, w.storage_min, w.storage_max, w.signed, None if w.axis is None else 0)
        integers = flat.quantize(node.weight)
        scale = np.broadcast_to(w.scale_array, node.bias.shape).astype(np.float64) * float(x.scale_array)
        sums = integers.reshape(len(integers), -1).astype(np.int64).sum(axis=1)
        rounded = np.clip(np.rint(node.bias.astype(np.float64) / scale), -_BIAS_LIMIT - 1, _BIAS_LIMIT)
        bias = _wrap(rounded.astype(np.int64) - int(x.zero_point_array) * sums)
        if node.kind == "matmul":
            weight = parameter(f"{self.name}.weight", np.ascontiguousarray(integers.T))
            acc = linalg.matmul(self.inputs[0], weight, outs=[self._filled(np.int32, 0)])
            return self._named(acc), bias
        padded = self._pad(self.inputs[0], self._padding_value(x))
        window = {"strides": list(node.strides), "dilations": list(node.dilations)}
        grouped = op.name == match.GROUPED_CONV
        shape = match.shape_of(op.operands[1])
        weight = parameter(f"{self.name}.weight", np.ascontiguousarray(integers.reshape(shape)))
        if not grouped:
            build = getattr(linalg, op.name.removeprefix("linalg."))
            return self._named(build(padded, weight, outs=[self._filled(np.int32, 0)], **window)), bias
        n, channels, *image = node.shape
        init = self._filled(np.int32, 0, [n, node.groups, channels // node.groups, *image])
        split = split_groups(padded, node.groups)
        return join_groups(self._named(linalg.conv_2d_ngchw_gfchw(split, weight, outs=[init], **window))), bias

    def _window_sum(self, x: QuantSpec) -> tuple[ir.Value, np.ndarray]:
        """The i32 sum over each window, and minus the zero points in it as bias i32[channels]."""
        node = self.node
        count = math.prod(node.kernel)
        bias = np.full(node.shape[1], -count * int(x.zero_point_array), np.int32)
        source = self.inputs[0]
        if node.kernel == match.shape_of(source)[2:] and not any(node.pads):
            return self._image_sum(source), bias
        padded = self._pad(source, self._padding_value(x))
        return self._pool(linalg.pooling_nchw_sum, padded, self._filled(np.int32, 0)), bias

    def _image_sum(self, source: ir.Value) -> ir.Value:
        """Sum over height and width; the result has the node's shape ([n, c] or [n, c, 1, 1])."""
        rank = len(self.node.shape)
        dims = [ir.AffineExpr.get_dim(i) for i in range(4)]
        tail = [ir.AffineExpr.get_constant(0)] * (rank - 2)
        maps = [ir.AffineMap.get_identity(4), ir.AffineMap.get(4, 0, [*dims[:2], *tail])]
        kinds = [ir.Attribute.parse(f"#linalg.iterator_type<{k}>") for k in ("parallel",) * 2 + ("reduction",) * 2]
        generic = linalg.GenericOp(
            [self._type(np.int32)], [source], [self._filled(np.int32, 0)],
            ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in maps]), ir.ArrayAttr.get(kinds),
        )  # fmt: skip
        location = ir.Location.current
        block = generic.regions[0].blocks.append(_i8(), _i32(), arg_locs=[location] * 2)
        with ir.InsertionPoint(block), location:
            linalg.YieldOp([sum_body(*block.arguments)])
        return self._named(generic.results[0])

    def _requantize(
        self,
        total: ir.Value,
        bias: np.ndarray,
        ratio: np.ndarray,
        y: QuantSpec,
        bounds: tuple[int, int],
        *,
        allow_shift: bool,
    ) -> ir.Value:
        operands = [total, parameter(f"{self.name}.bias", bias)]
        if allow_shift:
            scalars = [self._scalar("zero_point", np.int32(y.zero_point_array)), *self._bounds(bounds, np.int32)]
            operands += [parameter(f"{self.name}.shift", _shifts(ratio)), *scalars]
            return SHIFT.build(operands, self.node.shape, self.node.layer)
        scalars = [self._scalar("zero_point", np.float32(y.zero_point_array)), *self._bounds(bounds, np.float32)]
        operands += [parameter(f"{self.name}.multiplier", _to_f32(ratio)), *scalars]
        return MULTIPLIER.build(operands, self.node.shape, self.node.layer)

    def _pool(self, build, padded: ir.Value, init: ir.Value) -> ir.Value:
        window = tensor.empty(list(self.node.kernel), _i8())
        strides, dilations = list(self.node.strides), list(self.node.dilations)
        return self._named(build(padded, window, outs=[init], strides=strides, dilations=dilations))

    def _padding_value(self, x: QuantSpec) -> ir.Value | None:
        if not any(self.node.pads):
            return None
        return tensor.extract(self._scalar("padding", np.int8(x.zero_point_array)), [])

    def _pad(self, source: ir.Value, value: ir.Value | None) -> ir.Value:
        top, left, bottom, right = self.node.pads
        if value is None or not any(self.node.pads):
            return source
        n, c, h, w = match.shape_of(source)
        low, high = [0, 0, top, left], [0, 0, bottom, right]
        pad = tensor.PadOp(tensor_type([n, c, h + top + bottom, w + left + right], np.int8), source, [], [], low, high)
        location = ir.Location.current
        block = pad.regions[0].blocks.append(*[ir.IndexType.get()] * 4, arg_locs=[location] * 4)
        with ir.InsertionPoint(block), location:
            tensor.YieldOp(value)
        return self._named(pad.result)

    def _filled(self, dtype: type, value: int, shape: Sequence[int] | None = None) -> ir.Value:
        element = element_type(dtype)
        number = arith.ConstantOp(element, ir.IntegerAttr.get(element, value)).result
        return linalg.fill(number, outs=[tensor.empty(list(shape or self.node.shape), element)])

    def _bounds(self, bounds: tuple[int, int], dtype: type) -> list[ir.Value]:
        return [self._scalar(role, dtype(value)) for role, value in zip(("min", "max"), bounds, strict=True)]

    def _scalar(self, role: str, value: np.generic) -> ir.Value:
        return parameter(f"{self.name}.{role}", np.asarray(value))

    def _type(self, dtype: type) -> ir.RankedTensorType:
        return tensor_type(self.node.shape, dtype)

    def _named(self, value: ir.Value) -> ir.Value:
        set_layer(value.owner, self.node.layer)
        return value


def add_multipliers(s_a: float, s_b: float, s_out: float) -> tuple[int, int, int]:
    """Fixed point multipliers below 2**21 and the largest common shift in [1, 30] for ``s/s_out ≈ m / 2**shift``."""
    a, b = s_a / s_out, s_b / s_out
    for shift in range(30, 0, -1):
        m_a, m_b = round(math.ldexp(a, shift)), round(math.ldexp(b, shift))
        if max(m_a, m_b) < _ADD_LIMIT:
            return m_a, m_b, shift
    return min(round(a * 2), _ADD_LIMIT - 1), min(round(b * 2), _ADD_LIMIT - 1), 1


def sum_body(x, acc):
    """One element of a sum over an image: i8 added to i32."""
    return arith.addi(_extend(x), acc)


def _add_body(a, b, m_a, m_b, offset, shift, zero_point, lo, hi):
    products = arith.addi(arith.muli(_extend(a), m_a), arith.muli(_extend(b), m_b))
    moved = arith.addi(arith.shrsi(arith.addi(products, offset), shift), zero_point)
    return arith.trunci(_i8(), arith.minsi(arith.maxsi(moved, lo), hi))


def _real_body(acc, bias, scale):
    return arith.mulf(arith.sitofp(_f32(), arith.addi(acc, bias)), scale)


def _multiplier_body(acc, bias, multiplier, zero_point, lo, hi):
    scaled = math_dialect.roundeven(arith.mulf(arith.sitofp(_f32(), arith.addi(acc, bias)), multiplier))
    return arith.fptosi(_i8(), arith.minimumf(arith.maximumf(arith.addf(scaled, zero_point), lo), hi))


def _shift_body(acc, bias, shift, zero_point, lo, hi):
    def c(value: int) -> ir.Value:
        return arith.constant(_i32(), value)

    total = arith.addi(acc, bias)
    right, left = arith.maxsi(shift, c(0)), arith.maxsi(arith.subi(c(0), shift), c(0))
    unit = arith.shli(c(1), right)
    half = arith.maxsi(arith.shrsi(unit, c(1)), c(1))
    q = arith.shrsi(total, right)
    rest = arith.addi(arith.andi(total, arith.subi(unit, c(1))), arith.andi(q, c(1)))
    q = arith.addi(q, arith.extui(_i32(), arith.cmpi(arith.CmpIPredicate.sgt, rest, half)))
    q = arith.shli(arith.minsi(arith.maxsi(q, c(-512)), c(511)), left)
    return arith.trunci(_i8(), arith.minsi(arith.maxsi(arith.addi(q, zero_point), lo), hi))


_FLOATS = ("f32 channel", *["f32 one"] * 3)
_INTEGERS = ("i32 channel", *["i32 one"] * 3)
MULTIPLIER = Elementwise(_multiplier_body, ("i32", "i32 channel", *_FLOATS), "i8")
SHIFT = Elementwise(_shift_body, ("i32", "i32 channel", *_INTEGERS), "i8")
REAL = Elementwise(_real_body, ("i32", "i32 channel", "f32 channel"), "f32")
ADD = Elementwise(_add_body, ("i8", "i8", *["i32 one"] * 7), "i8")


def _power2(*specs: QuantSpec) -> bool:
    return all(np.all(np.frexp(spec.scale_array)[0] == 0.5) for spec in specs)


def _shifts(ratio: np.ndarray) -> np.ndarray:
    """The right shifts that multiply by powers of two; beyond [-9, 30] they make no difference."""
    return np.clip(1 - np.frexp(ratio)[1], -9, 30).astype(np.int32)


def _to_f32(values: np.ndarray) -> np.ndarray:
    """Round once to f32; what would be subnormal, which a target may flush, becomes 0."""
    return np.where(values < _SMALLEST, 0.0, np.minimum(values, _LARGEST)).astype(np.float32)


def _wrap(values):
    """An integer as i32 in two's complement, as the hardware's own sums wrap."""
    return np.asarray(values, np.int64).astype(np.int32)


def _extend(value: ir.Value) -> ir.Value:
    return arith.extsi(_i32(), value)


def _i8() -> ir.Type:
    return element_type(np.int8)


def _i32() -> ir.Type:
    return element_type(np.int32)


def _f32() -> ir.Type:
    return element_type(np.float32)
