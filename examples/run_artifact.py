"""Run an artifact with IREE's runtime alone (pip install iree-base-runtime numpy): no quantune, no torch, no compiler.

    python run_artifact.py best.vmfb [images.npy]      images f32[n, c, h, w]; a black one where none are given

Prints the class and the score of every image.
"""

from __future__ import annotations

import re
import sys

import iree.runtime as rt
import numpy as np


def load(path: str, device: str = "local-sync") -> tuple[rt.FunctionInvoker, tuple[int, ...]]:
    """The artifact's function, and the shape of the images that it takes in one call, batch first."""
    config = rt.Config(device)  # local-sync: one thread; local-task, vulkan, cuda as the artifact's target asks for
    module = rt.VmModule.mmap(config.vm_instance, path)
    context = rt.SystemContext(config=config)
    context.add_vm_module(module)
    function = context.modules[module.name]["main"]
    declared = function.vm_function.reflection["iree.abi.declaration"]  # sync func @main(%input0: tensor<1x3x64x64xf32>
    found = re.search(r"tensor<((?:\d+x)+)f32>", declared)
    assert found is not None, declared
    return function, tuple(int(size) for size in found[1].rstrip("x").split("x"))


def main(arguments: list[str]) -> None:
    """Print what the artifact says of the images."""
    function, (batch, *image) = load(arguments[0])
    images = np.load(arguments[1]) if len(arguments) > 1 else np.zeros((1, *image), np.float32)
    for first in range(0, len(images), batch):
        shown = images[first : first + batch]
        full = np.concatenate([shown, np.zeros((batch - len(shown), *image), np.float32)])
        logits = function(full.astype(np.float32)).to_host()
        for i in range(len(shown)):
            print(f"image {first + i}: class {logits[i].argmax()}, score {logits[i].max():.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
