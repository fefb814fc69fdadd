"""What the authors of Quantune published, for comparison: arXiv 2202.05048 and the first author's experiments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One model of the paper: top-1 in percent, and the trials that each search needed to its own final value."""

    model: str
    f32: float
    best: float
    trials: tuple[int, int, int, int]

    @property
    def drop(self) -> float:
        """Points of top-1 lost by the best configuration."""
        return self.f32 - self.best


SEARCHES = ("random", "grid", "XGB", "XGB-T")
MODELS = (
    Published("MobileNetV2", 71.81, 71.23, (11, 29, 22, 2)),
    Published("ShuffleNet", 63.96, 63.41, (47, 63, 28, 36)),
    Published("SqueezeNet", 53.80, 53.15, (29, 29, 30, 4)),
    Published("GoogLeNet-v4", 70.39, 70.58, (62, 21, 51, 2)),
    Published("ResNet18", 70.67, 70.25, (30, 21, 24, 14)),
    Published("ResNet50", 76.08, 76.01, (30, 45, 48, 28)),
)
"""In the order in which this project shows its own six."""
