"""The operators of ONNX (version 13 and later) in torch, one function each; what is not in the table is not read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from quantune.frontend.foreign import Refused

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One node. kind: its operator. constants: operands that are known while reading, None for others and none.

    Those are numpy's: of a tensor torch would not say the numbers while it exports.
    """

    kind: str
    attributes: dict[str, Any]
    constants: Sequence[NDArray[Any] | None]
    results: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def ints(self, operand: int, attribute: str = "") -> list[int] | None:
        """The whole numbers of an operand, or of the attribute that older versions had; None where there are none."""
        if operand < len(self.constants) and (value := self.constants[operand]) is not None:
            return [int(each) for each in value.reshape(-1).tolist()]
        return self.get(attribute) if attribute else None

    def needed(self, operand: int, attribute: str = "") -> list[int]:
        """The same of an operand that must be known."""
        found = self.ints(operand, attribute)
        if found is None:
            raise Refused(f"its operand {operand} is not known while reading")
        return found


def _padded(call: Call, x: Tensor, kernel: Sequence[int], value: float) -> tuple[Tensor, list[int]]:
    """``x`` padded where the pads differ at both ends, and the pads that are left for the operator."""
    n = len(kernel)
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    pads, how = list(call.get("pads", [0] * 2 * n)), call.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(n):
            size, reach = x.shape[2 + i], (kernel[i] - 1) * dilations[i] + 1
            total = max((math.ceil(size / strides[i]) - 1) * strides[i] + reach - size, 0)
            less, more = total // 2, total - total // 2
            pads[i], pads[i + n] = (less, more) if how == "SAME_UPPER" else (more, less)
    elif how not in ("NOTSET", "VALID"):
        raise Refused(f"auto_pad is {how!r:.30}")
    if pads[:n] == pads[n:]:
        return x, pads[:n]
    return F.pad(x, _torch_pads(pads), value=value), [0] * n


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's (all begins, all ends) as torch has them: last dimension first, begin and end together."""
    n = len(pads) // 2
    return [pads[i + side * n] for i in reversed(range(n)) for side in (0, 1)]


def _conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    n = w.ndim - 2
    x, pads = _padded(call, x, w.shape[2:], 0.0)
    kind = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    return kind(x, w, b, strides, pads, dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    n = w.ndim - 2
    pads = call.get("pads", [0] * 2 * n)
    if pads[:n] != pads[n:] or call.get("auto_pad", "NOTSET") != "NOTSET" or call.get("output_shape"):
        raise Refused("pads that differ at both ends")
    kind = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[n]
    more, ones = call.get("output_padding", [0] * n), [1] * n
    return kind(x, w, b, call.get("strides", ones), pads[:n], more, call.get("group", 1), call.get("dilations", ones))


def _maxpool(call: Call, x: Tensor) -> Tensor:
    if call.results > 1:
        raise Refused("places of maxima")
    kernel = call.get("kernel_shape")
    x, pads = _padded(call, x, kernel, -math.inf)
    n = len(kernel)
    kind = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
    strides, dilations = call.get("strides", [1] * n), call.get("dilations", [1] * n)
    return kind(x, kernel, strides, pads, dilations, bool(call.get("ceil_mode", 0)))


def _avgpool(call: Call, x: Tensor) -> Tensor:
    kernel, counted = call.get("kernel_shape"), bool(call.get("count_include_pad", 0))
    plain = x
    x, pads = _padded(call, x, kernel, 0.0)
    n = len(kernel)
    if (x is not plain and not counted) or any(each != 1 for each in call.get("dilations", [])):
        raise Refused("an average over pads that differ at both ends, or with dilations")
    kind = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
    return kind(x, kernel, call.get("strides", [1] * n), pads, bool(call.get("ceil_mode", 0)), counted)


def _batch_norm(call: Call, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if call.get("training_mode", 0):
        raise Refused("batch statistics of its own; export the model in eval mode")
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, call.get("epsilon", 1e-5))


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.T if call.get("transA", 0) else a
    if alpha == beta == 1.0 and call.get("transB", 0) and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    product = alpha * (a @ (b.T if call.get("transB", 0) else b))
    return product if c is None else product + beta * c


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    ends = []
    for i, given in ((1, low), (2, high)):
        known = call.constants[i] if i < len(call.constants) else None
        if given is not None and known is None:
            raise Refused("bounds that are not known while reading")
        ends.append(None if known is None else known.item())
    if ends == [0, None]:
        return F.relu(x)
    if ends == [0, 6]:
        return F.hardtanh(x, 0.0, 6.0)
    return x if ends == [None, None] else torch.clamp(x, *ends)


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = call.needed(1)
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1) % (x.ndim + 1)
    return x.flatten(1) if axis == 1 and x.ndim > 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = call.ints(1)
    sizes = [i for i, size in enumerate(x.shape) if size == 1] if found is None else [i % x.ndim for i in found]
    return x.reshape([size for i, size in enumerate(x.shape) if i not in sizes])


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = call.needed(1)
    rank = x.ndim + len(found)
    for axis in sorted(each % rank for each in found):
        x = x.unsqueeze(axis)
    return x


