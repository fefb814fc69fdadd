"""How a kernel's work falls into workgroups, the border that one of them fills, and kernels that only move numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import channel_tiles, widest


class KernelSpec:
    """What every family of kernels offers."""

    @property
    def macs(self) -> int:
        """Multiplications by weights of one call."""
        return 0

    def text(self) -> str:
        """The kernel's MLIR."""
        raise NotImplementedError


def moving(inputs: Sequence[Layout], y: Layout, work: int) -> Kernel:
    """A kernel that moves or selects numbers; bindings: the inputs, of bytes 16 of the border, the result."""
    border = [] if y.floating else [(y.element, 16)]
    bindings = [*((x.element, x.size) for x in inputs), *border, (y.element, y.size)]
    return Kernel(bindings, split_work(work, y.images * y.h))


def moved_rows(k: Kernel, inputs: Sequence[Layout], y: Layout) -> AbstractContextManager[tuple[str, list[str | int]]]:
    """``over_rows`` of a kernel that ``moving`` made."""
    border = len(inputs)
    filling = None if y.floating else lambda: k.load(border, k.index(0), "vector<16xi8>")
    return over_rows(k, *inputs, y, filling=filling)


def over_channels(k: Kernel, x: Layout, width: int, body: Callable[[str | int], None]) -> None:
    """Emit ``body`` for the first channel of each vector of a pixel: in a loop, or of bytes, which are few, one by one.

    width: channels of a vector. The last one may begin earlier, and do a part again.
    """
    if not x.floating:
        for (start,) in channel_tiles(x.c, width, 1):
            body(start)
        return
    with k.loop(0, x.c, width) as block:
        body(k.least(block.index, x.c - width))


def in_first_workgroup(k: Kernel, body: Callable[[], None]) -> None:
    """Emit ``body`` so that only one workgroup runs it."""
    both = k.op("arith.addi %wgx, %wgy : index")
    k.line(f"scf.if {k.op(f'arith.cmpi eq, {both}, {k.index(0)} : index')} {{")
    body()
    k.line("}")


@contextmanager
def over_rows(
    k: Kernel, *layouts: Layout, tiles: int | None = None, filling: Callable[[], str] | None = None
) -> Iterator[tuple[str, list[str | int]]]:
    """A loop over a workgroup's share of the rows of all images: the row in its image, and where that begins in each.

    layouts: of what the kernel reads, and last of its result. tiles: of rows in an image, where a step takes several.
    filling: see ``fill_border``, which comes first.
    """
    y = layouts[-1]
    count = y.h if tiles is None else tiles
    fill_border(k, y, filling)
    with k.loop(*work_range(k, "%wgx", y.images * count, k.workgroups[0])) as loop:
        yield k.split_rows(loop.index, count, *layouts)


def pixels(k: Kernel, row: str, images: Sequence[str | int], column: str, layouts: Sequence[Layout]) -> list[str]:
    """Where one pixel is in several tensors of one height and width; row, images: as ``over_rows`` gives them."""
    places = zip(layouts, images, strict=True)
    return [k.add(k.mul(row, each.pitch), k.mul(column, each.stride), image, each.at()) for each, image in places]


def work_range(k: Kernel, workgroup: str, tiles: int, workgroups: int) -> tuple[str | int, str | int]:
    """The tiles of one workgroup: an equal share, larger ones first."""
    if workgroups == 1:
        return 0, tiles
    size, larger = divmod(tiles, workgroups)
    start = k.add(k.mul(workgroup, size), k.least(workgroup, larger))
    following = k.add(workgroup, 1)
    return start, k.add(k.mul(following, size), k.least(following, larger))


def split_work(work: int, row_tiles: int, channel_tiles: int = 1) -> tuple[int, int]:
    """Workgroups along rows and channels for ``work`` multiplications: enough for several threads, none too small."""
    # 24 and more would be handed out by eights to three workers: to two of them twice as many as to the third.
    wanted = max(1, min(16, work // 250_000))
    if row_tiles >= 2 * wanted or channel_tiles == 1:
        return min(wanted, row_tiles), 1
    if channel_tiles >= wanted:
        return 1, wanted
    return min(row_tiles, wanted // channel_tiles), channel_tiles


def fill_border(kernel: Kernel, layout: Layout, filling: Callable[[], str] | None) -> None:
    """Let one workgroup write the whole border of the result, if it has any.

    filling: emits a vector of 16 bytes or floats to do it with; where it is not given, zeros.
    """
    if layout.has_border:
        in_first_workgroup(kernel, lambda: _fill(kernel, layout, filling))


def _fill(kernel: Kernel, layout: Layout, filling: Callable[[], str] | None) -> None:
    whole, binding = f"vector<16x{layout.element}>", len(kernel.bindings) - 1
    value = kernel.constant("dense<0.0>", whole) if filling is None else filling()

    def fill(start: str, length: int) -> None:
        step = widest(16, length)
        part, kind = value, f"vector<{step}x{layout.element}>"
        if step < 16:
            part = kernel.op(f"vector.shuffle {value}, {value} {list(range(step))} : {whole}, {whole}")
        with kernel.loop(0, length, step) as loop:
            kernel.store(part, binding, kernel.add(start, kernel.least(loop.index, length - step)), kind)

    def fill_image(image: str | int) -> None:
        start = layout.at()
        if start:
            fill(kernel.add(image), start)
        gap = (layout.left + layout.right) * layout.stride
        if gap and layout.h > 1:
            with kernel.loop(0, layout.h - 1) as row:
                fill(kernel.add(image, kernel.mul(row.index, layout.pitch), layout.at(0, layout.w)), gap)
        end = layout.at(layout.h - 1, layout.w)
        if layout.image > end:
            fill(kernel.add(image, end), layout.image - end)

    if layout.images == 1:
        fill_image(0)
        return
    with kernel.loop(0, layout.images) as loop:
        fill_image(kernel.mul(loop.index, layout.image))
