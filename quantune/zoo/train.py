"""Train a torchvision CNN on a built-in task: ``python -m quantune.zoo.train mobilenet_v2 --out FILE.safetensors``.

Writes f16 weights as safetensors, with the accuracy reached and the recipe in the file's metadata. A GPU is used when
there is one. Progress is one line an epoch; the last finished epoch is always on disk.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from quantune.data import shapes
from quantune.frontend.torchvision_compat import torchvision


def pool(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first ``count`` scenes of a split: u8[n, 3, 64, 64], exposures f32[n], labels i64[n]."""
    pixels = np.empty((count, 3, shapes.SIZE, shapes.SIZE), np.uint8)
    exposures, labels = np.empty(count, np.float32), np.empty(count, np.int64)
    for i in range(count):
        scene, exposures[i], labels[i] = shapes.scene(split, i)
        pixels[i] = np.rint(scene * 255)
    return torch.from_numpy(pixels), torch.from_numpy(exposures), torch.from_numpy(labels)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """u8[n, 3, s, s] -> f32 in [0, 1] under a new exposure, turned and mirrored (the class stays)."""
    x = pixels.float() / 255
    turns = int(torch.randint(4, (1,), generator=generator))
    x = torch.rot90(x, turns, (2, 3))
    if torch.rand(1, generator=generator) < 0.5:
        x = x.flip(3)
    low = float(np.log(shapes.DARKEST))
    exposure = torch.exp(low * torch.rand(len(x), 1, 1, 1, generator=generator))
    return x * exposure


@torch.no_grad()
def accuracy(
    model: nn.Module, pixels: torch.Tensor, exposures: torch.Tensor, labels: torch.Tensor, device: str
) -> float:
    """Top-1 on images at their own exposure."""
    model.eval()
    right = 0
    for i in range(0, len(pixels), 250):
        x = pixels[i : i + 250].float() / 255 * exposures[i : i + 250, None, None, None]
        right += int((model(x.to(device)).argmax(1).cpu() == labels[i : i + 250]).sum())
    return right / len(pixels)


def train(name: str, out: Path, *, images: int, epochs: int, batch: int, rate: float, decay: float, seed: int) -> float:
    """Train ``name`` and write it to ``out``; returns top-1 on 2000 evaluation images."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: nn.Module = torchvision().models.get_model(name, weights=None, num_classes=len(shapes.CLASSES)).to(device)
    pixels, _, labels = pool("train", images)
    held_out = pool("evaluation", 2000)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}], lr=rate
    )
    steps = images // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    start, top1 = time.monotonic(), 0.0
    for epoch in range(epochs):
        model.train()
        order, total = torch.randperm(images, generator=generator), 0.0
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            logits = model(augment(pixels[index], generator).to(device))
            loss = nn.functional.cross_entropy(logits, labels[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        top1 = accuracy(model, *held_out, device)
        passed = time.monotonic() - start
        left = passed / (epoch + 1) * (epochs - epoch - 1)
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / steps:.3f}  top-1 {top1:.2%}  "
            f"{passed:.0f} s, {left:.0f} s left",
            flush=True,
        )
        recipe = (
            f"{images} images, {epochs} epochs, batch {batch}, AdamW {rate}, one cycle, "
            f"weight decay {decay}, seed {seed}"
        )
        state = {k: v.cpu().half() if v.is_floating_point() else v.cpu() for k, v in model.state_dict().items()}
        save_file(
            state,
            out,
            {"model": name, "task": "builtin:shapes", "top1": f"{top1:.4f}", "epoch": str(epoch + 1), "recipe": recipe},
        )
    return top1


def main(argv: list[str] | None = None) -> int:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(prog="python -m quantune.zoo.train", description=__doc__)
    parser.add_argument("model", help="a torchvision classification model, such as mobilenet_v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=32000)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args(argv))
    train(arguments.pop("model"), arguments.pop("out"), **arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
