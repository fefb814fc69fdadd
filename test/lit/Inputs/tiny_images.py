"""Sixteen 8x8 images for driver tests."""

import numpy as np


def make():
    rng = np.random.default_rng(0)
    return [(rng.random((3, 8, 8), np.float32), i % 4) for i in range(16)]
