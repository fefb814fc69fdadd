"""What an imported module gets before anything reads it: named layers, and convolutions and pools in one form.

before -> after:

    linalg.conv_… loc("features.0")    ->  linalg.conv_… {quantune.layer = "features.0"} loc("features.0")
    y = conv_2d_ngchw_gfchw(x, w)      ->  y = split(join(conv_2d_ngchw_gfchw(split(join(x)), w)))
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

from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.ir import match
from mlir_passes.ir.build import LAYER, defining_op, erase_if_unused, layer_of, set_layer, walk
from mlir_passes.ir.moves import extract_slice, join_groups, split_groups
from mlir_passes.ir.moves import pad as build_pad
from mlir_passes.ops.reader import main_function
from mlir_passes.ops.windows import fills


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
        if op.name in fills() and _is_static_f32(op):
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