def _slice(call: Call, x: Tensor, *operands: Tensor | None) -> Tensor:
    starts, ends = call.needed(1), call.needed(2)
    axes, steps = call.ints(3) or list(range(len(starts))), call.ints(4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise Refused("a slice backwards")
        size = x.shape[axis]
        first, last = (max(0, min(each + size if each < 0 else each, size)) for each in (start, end))
        if (first, last, step) != (0, size, 1):
            x = torch.ops.aten.slice.Tensor(x, axis % x.ndim, first, last, step)
    return x


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, found = call.get("axis", 0), call.ints(1)
    if found is None:
        each = math.ceil(x.shape[axis] / call.get("num_outputs", call.results))
        return tuple(x.split(each, axis))
    return tuple(x.split(found, axis))


def _pad(call: Call, x: Tensor, *operands: Tensor | None) -> Tensor:
    if call.ints(3) is not None:
        raise Refused("pads of some axes")
    pads, mode = _torch_pads(call.needed(1)), call.get("mode", "constant")
    known = call.constants[2] if len(call.constants) > 2 else None
    while len(pads) > 2 and pads[-2:] == [0, 0]:
        pads = pads[:-2]
    if mode == "constant":
        return F.pad(x, pads, value=0.0 if known is None else known.item())
    return F.pad(x, pads, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        found, keep = call.ints(1, "axes"), bool(call.get("keepdims", 1))
        if found is None and call.get("noop_with_empty_axes", 0):
            return x
        return function(x, found or list(range(x.ndim)), keep)

    return reduce


def _resize(call: Call, x: Tensor, *operands: Tensor | None) -> Tensor:
    mode, moved = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    sizes = call.ints(3)
    if sizes is None:
        scales = call.constants[2] if len(call.constants) > 2 else None
        if scales is None:
            raise Refused("a size that is not known while reading")
        sizes = [math.floor(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)]
    if len(sizes) != 4 or sizes[:2] != list(x.shape[:2]):
        raise Refused("a resize of other dimensions than height and width")
    if mode == "nearest" and moved == "asymmetric" and call.get("nearest_mode", "round_prefer_floor") == "floor":
        return F.interpolate(x, sizes[2:], mode="nearest")
    if mode == "linear" and moved in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, sizes[2:], mode="bilinear", align_corners=moved == "align_corners")
    raise Refused(f"a resize by {mode} with {moved}")


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    size = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    moved = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    size = call.get("blocksize")
    n, c, h, w = x.shape
    moved = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * size**2, h // size, w // size)


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis, found = call.get("axis", 0), call.needed(1)
    known = call.constants[1]
    assert known is not None
    if known.ndim == 0:
        return x.select(axis, found[0])
    return x.index_select(axis, indices.reshape(-1)).reshape([*x.shape[:axis], *known.shape, *x.shape[axis + 1 :]])


_TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}


def _cast(call: Call, x: Tensor) -> Tensor:
    if call.get("to") not in _TYPES:
        raise Refused(f"a cast to type {call.get('to')!r:.20}")
    return x.to(_TYPES[call.get("to")])


