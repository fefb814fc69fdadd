"""How a kernel's work falls into workgroups, the border that one of them fills, and kernels that only move numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlir_passes.kernels.text import Kernel, Layout
from mlir_passes.kernels.windows import channel_tiles, widest


class Unweighted:
    """A kernel that multiplies by no weights."""

    @property
    def macs(self) -> int:
        """None."""
        return 0


def moving(inputs: Sequence[Layout], y: Layout, work: int) -> Kernel:
    """A kernel that moves or selects numbers; bindings: the inputs, of bytes 16 of the border, the result."""
    border = [] if y.floating else [(y.element, 16)]
    bindings = [*((x.element, x.size) for x in inputs), *border, (y.element, y.size)]
    return Kernel(bindings, split_work(work, y.images * y.h))


@contextmanager
def moved_rows(k: Kernel, inputs: Sequence[Layout], y: Layout) -> Iterator[tuple[str, list[str | int]]]:
    """``over_rows`` of a kernel that ``moving`` made; the border is filled."""

    def border() -> None:
        if y.floating:
            fill_zero_border(k, len(inputs), y)
        else:
            fill_border_with(k, k.load(len(inputs), k.index(0), "vector<16xi8>"), len(inputs) + 1, y)

    with over_rows(k, *inputs, y, border=border) as rows:
        yield rows


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
    k: Kernel, *layouts: Layout, tiles: int | None = None, border: Callable[[], None] | None = None
) -> Iterator[tuple[str, list[str | int]]]:
    """A loop over a workgroup's share of the rows of all images: the row in its image, and where that begins in each.

    layouts: of what the kernel reads, and last of its result. tiles: of rows in an image, where a step takes several.
    border: emits what fills the border of the result, which one workgroup does, if there is any.
    """
    y = layouts[-1]
    count = y.h if tiles is None else tiles
    if border is not None and y.has_border:
        in_first_workgroup(k, border)
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


def fill_zero_border(kernel: Kernel, binding: int, layout: Layout) -> None:
    """Write zeros into the whole border of an f32 result; for one workgroup to run."""
    fill_border_with(kernel, kernel.constant("dense<0.0>", "vector<16xf32>"), binding, layout)


def fill_border_with(kernel: Kernel, value: str, binding: int, layout: Layout) -> None:
    """Write the whole border of a result with a vector of 16 bytes or floats; for one workgroup to run."""
    whole = f"vector<16x{layout.element}>"

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
