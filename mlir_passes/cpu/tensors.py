"""The tensors between kernels, of stored integers and of f32: their layouts, and values that no kernel makes.

What differs between the two number types is here, and nothing else asks for it: stored integers are u8 bytes with a
border of their zero point; f32 has a border of zeros, and gaps where pixels would lie in one set of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, tensor

from mlir_passes.base import Missed
from mlir_passes.cpu import patterns
from mlir_passes.cpu.calls import Buffer, Calls, border_byte, numbers_as, tag_like
from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.patterns import DENSE, DEPTHWISE, GROUPED, MAX_POOL, SUM_POOL, Padded, Parameter, Sum
from mlir_passes.ir import match
from mlir_passes.ir.build import elementwise, relaid_constant, tensor_type
from mlir_passes.ir.moves import extract_slice, pad, reshape
from mlir_passes.kernels.text import Layout
from mlir_passes.kernels.work import KernelSpec

_WINDOWED = (DENSE, GROUPED, DEPTHWISE, SUM_POOL)
_ALIASING = 512  # floats: pixels so far apart lie in one or two sets of the first cache
_GAP = 16


class Tensors:
    """The tensors of one number type; the buffers that kernels make are in ``calls.buffers``, of all types.

    element: as MLIR writes it. dtype: of what kernels make. lowest: what maxima begin at, or below.

    waiting: by their results, the layers that an addition goes into; each is called with that, or with None.
    """

    element: ClassVar[str]
    dtype: ClassVar[type]
    lowest: ClassVar[float]

    def __init__(self, calls: Calls, isa: Isa) -> None:
        self.calls, self.isa = calls, isa
        self.waiting: dict[ir.Value, Callable[[Sum | None], None]] = {}
        self._converted: dict[ir.Value, Buffer] = {}

    def holds(self, value: ir.Value) -> bool:
        """Whether a value is a batch of images of this number type."""
        return is_image(value) and str(ir.RankedTensorType(value.type).element_type) == self.element

    def layout(self, value: ir.Value) -> Layout:
        """How a kernel writes a value: with the border that its readers want."""
        raise NotImplementedError

    def read(self, value: ir.Value, number: float | None = None) -> Padded | Missed:
        """What a reader reads: a tensor, and the border it wants around it; one that must hold ``number``, if given."""
        source = self._padded(value, number)
        if isinstance(source, Missed) or self.holds(source.value):
            return source
        return Missed(f"it reads {source.value.type}, which are no images of {self.element}")

    def _padded(self, value: ir.Value, number: float | None) -> Padded | Missed:
        raise NotImplementedError

    def added(self, op: ir.Operation) -> Sum | Missed | None:
        """An addition of two tensors; None for anything else."""
        raise NotImplementedError

    def weight(self, value: ir.Value) -> Parameter | None:
        """The numbers of a layer's weight."""
        numbers = relaid_constant(value)
        return None if numbers is None else Parameter(numbers, None)

    def excess(self, weight: np.ndarray) -> np.ndarray | int:
        """How much larger a kernel's sums with this weight [..., channels] are than the layer's."""
        return 0

    def number(self, value: ir.Value) -> Parameter | None:
        """What the border of a value holds; None where it has none, or zeros."""
        return None

    def border(self, value: ir.Value) -> list[ir.Value]:
        """The operands from which a kernel that moves numbers fills the border of its result; none for zeros."""
        return []

    def channels(self, layout: Layout, first: int, count: int) -> Layout | None:
        """Some channels of an image as a view, if kernels may read them there."""
        return replace(layout, c=count, first=layout.first + first, pixel=layout.stride)

    def _plain(self, value: ir.Value) -> ir.Value:
        """A value as kernels hold its numbers."""
        return value

    def _filling(self, value: ir.Value) -> ir.Value:
        """The number around it."""
        raise NotImplementedError

    def _convert(self, value: ir.Value) -> Buffer:
        layout = replace(self.layout(value), pixel=0)
        image = reshaped(self._plain(value), layout)
        if tuple(image.type.shape) == layout.shape:
            return Buffer(image, layout)
        high = [0, layout.bottom, layout.right, layout.stride - layout.c]
        return Buffer(pad(image, [0, layout.top, layout.left, 0], high, self._filling(value)), layout)

    def buffer(self, value: ir.Value) -> Buffer:
        """The kernels' form of a value; converted here where no kernel makes it."""
        if value in self.calls.buffers:
            return self.calls.buffers[value]
        if value not in self._converted:
            self._converted[value] = self._convert(value)
        return self._converted[value]

    def held_layout(self, value: ir.Value) -> Layout:
        """The layout of a value's ``buffer``, which is not made for it."""
        known = self.calls.buffers.get(value) or self._converted.get(value)
        return self.layout(value) if known is None else known.layout

    def call(
        self, spec: KernelSpec, operands: list[ir.Value], result: ir.Value, y: Layout, source: ir.Operation
    ) -> None:
        """Call the kernel that makes ``result``, at the location and for the layer of ``source``."""
        made = self.calls.call(spec, operands, tensor_type(y.shape, self.dtype), source)
        self.calls.buffers[result] = Buffer(made, y)


