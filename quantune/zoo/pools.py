"""Images of the built-in tasks in the form that training wants: in memory, as tensors, with augmentations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from quantune.data import shapes
from quantune.data.builtin import Digits

EVALUATION_IMAGES = 2000
"""Of shapes; digits has 539."""


@dataclass(frozen=True)
class Pool:
    """Images before exposure u8[n, 3, s, s], their exposures f32[n] (1 where the task has none), labels i64[n]."""

    pixels: torch.Tensor
    exposures: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, start: int, stop: int) -> torch.Tensor:
        """f32[n, 3, s, s] in [0, 1] as the network sees them."""
        return self.pixels[start:stop].float() / 255 * self.exposures[start:stop, None, None, None]


def pool(task: str, split: str, count: int) -> Pool:
    """The first ``count`` images of a task's split, or all where it has fewer."""
    if task == "digits":
        source = Digits(split)
        items = [source[i] for i in range(min(count, len(source)))]
        pixels = np.stack([np.rint(image * 255).astype(np.uint8) for image, _ in items])
        labels = np.array([label for _, label in items], np.int64)
        return Pool(torch.from_numpy(pixels), torch.ones(len(items)), torch.from_numpy(labels))
    pixels = np.empty((count, 3, shapes.SIZE, shapes.SIZE), np.uint8)
    exposures, labels = np.empty(count, np.float32), np.empty(count, np.int64)
    for i in range(count):
        scene, exposures[i], labels[i] = shapes.scene(split, i)
        pixels[i] = np.rint(scene * 255)
    return Pool(torch.from_numpy(pixels), torch.from_numpy(exposures), torch.from_numpy(labels))


def augmented(task: str, pixels: torch.Tensor, generator: torch.Generator, dark: float = 1.0) -> torch.Tensor:
    """u8[n, 3, s, s] -> f32 in [0, 1], changed at random as far as the class stays.

    dark: 1 for exposures as in the task, less for fewer octaves of them.
    """
    x = pixels.float() / 255
    if task == "digits":
        return _moved(x, generator)
    x = torch.rot90(x, int(torch.randint(4, (1,), generator=generator)), (2, 3))
    if torch.rand(1, generator=generator) < 0.5:
        x = x.flip(3)
    low = dark * float(np.log(shapes.DARKEST))
    return x * torch.exp(low * torch.rand(len(x), 1, 1, 1, generator=generator))


def _moved(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 15 %, shifted by up to a sixteenth of its size."""
    uniform = 2 * torch.rand(5, len(x), generator=generator) - 1
    angle, across, down = uniform[0] * float(np.radians(12)), 1 + 0.15 * uniform[1], 1 + 0.15 * uniform[2]
    rows = (
        torch.stack((angle.cos() * across, -angle.sin() * down, uniform[3] / 8), 1),
        torch.stack((angle.sin() * across, angle.cos() * down, uniform[4] / 8), 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
