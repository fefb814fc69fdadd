"""Procedural images: 4 shapes x 4 textures = 16 classes, 64x64 RGB, under a wide range of exposures.

Each image is a function of (split, index) alone, so any part of the set can be made at any time and a set of any length
takes no memory. The exposure is what makes the task hard for a careless quantizer: a dark image uses a tenth of the
range that a bright one needs, so every bit and every clipping decision shows in the accuracy.
"""

from __future__ import annotations

import numpy as np

SIZE = 64
SHAPES = ("disc", "square", "star", "ring")
TEXTURES = ("plain", "stripes", "checker", "dots")
CLASSES = tuple(f"{shape} {texture}" for shape in SHAPES for texture in TEXTURES)
SPLITS = {"train": 1, "calibration": 2, "evaluation": 3}
DARKEST = 0.08
"""Lowest exposure; the highest is 1. Exposures are uniform in the logarithm."""

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def scene(split: str, index: int) -> tuple[np.ndarray, np.float32, int]:
    """Image ``index`` of ``split`` before exposure: f32[3, 64, 64] in [0, 1], its exposure, and its class."""
    rng = np.random.default_rng((SPLITS[split], index))
    label = int(rng.integers(len(CLASSES)))
    shape, texture = SHAPES[label // len(TEXTURES)], TEXTURES[label % len(TEXTURES)]
    center = rng.uniform(0.38, 0.62, 2) * SIZE
    radius = rng.uniform(0.24, 0.36) * SIZE
    angle = rng.uniform(0, 2 * np.pi)
    dx, dy = _X - np.float32(center[0]), _Y - np.float32(center[1])
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    frequency, phase = np.float32(rng.uniform(8.0, 11.0)), rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    pattern = _texture(texture, u, v, frequency, phase)
    background, foreground, other = _colors(rng)
    slope = rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    shading = (_X * slope[0] + _Y * slope[1]) / SIZE
    fill = np.where(pattern[None], foreground[:, None, None], other[:, None, None])
    image = np.where(_mask(shape, u, v)[None], fill, background[:, None, None] + shading[None])
    if rng.random() < 0.5:  # a bright bar that has nothing to do with the class
        row = int(rng.integers(SIZE - 3))
        image[:, row : row + 3, :] = rng.uniform(0, 1, 3).astype(np.float32)[:, None, None]
    image = image + rng.normal(0, rng.uniform(0.01, 0.06), image.shape).astype(np.float32)
    exposure = np.float32(np.exp(rng.uniform(np.log(DARKEST), 0.0)))
    return np.clip(image, 0, 1).astype(np.float32), exposure, label


def image(split: str, index: int) -> tuple[np.ndarray, int]:
    """Image ``index`` of ``split`` as the network sees it: f32[3, 64, 64] in [0, 1], and its class."""
    pixels, exposure, label = scene(split, index)
    return pixels * exposure, label


def _mask(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.85
    distance = np.hypot(u, v)
    if shape == "disc":
        return distance < 1
    if shape == "ring":
        return (distance < 1.05) & (distance > 0.5)
    return distance < 0.7 + 0.35 * np.cos(5 * np.arctan2(v, u))


def _texture(texture: str, u: np.ndarray, v: np.ndarray, frequency: np.float32, phase: np.ndarray) -> np.ndarray:
    if texture == "plain":
        return np.ones_like(u, bool)
    wave = np.sin(u * frequency + phase[0])
    if texture == "stripes":
        return wave > 0
    product = wave * np.sin(v * frequency + phase[1])
    return product > 0 if texture == "checker" else np.abs(product) > 0.45


def _colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Background, foreground and second texture colour; each pair differs by at least 0.5 summed over the channels."""
    while True:
        colors = rng.uniform(0, 1, (3, 3)).astype(np.float32)
        gaps = [np.abs(colors[i] - colors[j]).sum() for i, j in ((0, 1), (0, 2), (1, 2))]
        if min(gaps) >= 0.5:
            return colors[0], colors[1], colors[2]
