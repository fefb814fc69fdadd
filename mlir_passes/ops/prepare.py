"""What an imported module gets before anything reads it: named layers, and convolutions and pools in one form.

before -> after:

    linalg.conv_… loc("features.0")    ->  linalg.conv_… {quantune.layer = "features.0"} loc("features.0")
    y = conv_2d_ngchw_gfchw(x, w)      ->  y = split(join(conv_2d_ngchw_gfchw(split(join(x)), w)))
    y, _ = (maximum(x), its place)     ->  y = maximum(x)        where nobody asks for the place
    y = conv_1d_ncw_fcw(x, w)          ->  y = row(conv_2d_nchw_fchw(image(x), image(w)))      [n, c, w] as [n, c, 1, w]
    conv(x, constants computed)        ->  conv(x, constant)         a transposed convolution turns its weight around
    window(pad(x))                     ->  window(pad'(x))       padded no further than the windows reach
    window(x) of one row or column     ->  window(slice(x))      what the windows reach of x
    truncf(constant f64)               ->  constant f32          rounded to nearest

join views [n, g, c, h, w] as [n, g * c, h, w] and split is its inverse: each only where it is not there yet, because a
view next to it has swallowed it. The windows: rounding up pads more than it uses, and IREE 3.13 rejects a window
operation with a result of extent 1 that does not reach the end of its input. The last one: torch's bounds of clamps
are f64, and IREE, which has no f64 on all targets, cuts off what f32 cannot hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, linalg

from mlir_passes.ir import match
from mlir_passes.ir.build import (
    LAYER,
    constant,
    defining_op,
    erase_if_unused,
    layer_of,
    reduction,
    relaid_constant,
    set_layer,
    walk,
)
from mlir_passes.ir.evaluate import evaluate
from mlir_passes.ir.moves import extract_slice, join_groups, reshape, split_groups
from mlir_passes.ir.moves import pad as build_pad
from mlir_passes.ir.same_body import REDUCTION, iterators
from mlir_passes.ops.reader import main_function
from mlir_passes.ops.windows import fills

_HEIGHT = "[[0], [1], [2, 3]]"
_OF_ROWS = {
    "linalg.conv_1d_ncw_fcw": linalg.conv_2d_nchw_fchw,
    "linalg.depthwise_conv_1d_ncw_cw": linalg.depthwise_conv_2d_nchw_chw,
}
_WITH_WEIGHTS = ("linalg.conv_2d_nchw_fchw", "linalg.depthwise_conv_2d_nchw_chw", match.GROUPED_CONV)


def prepare(module: ir.Operation) -> None:
    """Name the layers of a module's only function and bring its convolutions and pools into the form passes expect.

    Raises NetworkError when there is not exactly one function.
    """
    function = main_function(module)
    for op in list(walk(function)):
        if op.name == "arith.truncf":
            _round(op)
    operations = [op.operation for op in function.regions[0].blocks[0].operations]
    for op in operations:
        unnamed = LAYER not in op.attributes and op.name.split(".")[0] in ("linalg", "tensor")
        if unnamed and isinstance(op.location, ir.NameLoc):
            op.attributes[LAYER] = ir.StringAttr.get(op.location.name_str, context=module.context)
    for op in operations:
        if op.name == match.GROUPED_CONV:
            _surround(op)
        elif op.name in _OF_ROWS:
            with ir.InsertionPoint(op), op.location:
                op = _as_image(op)
        if op.name in _WITH_WEIGHTS:
            _compute_weight(op)
        if len(op.results) == 2:
            with ir.InsertionPoint(op), op.location:
                _forget_places(op)
        elif op.name in fills() and _is_static_f32(op):
            with ir.InsertionPoint(op), op.location:
                _fit(op)


def _is_static_f32(op: ir.Operation) -> bool:
    kinds = [ir.RankedTensorType(value.type) for value in (*op.operands, *op.results)]
    return all(kind.has_static_shape and isinstance(kind.element_type, ir.F32Type) for kind in kinds)


def _round(truncation: ir.Operation) -> None:
    result, source = truncation.results[0], defining_op(truncation.operands[0])
    number = match.scalar(result)
    if number is None or source is None:
        return
    with ir.InsertionPoint.after(source), truncation.location:
        result.replace_all_uses_with(arith.ConstantOp(result.type, ir.FloatAttr.get(result.type, number)).result)
    truncation.erase()


def _surround(conv: ir.Operation) -> None:
    source, result = conv.operands[0], conv.results[0]
    if not match.splits_groups(defining_op(source)):
        with ir.InsertionPoint(conv), conv.location:
            conv.operands[0] = split_groups(join_groups(source), match.shape_of(source)[1])
    if match.joining_reader(result) is None:
        with ir.InsertionPoint.after(conv), conv.location:
            joined = join_groups(result)
            split = split_groups(joined, match.shape_of(result)[1])
        result.replace_all_uses_except(split, joined.owner.operation)


def _as_image(op: ir.Operation) -> ir.Operation:
    """The convolution of rows as one of images of height 1."""
    x, weight, init = op.operands
    made_by = defining_op(x)
    pad = match.match_pad(made_by) if made_by is not None else None
    if pad is None:
        image = _image(x)
    else:
        low, high = ([*each[:2], 0, *each[2:]] for each in (pad.low, pad.high))
        element = ir.RankedTensorType(x.type).element_type
        image = build_pad(
            _image(pad.source), low, high, arith.ConstantOp(element, ir.FloatAttr.get(element, pad.value)).result
        )
    window = {name: [1, match.ints(op, name)[-1]] for name in ("strides", "dilations")}
    numbers = relaid_constant(weight)
    heightened = _image(weight) if numbers is None else constant(np.ascontiguousarray(numbers[..., None, :]))
    made = _OF_ROWS[op.name](image, heightened, outs=[_image(init)], **window)
    set_layer(made.owner, layer_of(op))
    row = reshape(made, match.shape_of(op.results[0]), _HEIGHT)
    set_layer(row.owner, layer_of(op))
    op.results[0].replace_all_uses_with(row)
    op.erase()
    erase_if_unused(x)
    return made.owner.operation if isinstance(made.owner, ir.OpView) else made.owner


def _image(value: ir.Value) -> ir.Value:
    """[..., w] as [..., 1, w]."""
    *outer, width = match.shape_of(value)
    if len(outer) == 2:
        return reshape(value, [*outer, 1, width], _HEIGHT)
    return reshape(value, [*outer, 1, width], "[[0], [1, 2]]")


def _compute_weight(op: ir.Operation) -> None:
    """Let a weight that is computed of constants alone be one."""
    if relaid_constant(op.operands[1]) is None and (numbers := evaluate(op.operands[1])) is not None:
        with ir.InsertionPoint(op), op.location:
            op.operands[1] = constant(numbers)


def _forget_places(op: ir.Operation) -> None:
    """Let a maximum whose places nobody reads be no more than a maximum."""
    if op.name != "linalg.generic" or len(op.operands) != 3 or any(True for _ in op.results[1].uses):
        return
    loops, maps, block = iterators(op), match.maps_of(op), op.regions[0].blocks[0]
    larger = defining_op(match.body_of(op)[-1].operands[0])
    if larger is None or larger.name != "arith.maximumf" or list(larger.operands) != list(block.arguments)[:2]:
        return
    axes = [i for i, loop in enumerate(loops) if loop == REDUCTION]
    kept = [ir.AffineExpr.get_dim(i) for i in range(len(loops)) if i not in axes]
    if not match.is_identity(maps[0]) or list(maps[1].results) != kept:
        return
    made = reduction(op.operands[0], op.operands[1], axes, arith.maximumf)
    set_layer(made.owner, layer_of(op))
    op.results[0].replace_all_uses_with(made)
    op.erase()


def _fit(op: ir.Operation) -> None:
    """Let a convolution or pool read no more than its windows reach."""
    source = op.operands[0]
    split = defining_op(source) if op.name == match.GROUPED_CONV else None
    image = source if split is None else split.operands[0]
    made_by = defining_op(image)
    found = match.match_pad(made_by) if made_by is not None else None
    pad = found if found is not None and len(found.low) == 4 else match.Pad(image, (0,) * 4, (0,) * 4, 0.0)
    outputs, kernel = match.shape_of(op.results[0])[-2:], match.shape_of(op.operands[1])[-2:]
    sizes, high = list(match.shape_of(pad.source)), list(pad.high)
    window = zip((2, 3), outputs, kernel, match.ints(op, "strides"), match.ints(op, "dilations"), strict=True)
    for dim, out, k, stride, dilation in window:
        reach = (out - 1) * stride + (k - 1) * dilation + 1
        unread = pad.low[dim] + sizes[dim] + high[dim] - reach
        high[dim] -= min(unread, high[dim])
        if out == 1:
            sizes[dim] = min(sizes[dim], reach - pad.low[dim])
    fitted = _padded(_cropped(pad.source, sizes), pad, high, made_by)
    if fitted != image:
        op.operands[0] = fitted if split is None else split_groups(fitted, match.shape_of(source)[1])
        erase_if_unused(source)


def _cropped(image: ir.Value, shape: Sequence[int]) -> ir.Value:
    """The first rows and columns of ``image``."""
    if tuple(shape) == match.shape_of(image):
        return image
    return extract_slice(image, [0] * 4, shape)


def _padded(image: ir.Value, pad: match.Pad, high: Sequence[int], old: ir.Operation | None) -> ir.Value:
    """``image`` padded as ``pad`` says but for ``high``; the result of ``old`` where that is the same."""
    if old is not None and image == pad.source and tuple(high) == pad.high and any((*pad.low, *high)):
        return old.results[0]
    if not any((*pad.low, *high)):
        return image
    element = ir.RankedTensorType(image.type).element_type
    made = build_pad(image, pad.low, high, arith.ConstantOp(element, ir.FloatAttr.get(element, pad.value)).result)
    set_layer(made.owner, None if old is None else layer_of(old))
    return made
