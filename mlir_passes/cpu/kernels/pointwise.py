"""Kernels without a window: quantizing the input image, adding two tensors, joining channels."""

from __future__ import annotations

from dataclasses import dataclass

from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.pool import byte_width
from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import channel_tiles
from mlir_passes.kernels.work import fill_border_with, in_first_workgroup, over_rows, pixels, split_work


@dataclass(frozen=True)
class Quantize:
    """f32 planes [n, c, h, w] to u8 images: clamp(roundeven(x / scale) + z, lo, hi). Packed: four channels at most."""

    y: Layout
    isa: Isa

    @property
    def macs(self) -> int:
        """No multiplications."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR; bindings: f32 planes, f32[5] scale, lo − z, hi − z, z and border, result."""
        return _QuantizeEmitter(self).text()


class _QuantizeEmitter:
    def __init__(self, spec: Quantize) -> None:
        self.y = y = spec.y
        self.lanes = max(n for n in (1, 2, 4, 8, 16) if n <= min(y.w, spec.isa.lanes))
        rows = y.images * y.h
        bindings = [("f32", rows * y.c * y.w), ("f32", 5), ("i8", y.size)]
        self.k = Kernel(bindings, split_work(rows * y.w * max(4, y.c) * 8, rows))
        self.real, self.whole = f"vector<{self.lanes}xf32>", f"vector<{self.lanes}xi32>"

    def text(self) -> str:
        k, y = self.k, self.y
        self.scale, self.low, self.high, zero = (k.splat(k.scalar(1, i), "f32", self.lanes) for i in range(4))
        self.zero = k.op(f"arith.fptosi {zero} : {self.real} to {self.whole}")
        if y.has_border:
            border = k.op(f"arith.fptosi {k.scalar(1, 4)} : f32 to i32")
            border = k.splat(k.op(f"arith.trunci {border} : i32 to i8"), "i8", 16)
            in_first_workgroup(k, lambda: fill_border_with(k, border, 2, y))
        planes = Layout(y.h, y.w, y.c, floating=True, images=y.images)
        with (
            over_rows(k, planes, y) as (row, (image, result)),
            k.loop(0, y.w, self.lanes) as loop,
        ):
            column = k.least(loop.index, y.w - self.lanes)
            pixel = k.add(k.mul(row, y.w), column, image)
            at = k.add(k.mul(row, y.pitch), k.mul(column, y.stride), result, y.at())
            if y.packed:
                self._packed(pixel, at)
            else:
                for (start,) in channel_tiles(y.c, 16, 1):
                    self._sixteen(pixel, at, start)
        return k.text()

    def _packed(self, pixel: str, at: str) -> None:
        """All channels of a vector of pixels."""
        k, c, words = self.k, self.y.c, f"vector<{self.lanes * 4}xi8>"
        packed = k.op(f"vector.bitcast {self._word(pixel, 0)} : {self.whole} to {words}")
        order = [4 * p + channel for p in range(self.lanes) for channel in range(c)]
        packed = k.op(f"vector.shuffle {packed}, {packed} {order} : {words}, {words}")
        k.store(packed, 2, at, f"vector<{self.lanes * c}xi8>")

    def _sixteen(self, pixel: str, at: str, start: int) -> None:
        """Sixteen channels of a vector of pixels; those that do not exist become 0."""
        k, lanes, pair = self.k, self.lanes, f"vector<{2 * self.lanes}xi32>"
        words = [self._word(pixel, start + first) for first in range(0, 16, 4)]
        halves = [
            k.op(f"vector.shuffle {a}, {b} {list(range(2 * lanes))} : {self.whole}, {self.whole}")
            for a, b in (words[:2], words[2:])
        ]
        for p in range(lanes):
            order = [p + i * lanes for i in range(4)]
            four = k.op(f"vector.shuffle {halves[0]}, {halves[1]} {order} : {pair}, {pair}")
            sixteen = k.op(f"vector.bitcast {four} : vector<4xi32> to vector<16xi8>")
            k.store(sixteen, 2, k.add(at, p * self.y.stride + start), "vector<16xi8>")

    def _word(self, pixel: str, first: int) -> str:
        """Up to four channels of a vector of pixels, a byte each."""
        k, y = self.k, self.y
        joined = ""
        for channel in range(first, min(first + 4, y.c)):
            value = self._quantized(k.load(0, k.add(pixel, channel * y.h * y.w), self.real))
            if joined:
                shift = k.constant(f"dense<{8 * (channel - first)}>", self.whole)
                value = k.op(f"arith.shli {value}, {shift} : {self.whole}")
                value = k.op(f"arith.ori {joined}, {value} : {self.whole}")
            joined = value
        return joined or k.constant("dense<0>", self.whole)

    def _quantized(self, value: str) -> str:
        k = self.k
        value = k.op(f"arith.divf {value}, {self.scale} : {self.real}")
        # Written so that NaN becomes the lowest integer, in one instruction each.
        for comparison, bound in (("ogt", self.low), ("olt", self.high)):
            inside = k.op(f"arith.cmpf {comparison}, {value}, {bound} : {self.real}")
            value = k.op(f"arith.select {inside}, {value}, {bound} : vector<{self.lanes}xi1>, {self.real}")
        value = k.intrinsic(f"llvm.lrint.v{self.lanes}i32.v{self.lanes}f32", [value], [self.real], self.whole)
        return k.op(f"arith.addi {value}, {self.zero} : {self.whole}")


