"""Train a built-in network: ``python -m quantune.zoo.train resnet18_shapes [--out FILE.safetensors]``.

Uses a GPU when there is one. Every finished epoch is on disk, so that a training which was stopped goes on with the
next one; the weights appear whole, at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch import nn

from quantune.process.private import write_atomically
from quantune.zoo.pools import EVALUATION_IMAGES, Pool, augmented, pool
from quantune.zoo.recipes import RECIPES, Recipe

logger = logging.getLogger(__name__)

_DIGEST = hashlib.sha256().digest_size
"""A checkpoint begins with the digest of what follows."""

Report = Callable[[float, str], None]
"""Hears the part of the work that is done, from 0 to 1, and where the training is."""


def train(recipe: Recipe, out: Path, report: Report = lambda done, text: None) -> float:
    """Train the network of ``recipe`` and write its weights to ``out``; returns the accuracy (a fraction).

    The state after each epoch is in ``out`` with the suffix ``.training`` until the weights are written.
    """
    report(0.0, "drawing the images")
    images = pool(recipe.task, "train", recipe.images)
    held_out = pool(recipe.task, "evaluation", EVALUATION_IMAGES)
    run = _Run(recipe, len(images) // recipe.batch)
    checkpoint = out.with_suffix(".training")
    first = run.restore(checkpoint)
    top1 = 0.0
    for epoch in range(first, recipe.epochs):
        run.epoch(images, epoch, _within(recipe, epoch, top1, report))
        run.save(checkpoint, epoch + 1)
        top1 = accuracy(run.model, held_out, run.device)
    write_weights(run.model, recipe, top1, out)
    checkpoint.unlink(missing_ok=True)
    report(1.0, f"top-1 {top1:.2%}")
    return top1


class _Run:
    """A training under way."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.model = recipe.network().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.rate, recipe.epochs * steps, pct_start=0.2
        )

    def epoch(self, images: Pool, number: int, within: Callable[[float, float], None]) -> None:
        """One pass over the images; ``within`` hears the part of it that is done and the mean loss."""
        recipe, total = self.recipe, 0.0
        self.model.train()
        order = torch.randperm(len(images), generator=self.generator)
        for step in range(self.steps):
            index = order[step * recipe.batch : (step + 1) * recipe.batch]
            dark = _darkness(recipe, (number + step / self.steps) / recipe.epochs)
            x = augmented(recipe.task, images.pixels[index], self.generator, dark)
            if number < recipe.half_size:
                x = nn.functional.avg_pool2d(x, 2)
            x = x.to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device, torch.bfloat16, enabled=recipe.bf16):
                loss = nn.functional.cross_entropy(self.model(x), images.labels[index].to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach())
            within((step + 1) / self.steps, total / (step + 1))

    def _state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in parts.items()}

    def save(self, path: Path, epochs: int) -> None:
        """Replace the checkpoint at ``path``, whole or not at all."""
        random = {"images": self.generator.get_state(), "layers": torch.get_rng_state()}
        buffer = io.BytesIO()
        torch.save({**self._state(), "random": random, "epochs": epochs, "recipe": self.recipe.key}, buffer)
        write_atomically(path, hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())

    def restore(self, path: Path) -> int:
        """Go on from a checkpoint of the same recipe; returns the epochs done, 0 without a whole one."""
        if not path.is_file():
            return 0
        data = path.read_bytes()
        if hashlib.sha256(memoryview(data)[_DIGEST:]).digest() != data[:_DIGEST]:
            logger.warning("%s is damaged (its content does not fit its digest); the training begins anew", path)
            return 0
        state = torch.load(io.BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
        if state["recipe"] != self.recipe.key:
            return 0
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["random"]["images"])
        torch.set_rng_state(state["random"]["layers"])
        return state["epochs"]


def _darkness(recipe: Recipe, done: float) -> float:
    return 1.0 if done >= recipe.ramp else 0.2 + 0.8 * done / recipe.ramp


def _within(recipe: Recipe, epoch: int, top1: float, report: Report) -> Callable[[float, float], None]:
    """What turns the part of an epoch that is done, and its loss, into a report about the whole training."""
    costs = [0.25 if number < recipe.half_size else 1.0 for number in range(recipe.epochs)]
    before, known = sum(costs[:epoch]), f", top-1 {top1:.2%}" if top1 else ""

    def within(part: float, loss: float) -> None:
        done = (before + part * costs[epoch]) / sum(costs)
        report(min(done, 0.999), f"epoch {epoch + 1} of {recipe.epochs}, loss {loss:.3f}{known}")

    return within


@torch.no_grad()
def accuracy(model: nn.Module, images: Pool, device: str = "cpu") -> float:
    """Top-1 on a pool of images, each at its own exposure."""
    model.eval()
    right = 0
    for i in range(0, len(images), 250):
        x = images.images(i, i + 250).to(device, memory_format=torch.channels_last)
        right += int((model(x).argmax(1).cpu() == images.labels[i : i + 250]).sum())
    return right / len(images)


def write_weights(model: nn.Module, recipe: Recipe, top1: float, out: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all: kernels in f16, vectors (norms, biases) in f32."""
    state = {
        name: (v.half() if v.is_floating_point() and v.ndim > 1 else v).cpu().contiguous()
        for name, v in model.state_dict().items()
    }
    metadata = {"model": recipe.name, "recipe": repr(recipe), "top1": f"{top1:.4f}"}
    temporary = out.with_suffix(".partial")
    save_file(state, temporary, metadata)
    temporary.replace(out)


def main(argv: list[str] | None = None) -> int:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(prog="python -m quantune.zoo.train", description=__doc__)
    parser.add_argument("name", choices=RECIPES, metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--out", type=Path, help="default: NAME.safetensors")
    arguments = parser.parse_args(argv)
    recipe = RECIPES[arguments.name]
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"training {recipe.name}", total=1.0)
        out = arguments.out or Path(f"{recipe.name}.safetensors")
        top1 = train(recipe, out, lambda done, text: bar.update(task, completed=done, description=text))
    print(f"{out}: top-1 {top1:.2%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
