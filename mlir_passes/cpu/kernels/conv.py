"""Dense convolution u8 x s8 or f32 as an implicit matrix product: any window, stride and dilation, matrix-vector too.

A workgroup has a range of row tiles and of channel tiles. A tile is R rows x P columns x NB blocks of one vector of
output channels, all its accumulators in registers. Each step takes four input channels (in f32 one) of one tap: P·R
broadcasts, NB vectors of weights, and their products. Where a size is no multiple of the tile, the last tile starts
earlier and computes a part again: the same numbers, and no remainder code.

With groups, a tile takes its steps over the channels that its own groups read, and weights are 0 where a channel of
the result is of another group. Tiles stay within a group that fills a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlir_passes.cpu.kernels.windowed import Windowed
from mlir_passes.cpu.tiles import Tile, reach
from mlir_passes.kernels.text import Kernel
from mlir_passes.kernels.windows import channel_tiles
from mlir_passes.kernels.work import fill_border, split_work, work_range

_FEW_WEIGHTS = 16 << 10
_AHEAD = 8 << 10
"""Where more weights than ``_FEW_WEIGHTS`` stream past, how far ahead of their use they are asked for, in elements."""


@dataclass(frozen=True)
class Conv(Windowed):
    """One convolution: also its tile, and into how many groups it falls."""

    tile: Tile
    groups: int = 1

    @property
    def group(self) -> int:
        """Input channels that one step takes."""
        return self.form.group

    @property
    def quads(self) -> int:
        """Groups of input channels that a tile reads of each pixel."""
        return -(-reach(self.x.c, self.y.c, self.groups, self.starts, self.isa.lanes) // self.group)

    @property
    def merged(self) -> bool:
        """Whether the taps of one row of the window and their channels are one run of memory."""
        return self.window.dilations[1] == 1 and self.x.stride <= self.quads * self.group

    @property
    def tap(self) -> int:
        """Numbers from one tap's first channel to the next one's, as the kernel reads a row of the window."""
        return self.x.stride if self.merged else self.quads * self.group

    @property
    def row_steps(self) -> int:
        """Groups of input channels in one row of the window; taps of few packed channels share some."""
        return -(-self.window.kernel[1] * self.tap // self.group)

    @property
    def steps(self) -> int:
        """Groups of input channels over the whole window."""
        return self.window.kernel[0] * self.row_steps

    @property
    def unit(self) -> int:
        """Channels of the result that are tiled on their own: a group's if they fill a vector, else all."""
        own = self.y.c // self.groups
        return own if own >= self.isa.lanes else self.y.c

    @property
    def starts(self) -> list[list[int]]:
        """First channel of each block of each channel tile; the last of both may overlap the one before."""
        tiles = channel_tiles(self.unit, self.isa.lanes, self.tile.blocks)
        return [[unit + start for start in tile] for unit in range(0, self.y.c, self.unit) for tile in tiles]

    @property
    def last_source(self) -> int:
        """The last input channel at which a tile may begin to read without leaving the pixel."""
        return -(-self.x.c // self.group) * self.group - self.quads * self.group

    @property
    def macs(self) -> int:
        """Multiplications of one call."""
        return super().macs * self.x.c // self.groups

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Weights [kh, kw, ci of a group, co] in the order in which the kernel reads them."""
        kh, kw, ci, co = weight.shape
        lanes, group, own = self.isa.lanes, self.group, co // self.groups
        blocks = np.zeros((len(self.starts), self.tile.blocks, kh, self.row_steps * group, lanes), weight.dtype)
        for t, tile in enumerate(self.starts):
            source = min(tile[0] // own * ci, self.last_source)
            for n, start in enumerate(tile):
                end = min(start + lanes, co)
                for part in range(start // own, -(-end // own)):
                    low, high, first = max(start, part * own), min(end, (part + 1) * own), part * ci - source
                    for tap in range(kw):
                        row = tap * self.tap + first
                        blocks[t, n, :, row : row + ci, low - start : high - start] = weight[:, tap, :, low:high]
        split = blocks.reshape(len(self.starts), self.tile.blocks, kh, self.row_steps, group, lanes)
        return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 5, 4)).reshape(-1)

    def text(self) -> str:
        """The kernel's MLIR."""
        return _Emitter(self).text()


class _Emitter:
    def __init__(self, conv: Conv) -> None:
        self.conv = conv
        y, tile, self.lanes = conv.y, conv.tile, conv.lanes
        channels = len(conv.starts) * tile.blocks * self.lanes
        weights = conv.steps * channels * conv.group
        bindings = conv.bindings(channels, weights)
        self.out = len(bindings) - 1
        self.row_tiles, self.channel_tiles = -(-y.h // tile.rows), len(conv.starts)
        self.all_row_tiles = y.images * self.row_tiles
        self.k = Kernel(bindings, split_work(conv.macs, self.all_row_tiles, self.channel_tiles))
        self.accs = [(r, p, n) for r in range(tile.rows) for p in range(tile.columns) for n in range(tile.blocks)]

    def text(self) -> str:
        k, conv = self.k, self.conv
        self.epilogue = conv.form.epilogue(k, 2, self.lanes)
        fill_border(k, conv.y, self.epilogue.border)
        rows = work_range(k, "%wgx", self.all_row_tiles, k.workgroups[0])
        channels = work_range(k, "%wgy", self.channel_tiles, k.workgroups[1])
        # Few weights stay in the first cache while rows pass; many are passed over once per range of rows.
        nested = (rows, channels) if k.bindings[1][1] * 4 // conv.group <= 24 << 10 else (channels, rows)
        with k.loop(*nested[0]) as outer, k.loop(*nested[1]) as inner:
            row, channel = (outer.index, inner.index) if nested[0] is rows else (inner.index, outer.index)
            self._row_tile(row, channel)
        return k.text()

    def _row_tile(self, row_tile: str, channel_tile: str) -> None:
        k, tile, y = self.k, self.conv.tile, self.conv.y
        row_tile, self.images = k.split_rows(row_tile, self.row_tiles, self.conv.x, y, self.conv.form.residual or y)
        row = k.least(k.mul(row_tile, tile.rows), y.h - tile.rows)
        blocks = k.mul(channel_tile, tile.blocks * self.lanes)
        channels = self._channels(channel_tile)
        self.source: str | int = 0
        if self.conv.groups > 1:
            own = k.op(f"arith.divui {channels[0]}, {k.index(y.c // self.conv.groups)} : index")
            self.source = k.least(k.mul(own, self.conv.x.c // self.conv.groups), self.conv.last_source)
        biases = [self.epilogue.bias(k.add(blocks, n * self.lanes)) for n in range(tile.blocks)]
        scales = [self.epilogue.scale(k.add(blocks, n * self.lanes)) for n in range(tile.blocks)]
        with k.loop(0, y.w, tile.columns) as loop:
            column = k.least(loop.index, y.w - tile.columns)
            accs = self._accumulate(row, column, channel_tile, biases)
            self._finish(row, column, channels, scales, accs)

    def _channels(self, channel_tile: str) -> list[str]:
        """The first channel of each block of a tile."""
        k, blocks, unit = self.k, self.conv.tile.blocks, self.conv.unit
        base: str | int = 0
        if unit < self.conv.y.c:
            count = k.index(self.channel_tiles * unit // self.conv.y.c)
            base = k.mul(k.op(f"arith.divui {channel_tile}, {count} : index"), unit)
            channel_tile = k.op(f"arith.remui {channel_tile}, {count} : index")
        first = k.least(k.mul(channel_tile, blocks), -(-unit // self.lanes) - blocks)
        limit = max(unit - self.lanes, 0)
        return [k.add(k.least(k.mul(k.add(first, n), self.lanes), limit), base) for n in range(blocks)]

    def _accumulate(self, row: str, column: str, channel_tile: str, biases: list[str]) -> list[str]:
        k, conv = self.k, self.conv
        x, window, group = conv.x, conv.window, conv.group
        kh, kw = window.kernel
        start = k.add(
            k.mul(row, window.strides[0] * x.pitch),
            k.mul(column, window.strides[1] * x.stride),
            self.images[0],
            self.source,
            x.at(-window.top, -window.left),
        )
        weight = k.mul(channel_tile, conv.steps * self._step_size)
        values, kind = [biases[n] for _, _, n in self.accs], f"vector<{self.lanes}x{conv.form.accumulator}>"
        loops = [(kh, window.dilations[0] * x.pitch, conv.row_steps)]
        if conv.merged:
            loops.append((conv.row_steps, group, 1))
        else:
            loops += [(kw, window.dilations[1] * x.stride, conv.quads), (conv.quads, group, 1)]
        loops = [each for each in loops if each[0] > 1] or [(1, group, 1)]
        return self._nest(loops, start, weight, values, kind)

    def _nest(self, loops: list[tuple[int, int, int]], x: str, weight: str, values: list[str], kind: str) -> list[str]:
        k = self.k
        if not loops:
            return self._step(x, weight, values)
        (count, x_step, w_step), *inner = loops
        with k.loop(0, count, 1, values, kind) as loop:
            x_at = k.add(x, k.mul(loop.index, x_step))
            w_at = k.add(weight, k.mul(loop.index, w_step * self._step_size))
            loop.values = self._nest(inner, x_at, w_at, loop.values, kind)
        return loop.values

    @property
    def _step_size(self) -> int:
        return self.conv.tile.blocks * self.lanes * self.conv.group

    def _step(self, x: str, weight: str, accs: list[str]) -> list[str]:
        k, conv = self.k, self.conv
        sh, sw = conv.window.strides
        kind = f"vector<{self.lanes * conv.group}x{conv.form.input_element}>"
        weights = [k.load(1, k.add(weight, n * self.lanes * conv.group), kind) for n in range(conv.tile.blocks)]
        if self.k.bindings[1][1] > _FEW_WEIGHTS:
            for n in range(conv.tile.blocks):
                k.prefetch(1, k.add(weight, n * self.lanes * conv.group + _AHEAD))
        # In the order of use: the compiler keeps it, and one broadcast at a time leaves the registers to the sums.
        added = dict[tuple[int, int, int], str]()
        for r, p in dict.fromkeys((r, p) for r, p, _ in self.accs):
            pixel = self._broadcast(k.add(x, r * sh * conv.x.pitch + p * sw * conv.x.stride))
            for n, factor in enumerate(weights):
                acc = accs[self.accs.index((r, p, n))]
                added[r, p, n] = self._multiply_add(acc, pixel, factor)
        return [added[each] for each in self.accs]

    def _broadcast(self, at: str) -> str:
        """The input of one step and pixel, in all lanes."""
        k = self.k
        if self.conv.group == 1:
            return k.splat(k.op(f"memref.load %m0[{at}] : {k.memory(0)}"), "f32", self.lanes)
        four = k.op(f"vector.bitcast {k.load(0, at, 'vector<4xi8>')} : vector<4xi8> to vector<1xi32>")
        splat = k.splat(k.op(f"vector.extract {four}[0] : i32 from vector<1xi32>"), "i32", self.lanes)
        return k.op(f"vector.bitcast {splat} : vector<{self.lanes}xi32> to vector<{self.lanes * 4}xi8>")

    def _multiply_add(self, acc: str, pixel: str, weight: str) -> str:
        if self.conv.group == 1:
            return self.k.op(f"vector.fma {pixel}, {weight}, {acc} : vector<{self.lanes}xf32>")
        return self.conv.isa.multiply_add(self.k, acc, pixel, weight, self.lanes * 4)

    def _finish(self, row: str, column: str, channels: list[str], scales: list[str], accs: list[str]) -> None:
        k, conv = self.k, self.conv
        y, residual = conv.y, conv.form.residual
        base = k.add(k.mul(row, y.pitch), k.mul(column, y.stride), self.images[1], y.at())
        other = ""
        if residual is not None:
            at = k.mul(row, residual.pitch), k.mul(column, residual.stride)
            other = k.add(*at, self.images[2], residual.at())
        for (r, p, n), acc in zip(self.accs, accs, strict=True):
            added = None
            if residual is not None:
                at = k.add(other, channels[n], r * residual.pitch + p * residual.stride)
                added = k.load(self.out - 1, at, f"vector<{self.lanes}x{conv.form.input_element}>")
            value = self.epilogue.finish(acc, scales[n], added)
            self.epilogue.store(value, self.out, k.add(base, channels[n], r * y.pitch + p * y.stride))