@dataclass(frozen=True)
class Add:
    """clamp((a·m_a + b·m_b + offset >> shift) + z, lo, hi) of two tensors of one shape."""

    a: Layout
    b: Layout
    y: Layout
    isa: Isa

    @property
    def macs(self) -> int:
        """No multiply-accumulate loop."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR; bindings: i32[8] m_a, m_b, offset, shift, z, lo, hi, border; a; b; result."""
        y, lanes = self.y, self.isa.lanes
        bindings = [("i32", 8), *(("i8", each.size) for each in (self.a, self.b, y))]
        k = Kernel(bindings, split_work(y.images * y.h * y.w * y.c * 8, y.images * y.h))
        scalars = [k.scalar(0, i) for i in range(8)]
        numbers = [k.splat(each, "i32", lanes) for each in scalars[:7]]
        if y.has_border:
            border = k.splat(k.op(f"arith.trunci {scalars[7]} : i32 to i8"), "i8", 16)
            in_first_workgroup(k, lambda: fill_border_with(k, border, 3, y))
        with over_rows(k, self.a, self.b, y) as (row, images):
            places = zip((self.a, self.b, y), images, strict=True)
            rows = [k.add(k.mul(row, each.pitch), image, each.at()) for each, image in places]
            if self.a.stride == self.b.stride == y.stride and self.a.first == self.b.first == 0:
                length = y.w * y.stride  # gaps between pixels are added like the rest
                with k.loop(0, length, lanes) as part:
                    at = k.least(part.index, length - lanes)
                    self._vector(k, numbers, [k.add(start, at) for start in rows])
            else:
                with k.loop(0, y.w) as column, k.loop(0, len(channel_tiles(y.c, lanes, 1))) as block:
                    channel = k.least(k.mul(block.index, lanes), max(y.c - lanes, 0))
                    strides = [k.mul(column.index, each.stride) for each in (self.a, self.b, y)]
                    places = zip(rows, strides, strict=True)
                    self._vector(k, numbers, [k.add(start, stride, channel) for start, stride in places])
        return k.text()

    def _vector(self, k: Kernel, numbers: list[str], places: list[str]) -> None:
        """Add one vector. places: of a, b and the result."""
        narrow, wide = f"vector<{self.isa.lanes}xi8>", f"vector<{self.isa.lanes}xi32>"
        m_a, m_b, offset, shift, zero, low, high = numbers
        products = []
        for binding, factor in ((1, m_a), (2, m_b)):
            value = k.op(f"arith.extui {k.load(binding, places[binding - 1], narrow)} : {narrow} to {wide}")
            products.append(k.op(f"arith.muli {value}, {factor} : {wide}"))
        total = k.op(f"arith.addi {products[0]}, {products[1]} : {wide}")
        for name, other in (("addi", offset), ("shrsi", shift), ("addi", zero), ("maxsi", low), ("minsi", high)):
            total = k.op(f"arith.{name} {total}, {other} : {wide}")
        k.store(k.op(f"arith.trunci {total} : {wide} to {narrow}"), 3, places[2], narrow)


@dataclass(frozen=True)
class Interleave:
    """The channels of two tensors in turn: a channel shuffle of two groups."""

    a: Layout
    b: Layout
    y: Layout
    isa: Isa

    @property
    def macs(self) -> int:
        """No multiplications."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR; bindings: the two inputs, 16 border bytes, result."""
        y, width = self.y, byte_width(self.isa, self.a.c)
        k = Kernel([*(("i8", each.size) for each in (self.a, self.b)), ("i8", 16), ("i8", y.size)],
                   split_work(y.size * 8, y.images * y.h))  # fmt: skip
        narrow, wide = f"vector<{width}xi8>", f"vector<{2 * width}xi8>"
        order = [i for channel in range(width) for i in (channel, width + channel)]
        if y.has_border:
            value = k.load(2, k.index(0), "vector<16xi8>")
            in_first_workgroup(k, lambda: fill_border_with(k, value, 3, y))
        layouts = self.a, self.b, y
        with over_rows(k, *layouts) as (row, images), k.loop(0, y.w) as column:
            a, b, out = pixels(k, row, images, column.index, layouts)
            for (start,) in channel_tiles(self.a.c, width, 1):
                pair = k.load(0, k.add(a, start), narrow), k.load(1, k.add(b, start), narrow)
                both = k.op(f"vector.shuffle {', '.join(pair)} {order} : {narrow}, {narrow}")
                k.store(both, 3, k.add(out, 2 * start), wide)
        return k.text()


@dataclass(frozen=True)
class Concat:
    """The channels of several tensors of one height and width, one behind the other; of one alone: a copy."""

    inputs: tuple[Layout, ...]
    y: Layout
    isa: Isa

    @property
    def macs(self) -> int:
        """No multiplications."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR; bindings: the inputs, 16 border bytes, result."""
        y, count = self.y, len(self.inputs)
        bindings = [*(("i8", x.size) for x in self.inputs), ("i8", 16), ("i8", y.size)]
        k = Kernel(bindings, split_work(y.size * 8, y.images * y.h))
        if y.has_border:
            value = k.load(count, k.index(0), "vector<16xi8>")
            in_first_workgroup(k, lambda: fill_border_with(k, value, count + 1, y))
        layouts = *self.inputs, y
        with over_rows(k, *layouts) as (row, images), k.loop(0, y.w) as column:
            *places, out = pixels(k, row, images, column.index, layouts)
            first = 0
            for i, (x, at) in enumerate(zip(self.inputs, places, strict=True)):
                # Never a byte beyond the input's channels: what follows them in the result is another's.
                width = next(w for w in (64, 32, 16, 8, 4, 2, 1) if w <= min(x.c, self.isa.width))
                for (start,) in channel_tiles(x.c, width, 1):
                    value = k.load(i, k.add(at, start), f"vector<{width}xi8>")
                    k.store(value, count + 1, k.add(out, first + start), f"vector<{width}xi8>")
                first += x.c
        return k.text()
