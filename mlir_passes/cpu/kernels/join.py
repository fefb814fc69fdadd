"""Channels of several tensors in one, of stored integers or f32."""

from __future__ import annotations

from dataclasses import dataclass

from mlir_passes.cpu.isa import Isa
from mlir_passes.kernels.text import Layout
from mlir_passes.kernels.windows import widest
from mlir_passes.kernels.work import KernelSpec, moved_rows, moving, over_channels, pixels


@dataclass(frozen=True)
class Concat(KernelSpec):
    """The channels of several tensors of one height and width, one behind the other; of one alone: a copy."""

    inputs: tuple[Layout, ...]
    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: see ``moving``."""
        inputs, y = self.inputs, self.y
        k = moving(inputs, y, _copying(y))
        with moved_rows(k, inputs, y) as (row, images), k.loop(0, y.w) as column:
            *places, out = pixels(k, row, images, column.index, (*inputs, y))
            first = 0
            for i, (x, at) in enumerate(zip(inputs, places, strict=True)):
                # Never a number beyond the input's channels: what follows them in the result is another's.
                width = widest(self.isa.lanes if x.floating else self.isa.width, x.c)
                kind, to = f"vector<{width}x{x.element}>", k.add(out, first)

                def copy(start: str | int, i: int = i, at: str = at, kind: str = kind, to: str = to) -> None:
                    k.store(k.load(i, k.add(at, start), kind), len(k.bindings) - 1, k.add(to, start), kind)

                over_channels(k, x, width, copy)
                first += x.c
        return k.text()


@dataclass(frozen=True)
class Interleave(KernelSpec):
    """The channels of two tensors in turn: a channel shuffle of two groups."""

    a: Layout
    b: Layout
    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: see ``moving``."""
        layouts, width = (self.a, self.b, self.y), self.isa.fitting(self.a)
        k = moving(layouts[:2], self.y, _copying(self.y))
        narrow, wide = (f"vector<{count}x{self.y.element}>" for count in (width, 2 * width))
        order = [i for channel in range(width) for i in (channel, width + channel)]
        with moved_rows(k, layouts[:2], self.y) as (row, images), k.loop(0, self.y.w) as column:
            a, b, out = pixels(k, row, images, column.index, layouts)

            def mix(start: str | int) -> None:
                pair = k.load(0, k.add(a, start), narrow), k.load(1, k.add(b, start), narrow)
                both = k.op(f"vector.shuffle {', '.join(pair)} {order} : {narrow}, {narrow}")
                k.store(both, len(k.bindings) - 1, k.add(out, start, start), wide)

            over_channels(k, self.a, width, mix)
        return k.text()


def _copying(y: Layout) -> int:
    """What it takes to write a result, in multiplications."""
    return y.images * y.h * y.w * y.c * 4 if y.floating else y.size * 8
