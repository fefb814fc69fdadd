"""Calls of kernels, the tensors between them, and the constants they read."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import arith, tensor

from mlir_passes.base import Missed
from mlir_passes.cpu.patterns import MAX_POOL, Padded, Parameter, padded
from mlir_passes.ir import match
from mlir_passes.ir.build import constant, elementwise, layer_of, parameter, set_layer
from mlir_passes.ir.moves import extract_slice, pad, reshape
from mlir_passes.kernels.text import NAME, Layout


class KernelSpec(Protocol):
    """What every family of kernels offers."""

    @property
    def macs(self) -> int:
        """Multiplications of one call."""
        ...

    def text(self) -> str:
        """The kernel's MLIR."""
        ...


@dataclass(frozen=True)
class Buffer:
    """A tensor as kernels hold it: u8 bytes or f32 in a layout."""

    value: ir.Value
    layout: Layout


@functools.lru_cache(maxsize=1024)
def _text(spec: KernelSpec) -> str:
    """The text of a kernel; a search lowers one network again and again, and its kernels stay the same."""
    return spec.text()


class Calls:
    """The kernels of a module.

    buffers: the form that kernels read of each value they make. missed: why an operation became no kernel.
    """

    def __init__(self, module: ir.Operation) -> None:
        self.module = module
        self.buffers: dict[ir.Value, Buffer] = {}
        self.missed: dict[ir.Operation, str] = {}
        self._converted: dict[ir.Value, Buffer] = {}
        self._names: dict[str, str] = {}

    def call(self, spec: KernelSpec, operands: Sequence[ir.Value], result: ir.Type, source: ir.Operation) -> ir.Value:
        """Call a kernel, at the location and for the layer of ``source``; an equal kernel is there only once."""
        name = self._kernel(spec)
        count = len(operands)
        attributes = {
            "entry_points": ir.Attribute.parse(f"[@{name}::@{name}]"),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([0, count, 0, 0]),
            "tied_operands": ir.Attribute.parse("[-1 : index]"),
        }
        if spec.macs:
            attributes["quantune.macs"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), spec.macs)
        op = ir.Operation.create("flow.dispatch", [result], list(operands), attributes, loc=source.location)
        set_layer(op, layer_of(source))
        return op.results[0]

    def _kernel(self, spec: KernelSpec) -> str:
        text = _text(spec)
        if text not in self._names:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(spec).__name__).lower()
            self._names[text] = name = f"quantune_{kind}_{len(self._names)}"
            parsed = ir.Module.parse(text.replace(NAME, name), context=self.module.context)
            parsed.body.operations[0].operation.clone(
                ip=ir.InsertionPoint.at_block_begin(self.module.regions[0].blocks[0])
            )
        return self._names[text]

    def miss(self, op: ir.Operation, missed: Missed) -> None:
        """Remember why an operation becomes no kernel."""
        self.missed[op] = missed.reason

    # Tensors

    def buffer(self, value: ir.Value) -> Buffer:
        """The kernels' form of an i8 value; converted here where no kernel makes it."""
        if value in self.buffers:
            return self.buffers[value]
        if value not in self._converted:
            layout, number = self.layout(value)
            self._converted[value] = Buffer(self._bordered(value, layout, number), layout)
        return self._converted[value]

    def held_layout(self, value: ir.Value) -> Layout:
        """The layout of a value's ``buffer``, which is not made for it."""
        known = self.buffers.get(value) or self._converted.get(value)
        return self.layout(value)[0] if known is None else known.layout

    def layout(self, value: ir.Value) -> tuple[Layout, Parameter | None]:
        """The layout that all readers of a value agree with, and the number in its border."""
        plain = image_layout(value)
        wanted = [each for each in map(_read_by, value.uses) if each is not None and each.number is not None]
        sides = [
            max((getattr(each, side) for each in wanted), default=0) for side in ("top", "left", "bottom", "right")
        ]
        top, left, bottom, right = sides
        bordered = replace(plain, top=top, left=left, bottom=bottom, right=right)
        return bordered, wanted[0].number if wanted else None

    def plain(self, value: ir.Value) -> ir.Value:
        """The i8 or f32 value that a buffer stands for."""
        buffer = self.buffers[value]
        layout, kind = buffer.layout, ir.RankedTensorType(value.type)
        image = unbordered(buffer.value, layout, kind)
        return image if layout.floating else elementwise([image], kind, _flip)

    def _bordered(self, value: ir.Value, layout: Layout, number: Parameter | None) -> ir.Value:
        kind = ir.RankedTensorType(value.type)
        flipped = elementwise([value], kind, _flip)
        image = reshaped(flipped, [layout.images, layout.h, layout.w, layout.c])
        if tuple(image.type.shape) == layout.shape:
            return image
        filling = tensor.extract(self.border(number, ()), [])
        low = [0, layout.top, layout.left, 0]
        high = [0, layout.bottom, layout.right, layout.stride - layout.c]
        return pad(image, low, high, filling)

    # Constants

    def border(self, number: Parameter | None, shape: tuple[int, ...]) -> ir.Value:
        """The byte that fills a border, repeated to a shape."""
        tag = None if number is None else tag_like(number, "border")
        return self.constant(tag, np.full(shape, border_byte(number), np.uint8).view(np.int8))

    def constant(self, tag: str | None, numbers: np.ndarray) -> ir.Value:
        """A constant, tagged if there is a tag."""
        return constant(numbers) if tag is None else parameter(tag, numbers)


def tag_like(given: Parameter, role: str) -> str | None:
    """The tag of another number of the same layer."""
    return None if given.tag is None else f"{given.tag.rpartition('.')[0]}.{role}"


def border_byte(number: Parameter | None) -> int:
    """The u8 that fills a border; 0 where there is none."""
    return 0 if number is None else int(number.numbers) + 128


def makes_tensor(op: ir.Operation) -> bool:
    """Whether an operation has one result, a ranked tensor."""
    return len(op.results) == 1 and isinstance(op.results[0].type, ir.RankedTensorType)


def is_image(value: ir.Value) -> bool:
    """Whether a value is a batch of images: [n, h, w, c] or [n, c]."""
    return ir.RankedTensorType(value.type).rank in (2, 4)


def is_stored(value: ir.Value) -> bool:
    """Whether a value is a batch of images of stored integers."""
    return is_image(value) and str(ir.RankedTensorType(value.type).element_type) == "i8"


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
    return reshaped(value, list(kind.shape))


def reshaped(value: ir.Value, shape: list[int]) -> ir.Value:
    """Change between [n, 1, 1, c] and [n, c], or leave a value as it is."""
    kind = ir.RankedTensorType(value.type)
    if list(kind.shape) == shape:
        return value
    return reshape(value, shape, "[[0], [1, 2, 3]]")


def _read_by(use: ir.OpOperand) -> Padded | None:
    op = use.owner.operation
    if op.name != "tensor.pad":
        return None
    readers = {each.owner.operation.name for each in op.results[0].uses}
    found = padded(op.results[0])
    return None if MAX_POOL in readers or isinstance(found, Missed) else found


def _flip(x: ir.Value) -> ir.Value:
    """Between i8 and the u8 that is 128 larger."""
    i8 = ir.IntegerType.get_signless(8)
    return arith.xori(x, arith.ConstantOp(i8, ir.IntegerAttr.get(i8, -128)).result)
