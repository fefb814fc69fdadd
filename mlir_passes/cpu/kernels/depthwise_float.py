"""Depthwise convolution in f32: any window, stride and dilation, vectorized over channels.

A tile is some output rows and columns of one vector of channels. Each input vector is loaded once and multiplied into
all sums of the tile that it belongs to. Where a size is no multiple of the tile, the last tile starts earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlir_passes.cpu.kernels.windowed import Windowed
from mlir_passes.kernels.text import Kernel
from mlir_passes.kernels.work import over_rows, split_work

_UNROLLED = 9  # taps; larger windows loop over their rows


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
        return _Emitter(self).text()


class _Emitter:
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
        rows = over_rows(k, x, y, tiles=self.row_tiles, border=lambda: epilogue.fill_border(self.out, y))
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
