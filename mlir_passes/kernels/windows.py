"""Windows over images, and channels in blocks of a vector, as all kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A convolution's or pool's window, and where its first position lies relative to the image's corner."""

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    top: int = 0
    left: int = 0


def widest(most: int, count: int) -> int:
    """Numbers of the widest vector that ``count`` of them fill: a power of two, ``most`` at most."""
    return 1 << (min(most, count).bit_length() - 1)


def channel_tiles(channels: int, lanes: int, blocks: int) -> list[list[int]]:
    """Start channels of blocks of ``lanes`` channels, ``blocks`` to a tile."""
    starts = [min(i * lanes, max(channels - lanes, 0)) for i in range(-(-channels // lanes))]
    tiles = range(-(-len(starts) // blocks))
    return [[starts[min(t * blocks, len(starts) - blocks) + n] for n in range(blocks)] for t in tiles]


def gather_channels(values: np.ndarray, starts: list[list[int]], lanes: int) -> np.ndarray:
    """Repeat per-channel numbers block by block; channels that do not exist get 0."""
    padded = np.concatenate([values, np.zeros(max(0, lanes - len(values)), values.dtype)])
    return np.concatenate([padded[s : s + lanes] for tile in starts for s in tile])