class StoredTensors(Tensors):
    """i8 tensors, which kernels hold as u8."""

    element, dtype, lowest = "i8", np.int8, -128

    def layout(self, value: ir.Value) -> Layout:
        """Whole vectors of channels, with the border that all readers agree with."""
        return _bordered(image_layout(value), _bordering_readers(value))

    def number(self, value: ir.Value) -> Parameter | None:
        """See Tensors."""
        return next((each.number for each in _bordering_readers(value)), None)

    def _padded(self, value: ir.Value, number: float | None) -> Padded | Missed:
        source = patterns.padded(value)
        if isinstance(source, Missed) or source.number is None:
            return source
        if number is not None:
            return source if int(source.number.numbers) == number else Missed(f"its padding does not hold {number:g}")
        border = self.number(source.value)
        if border is not None and np.array_equal(border.numbers, source.number.numbers):
            return source
        return Missed("another reader of its input wants another number in the border")

    def added(self, op: ir.Operation) -> Sum | Missed | None:
        """See Tensors."""
        return patterns.added(op)

    def weight(self, value: ir.Value) -> Parameter | None:
        """See Tensors; a tag stays."""
        return patterns.parameter_of(value)

    def excess(self, weight: np.ndarray) -> np.ndarray | int:
        """They read u8 for i8, which is 128 larger."""
        return weight.sum(axis=tuple(range(weight.ndim - 1)), dtype=np.int64) * (128 - self.isa.zero)

    def call(
        self, spec: KernelSpec, operands: list[ir.Value], result: ir.Value, y: Layout, source: ir.Operation
    ) -> None:
        """See Tensors; a result in f32 is cut out of the vectors in which the kernel makes it."""
        if self.holds(result):
            super().call(spec, operands, result, y, source)
            return
        made = self.calls.call(spec, operands, tensor_type(y.shape, np.float32), source)
        result.replace_all_uses_with(unbordered(made, y, ir.RankedTensorType(result.type)))

    def border(self, value: ir.Value) -> list[ir.Value]:
        """Sixteen bytes of the border's number."""
        return [border_of(self.number(value), (16,))]

    def channels(self, layout: Layout, first: int, count: int) -> Layout | None:
        """See Tensors: if readers of whole vectors stay within its pixels."""
        end = layout.first + first + max(16, -(-count // 4) * 4)
        return None if end > layout.stride else super().channels(layout, first, count)

    def _plain(self, value: ir.Value) -> ir.Value:
        return elementwise([value], ir.RankedTensorType(value.type), _flip)

    def _filling(self, value: ir.Value) -> ir.Value:
        return tensor.extract(border_of(self.number(value), ()), [])


class FloatTensors(Tensors):
    """f32 tensors."""

    element, dtype, lowest = "f32", np.float32, -3.4028234663852886e38

    def layout(self, value: ir.Value) -> Layout:
        """With the zeros around it that its readers want."""
        plain = image_layout(value, floating=True)
        pads = [use.owner.operation for use in value.uses if use.owner.operation.name == "tensor.pad"]
        wanted = [float_padded(each.results[0]) for each in pads if _is_read_by(each.results[0], _WINDOWED)]
        dense = any(_is_read_by(each, (DENSE, GROUPED)) for each in (value, *(pad.results[0] for pad in pads)))
        gap = _GAP if dense and plain.c % _ALIASING == 0 and plain.w > 1 else 0
        return replace(_bordered(plain, wanted), pixel=plain.c + gap if gap else 0)

    def _padded(self, value: ir.Value, number: float | None) -> Padded | Missed:
        # A padding with another number is read as a tensor of its own.
        return float_padded(value, number or 0.0)

    def added(self, op: ir.Operation) -> Sum | Missed | None:
        """See Tensors; with the clamps behind it."""
        return patterns.float_added(op)

    def _filling(self, value: ir.Value) -> ir.Value:
        return arith.ConstantOp(ir.F32Type.get(), ir.FloatAttr.get(ir.F32Type.get(), 0.0)).result


def plain_value(value: ir.Value, buffer: Buffer) -> ir.Value:
    """The i8 or f32 value that a buffer stands for."""
    kind = ir.RankedTensorType(value.type)
    image = unbordered(buffer.value, buffer.layout, kind)
    return image if buffer.layout.floating else elementwise([image], kind, _flip)


def border_of(number: Parameter | None, shape: tuple[int, ...]) -> ir.Value:
    """The byte that fills a border, repeated to a shape."""
    tag = None if number is None else tag_like(number, "border")
    return numbers_as(tag, np.full(shape, border_byte(number), np.uint8).view(np.int8))


def float_padded(value: ir.Value, number: float = 0.0) -> Padded:
    """What a reader reads: the source of a tensor.pad of rows and columns with ``number``, else the value itself."""
    found = patterns.padded(value)
    if isinstance(found, Missed) or found.number is None or found.number.numbers != number:
        return Padded(value)
    return replace(found, number=None)


def is_image(value: ir.Value) -> bool:
    """Whether a value is a batch of images: [n, h, w, c] or [n, c]."""
    return ir.RankedTensorType(value.type).rank in (2, 4)


def image_layout(value: ir.Value, *, floating: bool = False) -> Layout:
    """The layout without a border of [n, h, w, c] or [n, c]; raises ValueError for any other shape."""
    shape = match.shape_of(value)
    if len(shape) not in (2, 4):
        raise ValueError(f"shape {shape} is not that of images")
    h, w = shape[1:3] if len(shape) == 4 else (1, 1)
    return Layout(h, w, shape[-1], floating=floating, images=shape[0])


def unbordered(value: ir.Value, layout: Layout, kind: ir.RankedTensorType) -> ir.Value:
    """The images in a buffer, in the shape of ``kind``."""
    image = (layout.images, layout.h, layout.w, layout.c)
    if layout.shape != image:
        value = extract_slice(value, [0, layout.top, layout.left, layout.first], image)
    return _between_ranks(value, list(kind.shape))


def reshaped(value: ir.Value, layout: Layout) -> ir.Value:
    """A value as the images [n, h, w, c] of a layout."""
    return _between_ranks(value, [layout.images, layout.h, layout.w, layout.c])


def _between_ranks(value: ir.Value, shape: list[int]) -> ir.Value:
    """Change between [n, 1, 1, c] and [n, c], or leave a value as it is."""
    same = list(ir.RankedTensorType(value.type).shape) == shape
    return value if same else reshape(value, shape, "[[0], [1, 2, 3]]")


def _bordered(layout: Layout, wanted: Sequence[Padded]) -> Layout:
    """A layout with the border that is enough for all its readers."""
    sides = ("top", "left", "bottom", "right")
    return replace(layout, **{side: max((getattr(each, side) for each in wanted), default=0) for side in sides})


def _bordering_readers(value: ir.Value) -> list[Padded]:
    """The paddings of an i8 value that its border stands for: not those of maxima, which a kernel needs none for."""
    found = []
    for op in (use.owner.operation for use in value.uses if str(ir.RankedTensorType(value.type).element_type) == "i8"):
        if op.name != "tensor.pad" or MAX_POOL in {each.owner.operation.name for each in op.results[0].uses}:
            continue
        wanted = patterns.padded(op.results[0])
        if isinstance(wanted, Padded) and wanted.number is not None:
            found.append(wanted)
    return found


def _is_read_by(value: ir.Value, names: tuple[str, ...]) -> bool:
    """Whether one of these operations is among the readers; a grouped one reads channels that are split."""
    readers = [use.owner.operation for use in value.uses]
    readers += [use.owner.operation for op in readers if op.name == "tensor.expand_shape" for use in op.results[0].uses]
    return any(reader.name in names for reader in readers)


def _flip(x: ir.Value) -> ir.Value:
    """Between i8 and the u8 that is 128 larger."""
    i8 = ir.IntegerType.get_signless(8)
    return arith.xori(x, arith.ConstantOp(i8, ir.IntegerAttr.get(i8, -128)).result)
