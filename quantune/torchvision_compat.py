"""The one place that imports torchvision.

torchvision's compiled operators cannot load beside a CPU build of torch; its Python code then fails at import because
it registers fake kernels for two operators that nobody defined. Defining their schemas first is enough: classification
models use neither.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def torchvision() -> ModuleType:
    """The torchvision package, importable with or without its compiled operators."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in ("torchvision::nms", "torchvision::qnms"):
            torch.library.define(name, _SCHEMA)
        import torchvision
    return torchvision
