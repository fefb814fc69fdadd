"""The image that comes in: planes become channels innermost, in f32 or quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlir_passes.cpu.isa import Isa
from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import channel_tiles, widest
from mlir_passes.kernels.work import KernelSpec, moving, over_rows, split_work


@dataclass(frozen=True)
class Transpose(KernelSpec):
    """Planes [n, c, h, w] to images with channels innermost; one to four channels."""

    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: planes, result."""
        y = self.y
        lanes = widest(self.isa.lanes, y.w)
        k, vector = moving([_planes(y)], y, y.images * y.h * y.w * y.c * y.c), f"vector<{lanes}xf32>"
        with _over_planes(k, y, lanes) as (pixel, at):
            loaded = [k.load(0, k.add(pixel, channel * y.h * y.w), vector) for channel in range(y.c)]
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
class Quantize(KernelSpec):
    """f32 planes [n, c, h, w] to u8 images: clamp(roundeven(x / scale) + z, lo, hi). Packed: four channels at most."""

    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: f32 planes, f32[5] scale, lo − z, hi − z, z and border, result."""
        return _QuantizeEmitter(self).text()


class _QuantizeEmitter:
    def __init__(self, spec: Quantize) -> None:
        self.y = y = spec.y
        self.lanes = widest(spec.isa.lanes, y.w)
        rows = y.images * y.h
        bindings = [("f32", rows * y.c * y.w), ("f32", 5), ("i8", y.size)]
        self.k = Kernel(bindings, split_work(rows * y.w * max(4, y.c) * 8, rows))
        self.real, self.whole = f"vector<{self.lanes}xf32>", f"vector<{self.lanes}xi32>"

    def text(self) -> str:
        k, y = self.k, self.y
        self.scale, self.low, self.high, zero = (k.splat(k.scalar(1, i), "f32", self.lanes) for i in range(4))
        self.zero = k.op(f"arith.fptosi {zero} : {self.real} to {self.whole}")
        with _over_planes(k, y, self.lanes, self._border) as (pixel, at):
            if y.packed:
                self._packed(pixel, at)
            else:
                for (start,) in channel_tiles(y.c, 16, 1):
                    self._sixteen(pixel, at, start)
        return k.text()

    def _border(self) -> str:
        whole = self.k.op(f"arith.fptosi {self.k.scalar(1, 4)} : f32 to i32")
        return self.k.splat(self.k.op(f"arith.trunci {whole} : i32 to i8"), "i8", 16)

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


def _planes(y: Layout) -> Layout:
    """Where the image [n, c, h, w] lies that is to become ``y``."""
    return Layout(y.h, y.w, y.c, floating=True, images=y.images)


@contextmanager
def _over_planes(
    k: Kernel, y: Layout, lanes: int, filling: Callable[[], str] | None = None
) -> Iterator[tuple[str, str]]:
    """Loops over all vectors of pixels: where each is in the first plane, and in ``y``. filling: see ``over_rows``."""
    with over_rows(k, _planes(y), y, filling=filling) as (row, (image, result)), k.loop(0, y.w, lanes) as loop:
        column = k.least(loop.index, y.w - lanes)
        at = k.add(k.mul(row, y.pitch), k.mul(column, y.stride), result, y.at())
        yield k.add(k.mul(row, y.w), column, image), at
