"""From sums to what a layer hands on, in registers: i32 is requantized, a residual added, or scaled to f32.

    multiplier:  clamp(roundeven(f32(acc) · m), lo − z, hi − z) + z       the bias is in acc from the start
    shift:       clamp(roundeven(acc / 2^k) + z, lo, hi)
    real:        f32(acc) · m                                            stored as f32
    in f32:      clamp(acc), clamp(clamp(acc) + r) with a residual r, or acc / n

lo, hi and z are integers, so that clamping before rounding and adding z gives the same integer as the other order;
z, lo and hi here are those of u8: 128 above the stored signed ones. A residual is added to the requantized value in
fixed point: clamp((a·m_a + b·m_b + offset >> k) + z, lo, hi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlir_passes.kernels.text import Kernel, Layout

MULTIPLIER, SHIFT, REAL = "multiplier", "shift", "real"


@dataclass(frozen=True)
class Form:
    """How a kernel of integers ends. kind: multiplier, shift or real. residual: the layout of the tensor that is added.

    group: input channels that one step of a matrix product takes.
    """

    kind: str
    residual: Layout | None = None

    group: ClassVar[int] = 4
    input_element: ClassVar[str] = "i8"
    accumulator: ClassVar[str] = "i32"

    @property
    def element(self) -> str:
        """Element type of the multipliers or shifts, and of the range's four numbers."""
        return "i32" if self.kind == SHIFT else "f32"

    @property
    def result_element(self) -> str:
        """Element type of the result."""
        return "f32" if self.kind == REAL else "i8"

    def epilogue(self, kernel: Kernel, first: int, lanes: int) -> Epilogue:
        """Emit what the form needs once a kernel; its bindings begin at ``first``."""
        return Requantizing(kernel, self, first, lanes)

    def bindings(self, channels: int) -> list[tuple[str, int]]:
        """Bindings behind input and weight: bias, multiplier, range, and for a residual its numbers and itself."""
        found = [("i32", channels), (self.element, channels)]
        if self.kind != REAL:
            found.append((self.element, 4))
        if self.residual is not None:
            found += [("i32", 8), ("i8", self.residual.size)]
        return found


@dataclass(frozen=True)
class FloatForm:
    """How an f32 kernel ends: clamp(acc, *inner), and with a residual r clamp(clamp(acc, *inner) + r, *outer).

    inner, outer: lower and upper bound, infinite where there is none.
    """

    inner: tuple[float, float] = (-math.inf, math.inf)
    outer: tuple[float, float] = (-math.inf, math.inf)
    residual: Layout | None = None

    group: ClassVar[int] = 1
    input_element: ClassVar[str] = "f32"
    accumulator: ClassVar[str] = "f32"
    result_element: ClassVar[str] = "f32"

    def epilogue(self, kernel: Kernel, first: int, lanes: int) -> Epilogue:
        """See Form."""
        return Clamping(kernel, self, first, lanes)

    def bindings(self, channels: int) -> list[tuple[str, int]]:
        """Bindings behind input and weight: the bias, and a residual."""
        return [("f32", channels), *([] if self.residual is None else [("f32", self.residual.size)])]


@dataclass(frozen=True)
class Quotient(FloatForm):
    """How an f32 kernel of averages ends: acc / divisor, without a bias."""

    divisor: float = 1.0

    def epilogue(self, kernel: Kernel, first: int, lanes: int) -> Epilogue:
        """See Form."""
        return Dividing(kernel, self, first, lanes)

    def bindings(self, channels: int) -> list[tuple[str, int]]:
        """None."""
        return []


@dataclass
class Epilogue:
    """Emits a form's arithmetic. first: the binding of the bias; the others follow. lanes: numbers in a vector."""

    kernel: Kernel
    form: Any
    first: int
    lanes: int

    def bias(self, at: str) -> str:
        """The bias of the channels from ``at``: where an accumulator starts."""
        return self.kernel.load(self.first, at, f"vector<{self.lanes}x{self.form.accumulator}>")

    def scale(self, at: str) -> str:
        """What the sums of the channels from ``at`` are multiplied by; nothing in f32."""
        return ""

    def finish(self, acc: str, scale: str, residual: str | None = None) -> str:
        """What becomes of sums, and of the numbers that are added."""
        raise NotImplementedError

    def store(self, value: str, binding: int, at: str) -> None:
        """Store finished values."""
        self.kernel.store(value, binding, at, f"vector<{self.lanes}xf32>")

    def border(self) -> str:
        """What the border of the result holds: 16 times."""
        return self.kernel.constant("dense<0.0>", "vector<16xf32>")


class Clamping(Epilogue):
    """Emits a FloatForm."""

    def finish(self, acc: str, scale: str, residual: str | None = None) -> str:
        """The clamped sums, with the residual added."""
        value = self._clamped(acc, self.form.inner)
        if residual is None:
            return value
        total = self.kernel.op(f"arith.addf {value}, {residual} : vector<{self.lanes}xf32>")
        return self._clamped(total, self.form.outer)

    def _clamped(self, value: str, bounds: tuple[float, float]) -> str:
        vector = f"vector<{self.lanes}xf32>"
        for name, bound in zip(("ugt", "ult"), bounds, strict=True):
            if math.isfinite(bound):
                limit = self.kernel.constant(_dense(bound), vector)
                inside = self.kernel.op(f"arith.cmpf {name}, {value}, {limit} : {vector}")
                value = self.kernel.op(f"arith.select {inside}, {value}, {limit} : vector<{self.lanes}xi1>, {vector}")
        return value


