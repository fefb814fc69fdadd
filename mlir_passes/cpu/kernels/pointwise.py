"""Kernels without a window: quantizing the input image, adding two tensors, joining channels."""

from __future__ import annotations

from dataclasses import dataclass

from mlir_passes.cpu.isa import Isa
from mlir_passes.cpu.kernels.conv import channel_tiles, in_first_workgroup, split_work, work_range
from mlir_passes.cpu.kernels.epilogue import fill_border_with
from mlir_passes.cpu.kernels.pool import byte_width
from mlir_passes.cpu.kernels.text import Kernel, Layout


@dataclass(frozen=True)
class Quantize:
    """f32 planes [c, h, w], four at most, to a packed u8 image: clamp(roundeven(x / scale) + z, lo, hi)."""

    y: Layout
    isa: Isa

    @property
    def macs(self) -> int:
        """No multiplications."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR; bindings: f32 planes, f32[5] scale, lo − z, hi − z, z and border, result."""
        y = self.y
        lanes = max(n for n in (1, 2, 4, 8, 16) if n <= min(y.w, self.isa.lanes))
        k = Kernel([("f32", y.c * y.h * y.w), ("f32", 5), ("i8", y.size)], split_work(y.h * y.w * 32, y.h))
        real, whole = f"vector<{lanes}xf32>", f"vector<{lanes}xi32>"
        scale, low, high, zero = (k.splat(k.scalar(1, i), "f32", lanes) for i in range(4))
        zero = k.op(f"arith.fptosi {zero} : {real} to {whole}")
        if y.has_border:
            border = k.op(f"arith.fptosi {k.scalar(1, 4)} : f32 to i32")
            border = k.splat(k.op(f"arith.trunci {border} : i32 to i8"), "i8", 16)
            in_first_workgroup(k, lambda: fill_border_with(k, border, 2, y))
        with k.loop(*work_range(k, "%wgx", y.h, k.workgroups[0])) as row, k.loop(0, y.w, lanes) as loop:
            column = k.least(loop.index, y.w - lanes)
            pixel = k.add(k.mul(row.index, y.w), column)
            joined = ""
            for channel in range(y.c):
                value = k.load(0, k.add(pixel, channel * y.h * y.w), real)
                value = k.op(f"arith.divf {value}, {scale} : {real}")
                # Written so that NaN becomes the lowest integer, in one instruction each.
                for comparison, bound in (("ogt", low), ("olt", high)):
                    inside = k.op(f"arith.cmpf {comparison}, {value}, {bound} : {real}")
                    value = k.op(f"arith.select {inside}, {value}, {bound} : vector<{lanes}xi1>, {real}")
                value = k.intrinsic(f"llvm.lrint.v{lanes}i32.v{lanes}f32", [value], [real], whole)
                value = k.op(f"arith.addi {value}, {zero} : {whole}")
                if channel:
                    shift = k.constant(f"dense<{8 * channel}>", whole)
                    value = k.op(f"arith.shli {value}, {shift} : {whole}")
                    value = k.op(f"arith.ori {joined}, {value} : {whole}")
                joined = value
            packed = k.op(f"vector.bitcast {joined} : {whole} to vector<{lanes * 4}xi8>")
            at = k.add(k.mul(row.index, y.pitch), k.mul(column, y.stride), y.at())
            k.store(packed, 2, at, f"vector<{lanes * 4}xi8>")
        return k.text()


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
        k = Kernel(bindings, split_work(y.h * y.w * y.c * 8, y.h))
        narrow, wide = f"vector<{lanes}xi8>", f"vector<{lanes}xi32>"
        scalars = [k.scalar(0, i) for i in range(8)]
        m_a, m_b, offset, shift, zero, low, high = (k.splat(each, "i32", lanes) for each in scalars[:7])
        if y.has_border:
            border = k.splat(k.op(f"arith.trunci {scalars[7]} : i32 to i8"), "i8", 16)
            in_first_workgroup(k, lambda: fill_border_with(k, border, 3, y))
        length = y.w * y.stride
        with k.loop(*work_range(k, "%wgx", y.h, k.workgroups[0])) as row, k.loop(0, length, lanes) as loop:
            at = k.least(loop.index, length - lanes)
            products = []
            for binding, layout, factor in ((1, self.a, m_a), (2, self.b, m_b)):
                value = k.load(binding, k.add(k.mul(row.index, layout.pitch), at, layout.at()), narrow)
                value = k.op(f"arith.extui {value} : {narrow} to {wide}")
                products.append(k.op(f"arith.muli {value}, {factor} : {wide}"))
            total = k.op(f"arith.addi {products[0]}, {products[1]} : {wide}")
            for name, other in (("addi", offset), ("shrsi", shift), ("addi", zero), ("maxsi", low), ("minsi", high)):
                total = k.op(f"arith.{name} {total}, {other} : {wide}")
            total = k.op(f"arith.trunci {total} : {wide} to {narrow}")
            k.store(total, 3, k.add(k.mul(row.index, y.pitch), at, y.at()), narrow)
        return k.text()


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
                   split_work(y.size * 8, y.h))  # fmt: skip
        narrow, wide = f"vector<{width}xi8>", f"vector<{2 * width}xi8>"
        order = [i for channel in range(width) for i in (channel, width + channel)]
        if y.has_border:
            value = k.load(2, k.index(0), "vector<16xi8>")
            in_first_workgroup(k, lambda: fill_border_with(k, value, 3, y))
        with k.loop(*work_range(k, "%wgx", y.h, k.workgroups[0])) as row, k.loop(0, y.w) as column:
            a, b, out = (
                k.add(k.mul(row.index, each.pitch), k.mul(column.index, each.stride), each.at())
                for each in (self.a, self.b, y)
            )
            for (start,) in channel_tiles(self.a.c, width, 1):
                pair = k.load(0, k.add(a, start), narrow), k.load(1, k.add(b, start), narrow)
                both = k.op(f"vector.shuffle {', '.join(pair)} {order} : {narrow}, {narrow}")
                k.store(both, 3, k.add(out, 2 * start), wide)
        return k.text()


@dataclass(frozen=True)
class Concat:
    """The channels of several tensors of one height and width, one behind the other."""

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
        k = Kernel([*(("i8", x.size) for x in self.inputs), ("i8", 16), ("i8", y.size)], split_work(y.size * 8, y.h))
        if y.has_border:
            value = k.load(count, k.index(0), "vector<16xi8>")
            in_first_workgroup(k, lambda: fill_border_with(k, value, count + 1, y))
        with k.loop(*work_range(k, "%wgx", y.h, k.workgroups[0])) as row, k.loop(0, y.w) as column:
            out = k.add(k.mul(row.index, y.pitch), k.mul(column.index, y.stride), y.at())
            first = 0
            for i, x in enumerate(self.inputs):
                width = byte_width(self.isa, x.c)
                at = k.add(k.mul(row.index, x.pitch), k.mul(column.index, x.stride), x.at())
                for (start,) in channel_tiles(x.c, width, 1):
                    value = k.load(i, k.add(at, start), f"vector<{width}xi8>")
                    k.store(value, count + 1, k.add(out, first + start), f"vector<{width}xi8>")
                first += x.c
        return k.text()
