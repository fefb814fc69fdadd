"""Which tile a convolution gets: a model of one core's cycles, the same for every shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlir_passes.cpu.isa import Isa
from mlir_passes.kernels.text import Layout
from mlir_passes.kernels.windows import Window, channel_tiles

_LATENCY = 4  # cycles until a product's sum can be added to again
_STEP_OVERHEAD = 0.5
_EPILOGUE = 4.0  # cycles for one accumulator
_FIRST_CACHE = 32 << 10
_FROM_SECOND_CACHE = 1.1  # cycles for a vector of weights that the first one cannot hold


@dataclass(frozen=True)
class Tile:
    """Rows, columns and channel blocks that one set of accumulators holds."""

    rows: int
    columns: int
    blocks: int


def choose_tile(x: Layout, y: Layout, window: Window, isa: Isa, group: int = 4, groups: int = 1) -> Tile:
    """The tile with the fewest cycles for the whole layer, the smaller one of equals.

    group: the input channels that one step takes. groups: into how many the convolution falls.
    """
    return ranked_tiles(x, y, window, isa, group, groups)[0]


def ranked_tiles(x: Layout, y: Layout, window: Window, isa: Isa, group: int = 4, groups: int = 1) -> list[Tile]:
    """All tiles whose accumulators fit the registers, those with the fewest cycles first."""
    x, y = _one_unit(x, y, groups, isa.lanes)
    row = -(-window.kernel[1] * x.c // group) if x.packed else window.kernel[1] * -(-x.c // group)
    steps = window.kernel[0] * row
    blocks = -(-y.c // isa.lanes)
    candidates = [
        Tile(r, p, n)
        for r in range(1, min(y.h, 4) + 1)
        for p in range(1, min(y.w, 14) + 1)
        for n in range(1, min(blocks, 9) + 1)
        if r * p * n + n + 2 <= isa.registers and (r == 1 or p == y.w)
    ]

    def cycles(tile: Tile) -> float:
        pixels = tile.rows * tile.columns
        sums = pixels * tile.blocks
        streamed = tile.blocks * _FROM_SECOND_CACHE if steps * tile.blocks * isa.width > _FIRST_CACHE else 0
        step = max(sums / 2, (pixels + tile.blocks) / 2, streamed, _LATENCY) + _STEP_OVERHEAD
        tiles = -(-y.h // tile.rows) * -(-y.w // tile.columns) * -(-blocks // tile.blocks)
        return tiles * (steps * step + sums * _EPILOGUE)

    return sorted(candidates, key=lambda tile: (cycles(tile), tile.rows * tile.columns * tile.blocks))


def _one_unit(x: Layout, y: Layout, groups: int, lanes: int) -> tuple[Layout, Layout]:
    """What one unit of a convolution's channels reads and makes: the layouts by which its tile is chosen."""
    own = y.c // groups
    if groups == 1 or own >= lanes:
        return replace(x, c=x.c // groups), replace(y, c=own)
    starts = channel_tiles(y.c, lanes, 1)
    return replace(x, c=reach(x.c, y.c, groups, starts, lanes)), replace(y, c=min(lanes, y.c))


def reach(inputs: int, outputs: int, groups: int, starts: list[list[int]], lanes: int) -> int:
    """Input channels between the first and the last that one tile of a grouped convolution reads, of any tile."""
    of_group, own = inputs // groups, outputs // groups
    ends = [min(tile[-1] + lanes, outputs) - 1 for tile in starts]
    return max(end // own + 1 - tile[0] // own for tile, end in zip(starts, ends, strict=True)) * of_group
