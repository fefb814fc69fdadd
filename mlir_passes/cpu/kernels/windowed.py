"""What kernels that slide a window share: dense and depthwise convolutions, sums over windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.epilogue import FloatForm, Form
from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import Window, channel_tiles, gather_channels, widest
from mlir_passes.kernels.work import KernelSpec


@dataclass(frozen=True)
class Windowed(KernelSpec):
    """Input and result layouts, window, and how the kernel ends."""

    x: Layout
    y: Layout
    window: Window
    form: Form | FloatForm
    isa: Isa

    @property
    def lanes(self) -> int:
        """Channels of a block."""
        return self.isa.lanes if self.form.accumulator == "i32" else widest(self.isa.lanes, self.y.c)

    @property
    def starts(self) -> list[list[int]]:
        """First channel of each block of each channel tile; the last of both may overlap the one before."""
        return channel_tiles(self.y.c, self.lanes, 1)

    @property
    def macs(self) -> int:
        """Multiplications of one call; each channel of the result has a window of one channel."""
        return self.y.images * self.y.h * self.y.w * self.y.c * math.prod(self.window.kernel)

    def pack_channels(self, values: np.ndarray) -> np.ndarray:
        """Numbers a channel in the order of the blocks."""
        return gather_channels(values, self.starts, self.lanes)

    def bindings(self, channels: int, weights: int | None = None) -> list[tuple[str, int]]:
        """Input, weights, those of the form with ``channels`` numbers a channel, result."""
        form = self.form
        before = [(form.input_element, count) for count in (self.x.size, weights) if count is not None]
        return [*before, *form.bindings(channels), (form.result_element, self.y.size)]

    def places(
        self, k: Kernel, row: str, column: str, images: list[str | int], channel: str | int = 0
    ) -> tuple[str, str]:
        """Where the window of a pixel of the result begins in the input, and where that pixel is in the result."""
        x, y, strides = self.x, self.y, self.window.strides
        corner = k.mul(row, strides[0] * x.pitch), k.mul(column, strides[1] * x.stride)
        start = k.add(*corner, channel, images[0], x.at(-self.window.top, -self.window.left))
        return start, k.add(k.mul(row, y.pitch), k.mul(column, y.stride), channel, images[1], y.at())