class Dividing(Epilogue):
    """Emits a Quotient."""

    def bias(self, at: str) -> str:
        """Zero."""
        return self.kernel.constant(_dense(0.0), f"vector<{self.lanes}xf32>")

    def finish(self, acc: str, scale: str, residual: str | None = None) -> str:
        """The sums divided."""
        vector = f"vector<{self.lanes}xf32>"
        return self.kernel.op(f"arith.divf {acc}, {self.kernel.constant(_dense(self.form.divisor), vector)} : {vector}")


@dataclass
class Requantizing(Epilogue):
    """Emits a Form."""

    numbers: list[str] = field(default_factory=list)
    sum_numbers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        k, n = self.kernel, self.lanes
        if self.form.kind == REAL:
            return
        kind = self.form.element
        scalars = [k.scalar(self.first + 2, i) for i in range(4)]
        self.numbers = [k.splat(scalar, kind, n) for scalar in scalars]
        pad = self.sum_scalar(7) if self.form.residual is not None else scalars[3]
        if self.form.kind == MULTIPLIER:
            self.numbers[2] = k.op(f"arith.fptosi {self.numbers[2]} : vector<{n}xf32> to vector<{n}xi32>")
            if self.form.residual is None:
                pad = k.op(f"arith.fptosi {pad} : f32 to i32")
        self.around = k.splat(k.op(f"arith.trunci {pad} : i32 to i8"), "i8", 16)
        if self.form.residual is not None:
            self.sum_numbers = [k.splat(self.sum_scalar(i), "i32", n) for i in range(7)]

    def sum_scalar(self, position: int) -> str:
        """One of the residual's numbers: m_a, m_b, offset, shift, zero point, lo, hi, border."""
        return self.kernel.scalar(self.first + 3, position)

    def border(self) -> str:
        """The zero point."""
        return self.around

    def scale(self, at: str) -> str:
        """The multipliers or shifts of the channels from ``at``."""
        return self.kernel.load(self.first + 1, at, f"vector<{self.lanes}x{self.form.element}>")

    def finish(self, acc: str, scale: str, residual: str | None = None) -> str:
        """The accumulators' values as u8 in i32 lanes, or as f32. residual: the u8 bytes to add."""
        k, n = self.kernel, self.lanes
        if self.form.kind == SHIFT:
            value = self._shifted(acc, scale)
        else:
            real = k.op(f"arith.sitofp {acc} : vector<{n}xi32> to vector<{n}xf32>")
            real = k.op(f"arith.mulf {real}, {scale} : vector<{n}xf32>")
            if self.form.kind == REAL:
                return real
            # Neither operand is ever NaN, and the sign of a zero does not matter.
            real = k.op(f"arith.maximumf {real}, {self.numbers[0]} fastmath<nnan,nsz> : vector<{n}xf32>")
            real = k.op(f"arith.minimumf {real}, {self.numbers[1]} fastmath<nnan,nsz> : vector<{n}xf32>")
            kinds = [f"vector<{n}xf32>"]
            value = k.intrinsic(f"llvm.lrint.v{n}i32.v{n}f32", [real], kinds, f"vector<{n}xi32>")
            value = self._i("addi", value, self.numbers[2])
        if residual is None:
            return value
        m_a, m_b, offset, shift, zero, low, high = self.sum_numbers
        other = k.op(f"arith.extui {residual} : vector<{n}xi8> to vector<{n}xi32>")
        total = self._i("addi", self._i("muli", value, m_a), self._i("muli", other, m_b))
        total = self._i("addi", self._i("shrsi", self._i("addi", total, offset), shift), zero)
        return self._i("minsi", self._i("maxsi", total, low), high)

    def store(self, value: str, binding: int, at: str) -> None:
        """Store finished values: u8 narrowed, f32 as they are."""
        n = self.lanes
        if self.form.kind == REAL:
            super().store(value, binding, at)
            return
        narrow = self.kernel.op(f"arith.trunci {value} : vector<{n}xi32> to vector<{n}xi8>")
        self.kernel.store(narrow, binding, at, f"vector<{n}xi8>")

    def _i(self, name: str, a: str, b: str) -> str:
        return self.kernel.op(f"arith.{name} {a}, {b} : vector<{self.lanes}xi32>")

    def _shifted(self, total: str, shift: str) -> str:
        n = self.lanes

        def c(value: int) -> str:
            return self.kernel.constant(f"dense<{value}>", f"vector<{n}xi32>")

        right = self._i("maxsi", shift, c(0))
        left = self._i("maxsi", self._i("subi", c(0), shift), c(0))
        unit = self._i("shli", c(1), right)
        half = self._i("maxsi", self._i("shrsi", unit, c(1)), c(1))
        q = self._i("shrsi", total, right)
        rest = self._i("addi", self._i("andi", total, self._i("subi", unit, c(1))), self._i("andi", q, c(1)))
        more = self.kernel.op(f"arith.cmpi sgt, {rest}, {half} : vector<{n}xi32>")
        q = self._i("addi", q, self.kernel.op(f"arith.extui {more} : vector<{n}xi1> to vector<{n}xi32>"))
        q = self._i("shli", self._i("minsi", self._i("maxsi", q, c(-512)), c(511)), left)
        return self._i("minsi", self._i("maxsi", self._i("addi", q, self.numbers[2]), self.numbers[0]), self.numbers[1])


def _dense(number: float) -> str:
    """A number in all lanes; nine digits behind the first tell all f32 numbers apart."""
    return f"dense<{number:.9e}>"
