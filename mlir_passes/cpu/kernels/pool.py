"""Maximum and sum over windows, vectorized over channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.windowed import Windowed
from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import Window, channel_tiles
from mlir_passes.kernels.work import KernelSpec, moved_rows, moving, over_rows, split_work


@dataclass(frozen=True)
class MaxPool(KernelSpec):
    """The maximum of each window. Positions outside the image repeat one of the window in it: no maximum changes."""

    x: Layout
    y: Layout
    window: Window
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: see ``moving``."""
        x, y, window, width = self.x, self.y, self.window, self.isa.fitting(self.y)
        k = moving([x], y, y.images * y.h * y.w * y.c * math.prod(window.kernel))
        # Of f32 NaN wins, as it does in torch.
        kind, larger = f"vector<{width}x{y.element}>", "maximumf" if y.floating else "maxui"
        with moved_rows(k, [x], y) as (row, (x_image, y_image)):
            rows = [k.add(k.mul(r, x.pitch), x_image, x.at()) for r in _positions(k, row, window, 0, x.h)]
            with k.loop(0, y.w) as column:
                columns = [k.mul(c, x.stride) for c in _positions(k, column.index, window, 1, x.w)]
                places = [k.add(r, c) for r in rows for c in columns]
                out = k.add(k.mul(row, y.pitch), k.mul(column.index, y.stride), y_image, y.at())
                with k.loop(0, len(channel_tiles(y.c, width, 1))) as block:
                    channel = k.least(k.mul(block.index, width), max(y.c - width, 0))
                    best, *others = [k.load(0, k.add(place, channel), kind) for place in places]
                    for value in others:
                        best = k.op(f"arith.{larger} {best}, {value} : {kind}")
                    k.store(best, len(k.bindings) - 1, k.add(out, channel), kind)
        return k.text()


class SumPool(Windowed):
    """The sum of each window, and what its form makes of it; the whole image is one window too."""

    @property
    def macs(self) -> int:
        """No multiplications."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR."""
        x, y, window, lanes, form = self.x, self.y, self.window, self.lanes, self.form
        bindings = self.bindings(len(self.starts) * lanes)
        out = len(bindings) - 1
        k = Kernel(bindings, split_work(y.images * y.h * y.w * y.c * math.prod(window.kernel), y.images * y.h))
        epilogue = form.epilogue(k, 1, lanes)
        read, kind = (f"vector<{lanes}x{each}>" for each in (form.input_element, form.accumulator))
        with (
            over_rows(k, x, y, filling=epilogue.border) as (row, images),
            k.loop(0, y.w) as column,
            k.loop(0, len(self.starts)) as block,
        ):
            numbers = k.mul(block.index, lanes)
            channel = k.least(numbers, max(y.c - lanes, 0))
            start, to = self.places(k, row, column.index, images, channel)
            with k.loop(0, window.kernel[0], 1, [epilogue.bias(numbers)], kind) as kh:
                at = k.add(start, k.mul(kh.index, window.dilations[0] * x.pitch))
                with k.loop(0, window.kernel[1], 1, kh.values, kind) as kw:
                    value = k.load(0, k.add(at, k.mul(kw.index, window.dilations[1] * x.stride)), read)
                    if not x.floating:
                        value = k.op(f"arith.extui {value} : {read} to {kind}")
                    kw.values = [k.op(f"arith.add{'f' if x.floating else 'i'} {kw.values[0]}, {value} : {kind}")]
                kh.values = kw.values
            epilogue.store(epilogue.finish(kh.values[0], epilogue.scale(numbers)), out, to)
        return k.text()


def overlaps_everywhere(window: Window, x: Layout, y: Layout) -> bool:
    """Whether every window of a pool holds at least one position of the image."""
    for axis, (size, before, count) in enumerate(((x.h, window.top, y.h), (x.w, window.left, y.w))):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis] - before
        places = np.arange(count)[:, None] * window.strides[axis] + taps
        if not ((places >= 0) & (places < size)).any(axis=1).all():
            return False
    return True


def _positions(k: Kernel, index: str, window: Window, axis: int, size: int) -> list[str]:
    """Input positions of a window's taps along one dimension, moved to the nearest one of them in the image."""
    count, gap, before = window.kernel[axis], window.dilations[axis], (window.top, window.left)[axis]
    start = k.mul(index, window.strides[axis])
    places = [k.add(start, tap * gap - before) for tap in range(count)]
    if gap == 1:
        return [k.least(k.most(place, 0), size - 1) for place in places]
    # Only every gap-th position is a tap's: the first and the last in the image depend on where the window starts.
    rest = k.op(f"arith.remui {k.add(start, -(-before // gap) * gap - before)}, {k.index(gap)} : index")
    behind = k.op(f"arith.subi {k.index(size - 1)}, {rest} : index")
    last = k.op(f"arith.subi {behind}, {k.op(f'arith.remui {behind}, {k.index(gap)} : index')} : index")
    last = k.add(last, rest)
    return [k.least(k.op(f"arith.maxsi {place}, {rest} : index"), last) for place in places]
