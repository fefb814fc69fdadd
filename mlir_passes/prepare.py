"""What an imported module gets before anything reads it: names on its layers, and grouped convolutions in one form.

before -> after:

    linalg.conv_… loc("features.0")    ->  linalg.conv_… {quantune.layer = "features.0"} loc("features.0")
    y = conv_2d_ngchw_gfchw(x, w)      ->  y = split(join(conv_2d_ngchw_gfchw(split(join(x)), w)))

where join views [n, g, c, h, w] as [n, g * c, h, w] and split is its inverse: each only where it is not there yet,
because a view next to it has swallowed it.
"""

from __future__ import annotations

from torch_mlir import ir

from mlir_passes import match
from mlir_passes.build import LAYER, defining_op, join_groups, split_groups
from mlir_passes.read_network import main_function


def prepare(module: ir.Operation) -> None:
    """Name the layers of a module's only function and give its grouped convolutions tensors of rank four.

    Raises NetworkError when there is not exactly one function.
    """
    operations = [op.operation for op in main_function(module).regions[0].blocks[0].operations]
    for op in operations:
        unnamed = LAYER not in op.attributes and op.name.split(".")[0] in ("linalg", "tensor")
        if unnamed and isinstance(op.location, ir.NameLoc):
            op.attributes[LAYER] = ir.StringAttr.get(op.location.name_str, context=module.context)
    for op in operations:
        if op.name == match.GROUPED_CONV:
            _surround(op)


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
