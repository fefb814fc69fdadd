"""How each built-in network was trained: one table, from which quantune.zoo.train trains it again."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from torch import nn

from quantune.torchvision_compat import torchvision

CLASSES = {"shapes": 16, "digits": 10}
SIZES = {"shapes": 64, "digits": 32}


@dataclass(frozen=True)
class Recipe:
    """A network, its task and its training.

    images: of the task's training split. epochs: passes over them, of which the first ``half_size`` see images of half
    the size, at a quarter of the cost. rate: peak of one cycle of AdamW. decay: of matrices and kernels only.
    top1: accuracy on the task's evaluation images (the first 2000 of shapes, all of digits); None where the recipe has
    not been run to its end. minutes: about, on two CPU cores.
    bf16: multiply in bfloat16; the weights stay f32. ramp: the part of the training in which the images of shapes
    become as dark as those of the task; networks without norms learn nothing when they meet the darkest first.
    clip: bound of the gradient's norm, 0 for none. octaves: of the channel imbalance, see quantune.zoo.imbalance.
    """

    architecture: str
    task: str
    images: int
    epochs: int
    half_size: int
    rate: float
    decay: float
    top1: float | None
    minutes: int
    bf16: bool = False
    ramp: float = 0.0
    clip: float = 0.0
    batch: int = 64
    seed: int = 0
    octaves: float = 0.0

    def __post_init__(self) -> None:
        if self.task not in CLASSES:
            raise ValueError(f"task {self.task}: expected one of {', '.join(CLASSES)}")
        if not (0 <= self.half_size < self.epochs and 0 < self.batch <= self.images):
            raise ValueError(f"{self.name}: {self.epochs} epochs, {self.half_size} of half size, batch {self.batch}")

    @property
    def name(self) -> str:
        """Architecture and task: what ``builtin:`` references."""
        return f"{self.architecture}_{self.task}"

    @property
    def key(self) -> str:
        """A hash of what decides the trained weights."""
        told = {"top1", "minutes", "octaves"}
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in told}
        return hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:16]

    def network(self) -> nn.Module:
        """The architecture of this recipe with random weights, in evaluation mode."""
        options = {"aux_logits": False, "init_weights": False} if self.architecture == "googlenet" else {}
        classes = CLASSES[self.task]
        return torchvision().models.get_model(self.architecture, weights=None, num_classes=classes, **options).eval()


_TABLE = (
    Recipe("mobilenet_v2", "shapes", 32_000, 14, 0, 3e-3, 0.05, 0.9935, 60, octaves=1.75),
    Recipe("squeezenet1_1", "shapes", 24_000, 30, 20, 6e-4, 0.01, 0.83, 9, ramp=0.6, clip=1.0),
    Recipe("shufflenet_v2_x1_0", "shapes", 20_000, 11, 6, 3e-3, 0.05, 0.8755, 5, octaves=0.5),
    Recipe("resnet18", "shapes", 12_000, 6, 4, 2e-3, 0.05, 0.8845, 4, bf16=True, octaves=0.75),
    Recipe("googlenet", "shapes", 16_000, 12, 8, 2e-3, 0.05, 0.9655, 9, bf16=True, ramp=0.6, octaves=0.75),
    Recipe("resnet50", "shapes", 16_000, 9, 6, 1.5e-3, 0.05, 0.742, 24, bf16=True, ramp=0.6),
    Recipe("squeezenet1_1", "digits", 1078, 80, 0, 6e-4, 0.01, 0.9944, 1, clip=1.0, batch=16, octaves=1.0),
    Recipe("resnet18", "digits", 1078, 30, 0, 2e-3, 0.05, 0.9963, 2, bf16=True),
)

RECIPES = {recipe.name: recipe for recipe in _TABLE}
"""The built-in networks by name."""

PLAIN = "_plain"
"""What a name ends with that means the network as trained, without the channel imbalance of its recipe."""


def names() -> list[str]:
    """All names that ``builtin:`` takes."""
    return [*RECIPES, *(name + PLAIN for name, recipe in RECIPES.items() if recipe.octaves)]
