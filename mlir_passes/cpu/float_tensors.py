"""f32 tensors between kernels: which border and which gaps they have, and values that no kernel makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes.cpu.emit import Buffer, Calls, KernelSpec, image_layout, is_image, reshaped
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, GROUPED, SUM_POOL, Padded
from mlir_passes.ir import match
from mlir_passes.ir.build import tensor_type
from mlir_passes.ir.moves import pad
from mlir_passes.kernels.text import Layout

_WINDOWED = (DENSE, GROUPED, DEPTHWISE, SUM_POOL)
_ALIASING = 512  # floats: pixels so far apart lie in one or two sets of the first cache
_GAP = 16


class FloatTensors:
    """The f32 buffers of a module; those that kernels make are in ``calls.buffers``, as i8 ones are."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._converted: dict[ir.Value, Buffer] = {}

    def layout(self, value: ir.Value) -> Layout:
        """How a kernel writes a value: with the zeros around it that its readers want."""
        plain = image_layout(value, floating=True)
        pads = [use.owner.operation for use in value.uses if use.owner.operation.name == "tensor.pad"]
        wanted = [padded(pad.results[0]) for pad in pads if _is_read_by(pad.results[0], _WINDOWED)]
        sides = {
            side: max((getattr(each, side) for each in wanted), default=0)
            for side in ("top", "left", "bottom", "right")
        }
        dense = any(_is_read_by(each, (DENSE, GROUPED)) for each in (value, *(pad.results[0] for pad in pads)))
        gap = _GAP if dense and plain.c % _ALIASING == 0 and plain.w > 1 else 0
        return replace(plain, **sides, pixel=plain.c + gap if gap else 0)

    def buffer(self, value: ir.Value) -> Buffer:
        """The kernels' form of a value; converted here where no kernel makes it."""
        if value in self.calls.buffers:
            return self.calls.buffers[value]
        if value not in self._converted:
            layout = replace(self.layout(value), pixel=0)
            self._converted[value] = Buffer(_bordered(value, layout), layout)
        return self._converted[value]

    def call(
        self, spec: KernelSpec, operands: list[ir.Value], result: ir.Value, y: Layout, source: ir.Operation
    ) -> None:
        """Call the kernel that makes ``result``, at the location and for the layer of ``source``."""
        made = self.calls.call(spec, operands, tensor_type(y.shape, np.float32), source)
        self.calls.buffers[result] = Buffer(made, y)


def padded(value: ir.Value, number: float = 0.0) -> Padded:
    """What a reader reads: the source of a tensor.pad of rows and columns with ``number``, else the value itself."""
    op = match.owner(value)
    found = None if op is None else match.match_pad(op)
    if found is None or found.value != number or len(found.low) != 4:
        return Padded(value)
    if any((found.low[0], found.low[3], found.high[0], found.high[3])):
        return Padded(value)
    return Padded(found.source, found.low[1], found.low[2], found.high[1], found.high[2])


def is_float_image(value: ir.Value) -> bool:
    """Whether a value is a batch of f32 images."""
    return is_image(value) and isinstance(ir.RankedTensorType(value.type).element_type, ir.F32Type)


def _is_read_by(value: ir.Value, names: tuple[str, ...]) -> bool:
    """Whether one of these operations is among the readers; a grouped one reads channels that are split."""
    readers = [use.owner.operation for use in value.uses]
    readers += [use.owner.operation for op in readers if op.name == "tensor.expand_shape" for use in op.results[0].uses]
    return any(reader.name in names for reader in readers)


def _bordered(value: ir.Value, layout: Layout) -> ir.Value:
    image = reshaped(value, [layout.images, layout.h, layout.w, layout.c])
    if tuple(ir.RankedTensorType(image.type).shape) == layout.shape:
        return image
    low, high = [0, layout.top, layout.left, 0], [0, layout.bottom, layout.right, 0]
    zero = arith.ConstantOp(ir.F32Type.get(), ir.FloatAttr.get(ir.F32Type.get(), 0.0)).result
    return pad(image, low, high, zero)
