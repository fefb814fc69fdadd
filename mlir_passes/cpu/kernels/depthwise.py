"""Depthwise convolution u8 x s8 or f32: any window, stride and dilation, vectorized over channels.

u8 x s8: four taps of one row are interleaved byte by byte, so that every i32 lane holds one channel's taps and one dot
product instruction multiplies and adds them: unpacking pairs of bytes, then pairs of pairs. Within each 128-bit lane
this permutes the channels over the four accumulators; bias and multipliers are stored in that order, and packing the
results back to bytes undoes it. Several output rows at a time share the interleaved input rows.

f32: a tile is some output rows and columns of one vector of channels. Each input vector is loaded once and multiplied
into all sums of the tile that it belongs to. Where a size is no multiple of the tile, the last tile starts earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlir_passes.cpu.kernels.windowed import Windowed
from mlir_passes.kernels.text import Kernel
from mlir_passes.kernels.windows import channel_tiles, widest
from mlir_passes.kernels.work import over_rows, split_work

_UNROLLED = 9  # taps in f32; larger windows loop over their rows


@dataclass(frozen=True)
class Depthwise(Windowed):
    """One depthwise convolution of stored integers."""

    @property
    def pixels(self) -> int:
        """Neighbouring columns in a block: several where the channels alone do not fill a vector."""
        count, rest = divmod(self.isa.width, self.y.c)
        close = self.window.strides[1] == 1 and self.x.stride == self.y.stride == self.y.c
        return count if close and not rest and count <= self.y.w else 1

    @property
    def width(self) -> int:
        """Bytes in a block: one vector of channels."""
        if self.pixels > 1:
            return self.isa.width
        return max(16, widest(self.isa.width, self.y.c))

    @property
    def rows(self) -> int:
        """Output rows of a tile."""
        most = 4 if self.isa.registers > 16 else 2
        return min(range(1, min(most, self.y.h) + 1), key=lambda r: (-(-self.y.h // r) * (r + 1), r))

    @property
    def starts(self) -> list[list[int]]:
        """First channel of each block; the last may overlap the one before."""
        return channel_tiles(self.y.c, self.width, 1)

    @property
    def groups(self) -> int:
        """Groups of four taps in a row of the window."""
        return -(-self.window.kernel[1] // 4)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's weights."""
        return self.window.kernel[0] * self.groups * 4 * self.width

    def _order(self) -> np.ndarray:
        """Channel of each lane: [accumulator, lane]."""
        lane = np.arange(self.width // 16)[None, :, None] * 16
        return (lane + np.arange(4)[:, None, None] * 4 + np.arange(4)).reshape(4, -1)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Weights i8[kh, kw, c] as [block][row][group][accumulator][lane][tap]."""
        kh, kw, c = weight.shape
        padded = np.zeros((kh, self.groups * 4, max(c * self.pixels, self.width)), np.int8)
        padded[:, :kw, : c * self.pixels] = np.tile(weight, self.pixels)
        split = padded.reshape(kh, self.groups, 4, -1).transpose(0, 1, 3, 2)
        return np.concatenate([split[:, :, s + self._order()].reshape(-1) for (s,) in self.starts])

    def pack_channels(self, values: np.ndarray) -> np.ndarray:
        """Numbers a channel as [block][accumulator][lane]."""
        values = np.tile(values, self.pixels)
        padded = np.concatenate([values, np.zeros(max(0, self.width - len(values)), values.dtype)])
        return np.concatenate([padded[s + self._order()].reshape(-1) for (s,) in self.starts])

    def text(self) -> str:
        """The kernel's MLIR."""
        return _Emitter(self).text()


class _Emitter:
    def __init__(self, conv: Depthwise) -> None:
        self.conv = conv
        blocks, self.width = len(conv.starts), conv.width
        channels = blocks * self.width
        bindings = conv.bindings(channels, blocks * conv.block_bytes)
        self.out = len(bindings) - 1
        self.row_tiles = -(-conv.y.h // conv.rows)
        # One of these multiplications costs about as much as eight of a dense convolution's.
        self.k = Kernel(bindings, split_work(conv.macs * 8, conv.y.images * self.row_tiles))
        self.bytes, self.sums = f"vector<{self.width}xi8>", f"vector<{self.width // 4}xi32>"

    def text(self) -> str:
        k, conv = self.k, self.conv
        y, x, window = conv.y, conv.x, conv.window
        self.epilogue = conv.form.epilogue(k, 2, self.width // 4)
        rows = over_rows(k, x, y, tiles=self.row_tiles, filling=self.epilogue.border)
        with rows as (row_tile, (x_image, y_image)), k.loop(0, len(conv.starts)) as block:
            row = k.least(k.mul(row_tile, conv.rows), y.h - conv.rows)
            channel = k.least(k.mul(block.index, self.width), max(y.c - self.width, 0))
            numbers = k.mul(block.index, self.width)
            parts = [k.add(numbers, j * self.width // 4) for j in range(4)]
            biases, scales = [self.epilogue.bias(at) for at in parts], [self.epilogue.scale(at) for at in parts]
            weight = k.mul(block.index, conv.block_bytes)
            x_row = k.add(k.mul(row, window.strides[0] * x.pitch), channel, x_image, x.at(-window.top, -window.left))
            y_row = k.add(k.mul(row, y.pitch), channel, y_image, y.at())
            with k.loop(0, y.w, conv.pixels) as loop:
                column = k.least(loop.index, y.w - conv.pixels) if conv.pixels > 1 else loop.index
                x_at = k.add(x_row, k.mul(column, window.strides[1] * x.stride))
                accs = self._accumulate(x_at, weight, biases)
                y_at = k.add(y_row, k.mul(column, y.stride))
                for r, sums in enumerate(accs):
                    self._store([self.epilogue.finish(s, m) for s, m in zip(sums, scales, strict=True)],
                                k.add(y_at, r * y.pitch))  # fmt: skip
        return k.text()

    def _accumulate(self, x_at: str, weight: str, biases: list[str]) -> list[list[str]]:
        k, conv, window = self.k, self.conv, self.conv.window
        accs = [list(biases) for _ in range(conv.rows)]
        readers: dict[int, list[tuple[int, int]]] = {}
        for r in range(conv.rows):
            for kh in range(window.kernel[0]):
                readers.setdefault(r * window.strides[0] + kh * window.dilations[0], []).append((r, kh))
        for input_row, pairs in sorted(readers.items()):
            for group in range(conv.groups):
                quads = self._interleaved(k.add(x_at, input_row * conv.x.pitch), group)
                for r, kh in pairs:
                    for j, quad in enumerate(quads):
                        at = k.add(weight, ((kh * conv.groups + group) * 4 + j) * self.width)
                        factor = k.load(1, at, self.bytes)
                        accs[r][j] = conv.isa.multiply_add(k, accs[r][j], quad, factor, self.width)
        return accs

    def _interleaved(self, row: str, group: int) -> list[str]:
        """Four vectors whose i32 lanes hold one channel's four taps each."""
        k, window = self.k, self.conv.window
        step = window.dilations[1] * self.conv.x.stride
        none = k.constant("dense<0>", self.bytes)
        taps = [
            k.load(0, k.add(row, tap * step), self.bytes) if tap < window.kernel[1] else none
            for tap in range(group * 4, group * 4 + 4)
        ]
        words = f"vector<{self.width // 2}xi16>"
        halves = []
        for high in (False, True):
            pairs = [self._unpack(taps[i], taps[i + 1], "i8", self.width, high=high) for i in (0, 2)]
            halves.append([k.op(f"vector.bitcast {pair} : {self.bytes} to {words}") for pair in pairs])
        return [
            k.op(f"vector.bitcast {self._unpack(a, b, 'i16', self.width // 2, high=high)} : {words} to {self.bytes}")
            for a, b in halves
            for high in (False, True)
        ]

    def _unpack(self, a: str, b: str, kind: str, count: int, *, high: bool) -> str:
        """Elements of ``a`` and ``b`` in turn, from the low or high half of every 128-bit lane."""
        lane = 16 if kind == "i8" else 8
        first = lane // 2 if high else 0
        picked = [start + e for start in range(0, count, lane) for e in range(first, first + lane // 2)]
        order = [i for e in picked for i in (e, count + e)]
        vector = f"vector<{count}x{kind}>"
        return self.k.op(f"vector.shuffle {a}, {b} {order} : {vector}, {vector}")

    def _store(self, values: list[str], at: str) -> None:
        if self.conv.form.result_element == "f32":
            self._store_real(values, at)
            return
        narrow = self.conv.isa.narrow(self.k, values, self.width)
        self.k.store(narrow, self.out, at, self.bytes)

    def _store_real(self, values: list[str], at: str) -> None:
        """Store f32 results, four neighbouring channels at a time: what one accumulator has in a 128-bit lane."""
        k, lanes = self.k, self.width // 4
        for j, value in enumerate(values):
            for first in range(0, lanes, 4):
                vector = f"vector<{lanes}xf32>"
                four = k.op(f"vector.shuffle {value}, {value} {list(range(first, first + 4))} : {vector}, {vector}")
                k.store(four, self.out, k.add(at, first * 4 + j * 4), "vector<4xf32>")


@dataclass(frozen=True)
class FloatDepthwise(Windowed):
    """One depthwise convolution in f32."""

    @property
    def rows(self) -> int:
        """Output rows of a tile."""
        unrolled = math.prod(self.window.kernel) <= _UNROLLED
        return min(2, self.y.h) if unrolled and self.window.dilations[0] == 1 else 1

    @property
    def columns(self) -> int:
        """Output columns of a tile."""
        return min(4 if self.isa.registers > 16 else 2, self.y.w)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Weights f32[kh, kw, c] as [block][kh][kw][lane]."""
        return np.concatenate([weight[:, :, s : s + self.lanes].reshape(-1) for (s,) in self.starts])

    def text(self) -> str:
        """The kernel's MLIR."""
        return _FloatEmitter(self).text()


class _FloatEmitter:
    def __init__(self, conv: FloatDepthwise) -> None:
        self.conv, self.lanes = conv, conv.lanes
        channels = len(conv.starts) * conv.lanes
        weights = channels * math.prod(conv.window.kernel)
        bindings = conv.bindings(channels, weights)
        self.out = len(bindings) - 1
        self.row_tiles = -(-conv.y.h // conv.rows)
        # One of these multiplications costs about as much as two of a dense convolution's.
        self.k = Kernel(bindings, split_work(conv.macs * 2, conv.y.images * self.row_tiles))
        self.vector = f"vector<{self.lanes}xf32>"

    def text(self) -> str:
        k, conv, lanes = self.k, self.conv, self.lanes
        x, y = conv.x, conv.y
        epilogue = conv.form.epilogue(k, 2, lanes)
        rows = over_rows(k, x, y, tiles=self.row_tiles, filling=epilogue.border)
        with (
            rows as (tile, images),
            k.loop(0, y.w, conv.columns) as start,
            k.loop(0, len(conv.starts)) as block,
        ):
            row = k.least(k.mul(tile, conv.rows), y.h - conv.rows)
            column = k.least(start.index, y.w - conv.columns)
            channel = k.least(k.mul(block.index, lanes), y.c - lanes)
            x_at, at = conv.places(k, row, column, images, channel)
            weight = k.mul(block.index, lanes * math.prod(conv.window.kernel))
            bias = epilogue.bias(k.mul(block.index, lanes))
            sums = self._sums(x_at, weight, bias)
            for (r, p), value in sums.items():
                epilogue.store(epilogue.finish(value, ""), self.out, k.add(at, r * y.pitch + p * y.stride))
        return k.text()

    def _sums(self, x: str, weight: str, bias: str) -> dict[tuple[int, int], str]:
        """Each output of the tile: its sum."""
        k, conv = self.k, self.conv
        kh, kw = conv.window.kernel
        sums = {(r, p): bias for r in range(conv.rows) for p in range(conv.columns)}
        if kh * kw <= _UNROLLED:
            return self._window_rows(x, weight, kh, sums)
        with k.loop(0, kh, 1, list(sums.values()), self.vector) as loop:
            x_row = k.add(x, k.mul(loop.index, conv.window.dilations[0] * conv.x.pitch))
            w_row = k.add(weight, k.mul(loop.index, kw * self.lanes))
            now = dict(zip(sums, loop.values, strict=True))
            loop.values = list(self._window_rows(x_row, w_row, 1, now).values())
        return dict(zip(sums, loop.values, strict=True))

    def _window_rows(
        self, x: str, weight: str, count: int, sums: dict[tuple[int, int], str]
    ) -> dict[tuple[int, int], str]:
        """Add what ``count`` rows of the window contribute."""
        k, conv = self.k, self.conv
        (sh, sw), (dh, dw) = conv.window.strides, conv.window.dilations
        kw = conv.window.kernel[1]
        taps = [(i, j) for i in range(count) for j in range(kw)]
        factors = {(i, j): k.load(1, k.add(weight, (i * kw + j) * self.lanes), self.vector) for i, j in taps}
        readers: dict[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int]]]] = {}
        for r, p in sums:
            for i, j in taps:
                readers.setdefault((r * sh + i * dh, p * sw + j * dw), []).append(((r, p), (i, j)))
        for (row, column), pairs in sorted(readers.items()):
            value = k.load(0, k.add(x, row * conv.x.pitch + column * conv.x.stride), self.vector)
            for output, tap in pairs:
                sums[output] = k.op(f"vector.fma {value}, {factors[tap]}, {sums[output]} : {self.vector}")
        return sums
