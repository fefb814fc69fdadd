"""f32 kernels without weights: the input image, maximum over windows, joined and interleaved channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlir_passes.cpu.isa import Isa
from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import Window, channel_tiles
from mlir_passes.kernels.work import fill_zero_border, in_first_workgroup, over_rows, pixels, split_work


@dataclass(frozen=True)
class _Moves:
    """A kernel that multiplies nothing."""

    @property
    def macs(self) -> int:
        """No multiplications."""
        return 0


@dataclass(frozen=True)
class FloatTranspose(_Moves):
    """Planes [n, c, h, w] to images with channels innermost; one to four channels."""

    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: planes, result."""
        y = self.y
        lanes = float_lanes(self.isa, y.w)
        planes = Layout(y.h, y.w, y.c, floating=True, images=y.images)
        k = _kernel([planes], y, y.c)
        vector = f"vector<{lanes}xf32>"
        with over_rows(k, planes, y) as (row, (image, result)), k.loop(0, y.w, lanes) as loop:
            column = k.least(loop.index, y.w - lanes)
            pixel = k.add(k.mul(row, y.w), column, image)
            loaded = [k.load(0, k.add(pixel, channel * y.h * y.w), vector) for channel in range(y.c)]
            at = k.add(k.mul(row, y.pitch), k.mul(column, y.stride), result, y.at())
            for part in range(y.c):
                k.store(self._interleaved(k, loaded, part, lanes), 1, k.add(at, part * lanes), vector)
        return k.text()

    def _interleaved(self, k: Kernel, planes: list[str], part: int, lanes: int) -> str:
        """One vector of pixels: of each lane its channel's plane, which one shuffle a plane puts in."""
        wanted = [divmod(part * lanes + lane, self.y.c) for lane in range(lanes)]
        joined, vector = planes[0], f"vector<{lanes}xf32>"
        for channel, plane in enumerate(planes):
            kept = [p if channel == 0 else lane for lane, (p, _) in enumerate(wanted)]
            order = [lanes + p if c == channel else old for old, (p, c) in zip(kept, wanted, strict=True)]
            joined = k.op(f"vector.shuffle {joined}, {plane} {order} : {vector}, {vector}")
        return joined


@dataclass(frozen=True)
class FloatMaxPool(_Moves):
    """The maximum of each window. Positions outside the image repeat its edge, which changes no maximum."""

    x: Layout
    y: Layout
    window: Window
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: input, result."""
        x, y, window = self.x, self.y, self.window
        lanes = float_lanes(self.isa, y.c)
        k, vector = _kernel([x], y, math.prod(window.kernel)), f"vector<{lanes}xf32>"
        with over_rows(k, x, y) as (row, (x_image, y_image)):
            rows = _positions(k, row, window.strides[0], window.top, window.kernel[0], x.h)
            rows = [k.add(k.mul(r, x.pitch), x_image, x.at()) for r in rows]
            with k.loop(0, y.w) as column:
                columns = _positions(k, column.index, window.strides[1], window.left, window.kernel[1], x.w)
                pixels = [k.add(r, c) for c in [k.mul(c, x.stride) for c in columns] for r in rows]
                out = k.add(k.mul(row, y.pitch), k.mul(column.index, y.stride), y_image, y.at())
                with k.loop(0, len(channel_tiles(y.c, lanes, 1))) as block:
                    channel = k.least(k.mul(block.index, lanes), y.c - lanes)
                    first, *others = [k.load(0, k.add(pixel, channel), vector) for pixel in pixels]
                    for value in others:
                        # NaN wins, as it does in torch.
                        first = k.op(f"arith.maximumf {first}, {value} : {vector}")
                    k.store(first, 1, k.add(out, channel), vector)
        return k.text()


@dataclass(frozen=True)
class FloatConcat(_Moves):
    """The channels of several tensors of one height and width, one behind the other; of one alone: a copy."""

    inputs: tuple[Layout, ...]
    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: the inputs, result."""
        k = _kernel(self.inputs, self.y, 4)
        with over_rows(k, *self.inputs, self.y) as (row, images), k.loop(0, self.y.w) as column:
            *places, out = pixels(k, row, images, column.index, (*self.inputs, self.y))
            first = 0
            for i, (x, at) in enumerate(zip(self.inputs, places, strict=True)):
                self._copy(k, i, x.c, at, k.add(out, first))
                first += x.c
        return k.text()

    def _copy(self, k: Kernel, binding: int, channels: int, at: str, out: str) -> None:
        lanes = float_lanes(self.isa, channels)
        with k.loop(0, channels, lanes) as block:
            channel = k.least(block.index, channels - lanes)
            value = k.load(binding, k.add(at, channel), f"vector<{lanes}xf32>")
            k.store(value, len(self.inputs), k.add(out, channel), f"vector<{lanes}xf32>")


@dataclass(frozen=True)
class FloatInterleave(_Moves):
    """The channels of two tensors in turn: a channel shuffle of two groups."""

    a: Layout
    b: Layout
    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: the two inputs, result."""
        layouts = (self.a, self.b, self.y)
        k, lanes = _kernel(layouts[:2], self.y, 4), float_lanes(self.isa, self.a.c)
        vector = f"vector<{lanes}xf32>"
        halves = [
            [i for lane in range(start, start + lanes // 2) for i in (lane, lanes + lane)]
            for start in range(0, lanes, max(1, lanes // 2))
        ]
        with (
            over_rows(k, *layouts) as (row, images),
            k.loop(0, self.y.w) as column,
            k.loop(0, self.a.c, lanes) as block,
        ):
            channel = k.least(block.index, self.a.c - lanes)
            a, b, out = pixels(k, row, images, column.index, layouts)
            pair = [k.load(i, k.add(at, channel), vector) for i, at in enumerate((a, b))]
            at = k.add(out, k.mul(channel, 2))
            for half, order in enumerate(halves):
                mixed = k.op(f"vector.shuffle {pair[0]}, {pair[1]} {order} : {vector}, {vector}")
                k.store(mixed, 2, k.add(at, half * lanes), vector)
        return k.text()


def float_lanes(isa: Isa, count: int) -> int:
    """The widest f32 vector that ``count`` numbers fill."""
    return next(n for n in (16, 8, 4, 2, 1) if n <= min(isa.lanes, count))


def _kernel(inputs: Sequence[Layout], y: Layout, work: int) -> Kernel:
    """A kernel with f32 bindings that has filled its result's border. work: of one element of the result."""
    bindings = [("f32", x.size) for x in inputs]
    k = Kernel([*bindings, ("f32", y.size)], split_work(y.images * y.h * y.w * y.c * work, y.images * y.h))
    if y.has_border:
        in_first_workgroup(k, lambda: fill_zero_border(k, len(inputs), y))
    return k


def _positions(k: Kernel, index: str, stride: int, before: int, count: int, size: int) -> list[str]:
    """Input positions of a window's taps along one dimension, moved into the image."""
    start = k.mul(index, stride)
    return [k.least(k.most(k.add(start, tap - before), 0), size - 1) for tap in range(count)]