def _constant(call: Call) -> Tensor:
    if (value := call.get("value")) is not None:
        return value
    for name, kind in (("value_float", torch.float32), ("value_floats", torch.float32), ("value_int", torch.int64),
                       ("value_ints", torch.int64)):  # fmt: skip
        if (value := call.get(name)) is not None:
            return torch.tensor(value, dtype=kind)
    raise Refused("a constant of another kind than numbers")


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    return torch.full(call.needed(0), 0.0) if value is None else value.reshape(1).expand(call.needed(0)).clone()


def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = call.get("axis", -1) % x.ndim
    return F.layer_norm(x, list(x.shape[axis:]), scale, bias, call.get("epsilon", 1e-5))


def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _one(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda call, *operands: function(*operands)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def fold(call: Call, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return fold


def _divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _maxpool, "AveragePool": _avgpool,
    "GlobalAveragePool": _one(lambda x: x.mean(list(range(2, x.ndim)), keepdim=True)),
    "GlobalMaxPool": _one(lambda x: x.amax(list(range(2, x.ndim)), keepdim=True)),
    "BatchNormalization": _batch_norm, "Gemm": _gemm, "MatMul": _one(torch.matmul),
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda c, x, s, b: F.instance_norm(x, weight=s, bias=b, eps=c.get("epsilon", 1e-5)),
    "Relu": _one(F.relu), "Sigmoid": _one(torch.sigmoid), "Tanh": _one(torch.tanh), "Softplus": _one(F.softplus),
    "Softsign": _one(F.softsign), "Mish": _one(F.mish), "Erf": _one(torch.erf), "Gelu": _gelu,
    "HardSwish": _one(F.hardswish), "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": lambda c, x: F.leaky_relu(x, c.get("alpha", 0.01)),
    "Elu": lambda c, x: F.elu(x, c.get("alpha", 1.0)),
    "PRelu": _one(lambda x, slope: torch.where(x >= 0, x, x * slope)),
    "Softmax": lambda c, x: F.softmax(x, c.get("axis", -1)),
    "LogSoftmax": lambda c, x: F.log_softmax(x, c.get("axis", -1)),
    "Exp": _one(torch.exp), "Log": _one(torch.log), "Sqrt": _one(torch.sqrt), "Abs": _one(torch.abs),
    "Neg": _one(torch.neg), "Reciprocal": _one(torch.reciprocal), "Floor": _one(torch.floor),
    "Ceil": _one(torch.ceil), "Add": _one(torch.add), "Sub": _one(torch.sub), "Mul": _one(torch.mul),
    "Div": _divide, "Pow": _one(torch.pow), "Min": _folded(torch.minimum), "Max": _folded(torch.maximum),
    "Sum": _folded(torch.add), "Equal": _one(torch.eq), "Greater": _one(torch.gt), "Less": _one(torch.lt),
    "GreaterOrEqual": _one(torch.ge), "LessOrEqual": _one(torch.le), "Where": _one(torch.where),
    "Not": _one(torch.logical_not), "And": _one(torch.logical_and), "Or": _one(torch.logical_or),
    "Concat": lambda c, *xs: torch.cat(xs, c.get("axis")), "Reshape": _reshape, "Flatten": _flatten,
    "Transpose": lambda c, x: x.permute(c.get("perm") or list(reversed(range(x.ndim)))),
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Slice": _slice, "Split": _split, "Pad": _pad,
    "ReduceMean": _reduced(torch.mean), "ReduceSum": _reduced(torch.sum), "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin), "Resize": _resize, "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Expand": lambda c, x, shape: x.expand(torch.broadcast_shapes(x.shape, c.needed(1))),
    "Tile": lambda c, x, counts: x.repeat(c.needed(1)), "Gather": _gather, "Cast": _cast,
    "Shape": lambda c, x: torch.tensor(list(x.shape)[c.get("start", 0) : c.get("end")], dtype=torch.int64),
    "Size": lambda c, x: torch.tensor(x.numel()), "Constant": _constant, "ConstantOfShape": _constant_of_shape,
    "Range": lambda c, *ends: torch.arange(*(each.item() for each in ends)),
    "Identity": _one(lambda x: x), "Dropout": lambda c, x, *unused: x,
}  # fmt: skip
"""Operator -> function of its call and its operands (None for those left out); a tuple where it has several results."""
