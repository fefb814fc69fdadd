"""Every kind of layer gets its kernel, in integers and in f32: none silently falls to generic code."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from quantized import plan_from_images
from torch import nn
from torch_mlir import ir

from mlir_passes.ir.build import layer_of, walk
from quantune.compiler import pipelines
from quantune.compiler.targets import Target
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan

SHAPE = (1, 3, 16, 16)


class Everything(nn.Module):
    """Each operation that has kernels, once, in a module of its own name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Conv2d(3, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=2)
        self.pointwise = nn.Conv2d(64, 32, 1)
        self.residual = nn.Conv2d(32, 32, 3, padding=1)
        self.maximum = nn.MaxPool2d(3, 1, 1)
        self.average, self.shrink = nn.AvgPool2d(2, 2), nn.MaxPool2d(2, 2)
        self.linear = nn.Linear(64, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.dense(x))
        x = nn.functional.relu6(self.depthwise(x))
        x = torch.relu(self.pointwise(torch.relu(self.grouped(x))))
        x = torch.relu(x + self.residual(x))
        x = self.maximum(x) + x  # no layer that the sum could go into
        both = torch.cat([self.average(x), self.shrink(x)], 1)
        n, c, h, w = both.shape
        mixed = both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        joined = torch.cat([mixed, self.average(x)], 1)
        return self.linear(joined[:, 16:80].mean((2, 3)))


@functools.cache
def _model() -> ImportedModel:
    return import_module(Everything().eval(), torch.zeros(SHAPE), "everything")


@functools.cache
def _plan(config: QuantConfig) -> QuantizationPlan:
    images = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).numpy()
    return plan_from_images(_model(), images, config)


def _calls(precision: str, cpu: str, scheme: str = "asymmetric") -> tuple[dict[str, list[str]], list[str]]:
    """Layer -> the kinds of kernels that it became; and the layers of the linalg operations that are left."""
    plan = _plan(QuantConfig(scheme=scheme)) if precision == "int8" else None
    lowered = pipelines.lower(_model().bytecode, plan, Target("cpu", cpu=cpu), precision)
    context = ir.Context()
    context.allow_unregistered_dialects = True
    module = ir.Module.parse(lowered.module, context=context)
    calls: dict[str, list[str]] = {}
    left = []
    for op in walk(module.operation):
        if op.name == "flow.dispatch":
            kind = re.search(r"@quantune_([a-z_]+)_\d+", str(op.attributes["entry_points"]))
            assert kind is not None
            calls.setdefault(layer_of(op) or "", []).append(kind[1])
        elif op.name.startswith("linalg.") and op.name != "linalg.yield":
            left.append(layer_of(op) or op.name)
    return calls, left


@pytest.mark.parametrize("cpu", ["znver4", "alderlake", "haswell", "neoverse-v1", "neoverse-n1"])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric_power2"])
def test_integers(cpu: str, scheme: str) -> None:
    calls, left = _calls("int8", cpu, scheme)
    assert left == []
    assert calls == {
        "": ["quantize"], "dense": ["conv"], "depthwise": ["depthwise"], "grouped": ["conv"], "pointwise": ["conv"],
        "residual": ["conv"], "maximum": ["max_pool"], "add_1": ["add"], "average": ["sum_pool"],
        "shrink": ["max_pool"], "view_1": ["interleave"], "cat_1": ["concat"], "mean": ["sum_pool"], "linear": ["conv"],
    }  # fmt: skip


@pytest.mark.parametrize("cpu", ["znver4", "haswell", "neoverse-n1"])
def test_f32(cpu: str) -> None:
    calls, left = _calls("f32", cpu)
    assert left == ["add_1", "linear"]  # an addition that no layer takes along, and a matrix product's bias
    assert calls == {
        "": ["transpose"], "dense": ["conv"], "depthwise": ["float_depthwise"], "grouped": ["conv"],
        "pointwise": ["conv"], "residual": ["conv"], "maximum": ["max_pool"], "average": ["sum_pool"],
        "shrink": ["max_pool"], "view_1": ["interleave"], "cat_1": ["concat"],
        "mean": ["sum_pool"], "linear": ["conv"],
    }  # fmt: skip


def test_a_layer_behind_a_kernel_keeps_its_reason() -> None:
    """Its operand becomes another one after the reason is known: what the kernel makes, as others read it."""
    narrow = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.ReLU())
    model = import_module(narrow.eval(), torch.zeros(SHAPE), "narrow")
    lowered = pipelines.lower(model.bytecode, None, Target("cpu", cpu="haswell"), "f32")
    assert lowered.reasons["1"] == "no kernel: it has 4 channels, fewer than the 8 of a vector"
