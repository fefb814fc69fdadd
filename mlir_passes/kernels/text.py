"""What all kernels share: memory layouts, and the MLIR text of a kernel as it grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

_TRANSLATION = "#iree_codegen.translation_info<pipeline = #iree_cpu.pipeline<Default>>"
NAME = "KERNEL"
"""Stands for the kernel's name in its text, until it is known that no equal kernel exists."""


@dataclass(frozen=True)
class Layout:
    """A batch in memory, channels innermost: u8 with a border of its zero point around each image, or f32 without one.

    h, w, c: an image. images: their number. top, left, bottom, right: rows and columns of the border. packed: few
    channels follow each other without gaps, so that nothing may read or write a whole vector of them. floating: f32,
    which leaves no gaps at all; the numbers below then count elements instead of bytes. pixel: bytes from pixel to
    pixel, if not the least possible; first: where in a pixel the channels begin. Both are for slices of the channels.
    """

    h: int
    w: int
    c: int
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    packed: bool = False
    floating: bool = False
    pixel: int = 0
    first: int = 0
    images: int = 1

    @property
    def element(self) -> str:
        """Element type of what it holds."""
        return "f32" if self.floating else "i8"

    @property
    def stride(self) -> int:
        """Bytes from pixel to pixel: unless packed, whole groups of four channels and at least one narrow vector."""
        if self.pixel or self.floating or self.packed:
            return self.pixel or self.c
        return max(16, -(-self.c // 4) * 4)

    @property
    def rows(self) -> int:
        """Rows with the border."""
        return self.h + self.top + self.bottom

    @property
    def pitch(self) -> int:
        """Bytes from row to row."""
        return (self.w + self.left + self.right) * self.stride

    @property
    def image(self) -> int:
        """Bytes from image to image."""
        return self.rows * self.pitch

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.images * self.image

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor that holds it."""
        return self.images, self.rows, self.w + self.left + self.right, self.stride

    @property
    def has_border(self) -> bool:
        """Whether there is any border."""
        return any((self.top, self.left, self.bottom, self.right))

    def at(self, row: int = 0, column: int = 0) -> int:
        """Byte offset of a pixel in its image; the border has negative indices."""
        return (row + self.top) * self.pitch + (column + self.left) * self.stride + self.first


def joined_images(layouts: Sequence[Layout]) -> list[Layout]:
    """The images of a batch as rows of one, for kernels without a window; as they are where a border separates them."""
    if any(each.has_border or each.images == 1 for each in layouts):
        return list(layouts)
    rows = layouts[0].images * layouts[0].h
    h, w = (1, rows) if layouts[0].w == 1 else (rows, layouts[0].w)
    return [replace(each, images=1, h=h, w=w) for each in layouts]


@dataclass
class Loop:
    """An scf.for that carries ``values``: inside the iteration's, set by the body to the next, afterwards the last."""

    index: str
    values: list[str]


@dataclass
class Kernel:
    """The text of one kernel. bindings: the element type and number of each operand, the result last.

    workgroups: their number along x and y.
    """

    bindings: Sequence[tuple[str, int]]
    workgroups: tuple[int, int] = (1, 1)
    lines: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def fresh(self) -> str:
        """A value name not used yet."""
        self.count += 1
        return f"%v{self.count}"

    def line(self, text: str) -> None:
        """Append one operation without a result."""
        self.lines.append(text)

    def op(self, text: str) -> str:
        """Append one operation and return its result's name."""
        name = self.fresh()
        self.lines.append(f"{name} = {text}")
        return name

    def constant(self, value: str, kind: str) -> str:
        """A constant of a type, made once at the kernel's start."""
        return self.constants.setdefault(f"{value} : {kind}", f"%k{len(self.constants)}")

    def index(self, value: int) -> str:
        """An index constant."""
        return self.constant(str(value), "index")

    def add(self, *terms: str | int) -> str:
        """The sum of index values and numbers."""
        number = sum(term for term in terms if isinstance(term, int))
        values = [term for term in terms if isinstance(term, str)]
        if number or not values:
            values.append(self.index(number))
        total = values[0]
        for value in values[1:]:
            total = self.op(f"arith.addi {total}, {value} : index")
        return total

    def mul(self, value: str, factor: int) -> str:
        """An index value times a number."""
        return value if factor == 1 else self.op(f"arith.muli {value}, {self.index(factor)} : index")

    def split_rows(self, index: str, rows: int, *layouts: Layout) -> tuple[str, list[str | int]]:
        """Of an index over the rows (or tiles of rows) of all images: the one in its image, and where that begins.

        rows: how many an image has. layouts: those whose image's first byte is wanted.
        """
        if layouts[0].images == 1:
            return index, [0 for _ in layouts]
        count = self.index(rows)
        image = self.op(f"arith.divui {index}, {count} : index")
        return self.op(f"arith.remui {index}, {count} : index"), [self.mul(image, each.image) for each in layouts]

    def least(self, value: str, limit: int | str) -> str:
        """The smaller of an index value and a limit."""
        other = self.index(limit) if isinstance(limit, int) else limit
        return self.op(f"arith.minsi {value}, {other} : index")

    def most(self, value: str, limit: int) -> str:
        """The larger of an index value and a limit."""
        return self.op(f"arith.maxsi {value}, {self.index(limit)} : index")

    def memory(self, binding: int) -> str:
        """The memref type of a binding."""
        kind, number = self.bindings[binding]
        return f"memref<{number}x{kind}>"

    def load(self, binding: int, at: str, kind: str) -> str:
        """Load a vector of type ``kind``."""
        return self.op(f"vector.load %m{binding}[{at}] : {self.memory(binding)}, {kind}")

    def prefetch(self, binding: int, at: str) -> None:
        """Ask for the cache line at an index, which may lie beyond the end."""
        self.line(f"memref.prefetch %m{binding}[{at}], read, locality<3>, data : {self.memory(binding)}")

    def scalar(self, binding: int, at: int) -> str:
        """Load one number."""
        return self.op(f"memref.load %m{binding}[{self.index(at)}] : {self.memory(binding)}")

    def store(self, value: str, binding: int, at: str, kind: str) -> None:
        """Store a vector of type ``kind``."""
        self.line(f"vector.store {value}, %m{binding}[{at}] : {self.memory(binding)}, {kind}")

    def splat(self, scalar: str, kind: str, lanes: int) -> str:
        """A vector with the same number in all lanes."""
        return self.op(f"vector.broadcast {scalar} : {kind} to vector<{lanes}x{kind}>")

    def intrinsic(self, name: str, operands: Sequence[str], kinds: Sequence[str], result: str) -> str:
        """Call an LLVM intrinsic."""
        return self.op(f'llvm.call_intrinsic "{name}"({", ".join(operands)}) : ({", ".join(kinds)}) -> {result}')

    @contextmanager
    def loop(
        self, low: str | int, high: str | int, step: int = 1, values: Sequence[str] = (), kind: str = ""
    ) -> Iterator[Loop]:
        """An scf.for; ``values``, all of type ``kind``, are carried from iteration to iteration."""
        index, results = self.fresh(), self.fresh()
        bounds = [self.index(each) if isinstance(each, int) else each for each in (low, high, step)]
        head = f"scf.for {index} = {bounds[0]} to {bounds[1]} step {bounds[2]}"
        inner = [self.fresh() for _ in values]
        kinds = ", ".join([kind] * len(values))
        if values:
            pairs = ", ".join(f"{new} = {old}" for new, old in zip(inner, values, strict=True))
            head = f"{results}:{len(values)} = {head} iter_args({pairs}) -> ({kinds})"
        self.line(f"{head} {{")
        loop = Loop(index, inner)
        yield loop
        if values:
            self.line(f"scf.yield {', '.join(loop.values)} : {kinds}")
        self.line("}")
        loop.values = [f"{results}#{i}" for i in range(len(values))]

    def text(self) -> str:
        """The whole stream.executable; its name is ``NAME``. Of IREE's dialects the generic form is used."""
        x, y = self.workgroups
        arguments = ", ".join(f"%b{i}: !stream.binding" for i in range(len(self.bindings)))
        head = [f"{name} = arith.constant {text}" for text, name in self.constants.items()]
        zero = "%zero = arith.constant 0 : index"
        head += [
            f'%m{i} = "stream.binding.subspan"(%b{i}, %zero) : (!stream.binding, index) -> {self.memory(i)}'
            for i in range(len(self.bindings))
        ]
        ids = [
            f'%wg{axis} = "stream.dispatch.workgroup.id"() {{dimension = {number} : index}} : () -> index'
            for number, axis in enumerate("xy")
        ]
        body = "\n".join([zero, *head, *ids, *self.lines])
        return f"""
"stream.executable"() ({{
  "stream.executable.export"() ({{
    %x = arith.constant {x} : index
    %y = arith.constant {y} : index
    %z = arith.constant 1 : index
    "stream.return"(%x, %y, %z) : (index, index, index) -> ()
  }}) {{function_ref = @{NAME}, sym_name = "{NAME}", sym_visibility = "public"}} : () -> ()
  builtin.module {{
    func.func @{NAME}({arguments}) attributes {{translation_info = {_TRANSLATION}}} {{
{body}
return
    }}
  }}
  "stream.executable.end"() : () -> ()
}}) {{sym_name = "{NAME}", sym_visibility = "private"}} : () -> ()
"""
