"""Kernels that take two tensors element by element."""

from __future__ import annotations

from dataclasses import dataclass

from mlir_passes.cpu.isa import Isa
from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import channel_tiles
from mlir_passes.kernels.work import KernelSpec, over_rows, split_work


@dataclass(frozen=True)
class Add(KernelSpec):
    """clamp((a·m_a + b·m_b + offset >> shift) + z, lo, hi) of two tensors of one shape."""

    a: Layout
    b: Layout
    y: Layout
    isa: Isa

    def text(self) -> str:
        """The kernel's MLIR; bindings: i32[8] m_a, m_b, offset, shift, z, lo, hi, border; a; b; result."""
        y, lanes = self.y, self.isa.lanes
        bindings = [("i32", 8), *(("i8", each.size) for each in (self.a, self.b, y))]
        k = Kernel(bindings, split_work(y.images * y.h * y.w * y.c * 8, y.images * y.h))
        scalars = [k.scalar(0, i) for i in range(8)]
        numbers = [k.splat(each, "i32", lanes) for each in scalars[:7]]

        def border() -> str:
            return k.splat(k.op(f"arith.trunci {scalars[7]} : i32 to i8"), "i8", 16)

        with over_rows(k, self.a, self.b, y, filling=border) as (row, images):
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
