"""Give a trained MobileNetV2 the channel imbalance of ImageNet models, without changing what it computes.

The tensor between two inverted residuals is linear: no activation stands between the projection that writes it and the
expansion that reads it. Scaling channel c by s_c where it is written and by 1/s_c where it is read changes nothing in
f32 (s_c are powers of two, so not even the rounding), but the ranges of the channels now differ by orders of magnitude,
as they do in MobileNetV2 trained on ImageNet (Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019). A small network trained on a small task has no such imbalance: at 8 bits nearly all
settings are equal there.

  python -m quantune.zoo.imbalance TRAINED.safetensors OUT.safetensors [--octaves 1.75]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from quantune.frontend.torchvision_compat import torchvision

LARGEST = 4


def imbalance(model: nn.Module, octaves: float, seed: int = 0) -> None:
    """Scale the bottleneck channels of a torchvision MobileNetV2 in place, by 2**k, k normal.

    octaves: standard deviation of k. Blocks joined by residual additions write the same tensor and share their scales.
    |k| is at most 4.
    """
    rng = np.random.default_rng(seed)
    features = list(model.features)  # type: ignore[arg-type]
    blocks = features[1:-1]
    first = 0
    while first < len(blocks):
        last = first
        while last + 1 < len(blocks) and blocks[last + 1].use_res_connect:
            last += 1
        writers = [list(block.conv.children())[-1] for block in blocks[first : last + 1]]
        exponents = np.clip(np.rint(rng.normal(0, octaves, writers[0].num_features)), -LARGEST, LARGEST)
        scale = torch.tensor(2.0**exponents, dtype=torch.float32)
        with torch.no_grad():
            for norm in writers:
                norm.weight *= scale
                norm.bias *= scale
            for block in blocks[first + 1 : last + 2]:
                block.conv[0][0].weight /= scale[None, :, None, None]
            if last + 1 == len(blocks):
                features[-1][0].weight /= scale[None, :, None, None]
        first = last + 1


def main(argv: list[str] | None = None) -> int:
    """Command line of the script."""
    parser = argparse.ArgumentParser(prog="python -m quantune.zoo.imbalance", description=__doc__)
    parser.add_argument("trained", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--octaves", type=float, default=1.75)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with safe_open(arguments.trained, "pt") as file:
        metadata = dict(file.metadata())
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(arguments.trained).items()}
    classes = state["classifier.1.bias"].shape[0]
    model = torchvision().models.mobilenet_v2(weights=None, num_classes=classes)
    model.load_state_dict(state)
    model.eval()
    x = torch.rand(8, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        imbalance(model, arguments.octaves, arguments.seed)
        difference = float((model(x) - before).abs().max())
    print(f"largest change of an output: {difference:g}")
    how = f"k normal, {arguments.octaves} octaves, seed {arguments.seed}"
    metadata["imbalance"] = f"bottleneck channels scaled by 2**k, {how}"
    halves = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(halves, arguments.out, metadata)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
