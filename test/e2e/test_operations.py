"""An operation is a line of a table and two rooms, an instruction set one class: those entered from here work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from integer_layers import Case, module, numbers
from quantized import Form, assert_same_bits, call, compiled, is_exact, lower, plan_from_images, reference
from torch import nn
from torch_mlir import ir
from torch_mlir.dialects import arith

from mlir_passes import ops
from mlir_passes.base import Missed
from mlir_passes.cpu.isa import VARIANTS
from mlir_passes.cpu.isa.base import vectors
from mlir_passes.cpu.isa.x86 import Vnni
from mlir_passes.ir import match
from mlir_passes.ir.build import elementwise, tensor_type
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.kernels.text import Kernel
from mlir_passes.network import Node
from mlir_passes.ops.emit import Emitter
from mlir_passes.ops.reader import Reader
from mlir_passes.ops.requantize import i32
from mlir_passes.pipeline import Pipeline
from quantune.compiler.inspect import product_of
from quantune.compiler.targets import Target
from quantune.frontend.importer import import_module
from quantune.numerics import affine
from quantune.numerics import ops as numpy_ops
from quantune.numerics.ops import Operands, Tensor
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import lay_out

LAST_PARTS = {kind: traits.room.rpartition(".")[2] for kind, traits in ops.OPERATIONS.items()}


def test_both_packages_name_the_same_operations() -> None:
    assert {kind: room.rpartition(".")[2] for kind, room in numpy_ops.OPERATIONS.items()} == LAST_PARTS


@pytest.mark.parametrize("kind", ops.OPERATIONS)
def test_every_room_is_complete(kind: str) -> None:
    room, numpy_room = ops.room_of(kind), numpy_ops.room_of(kind)
    assert {"recognize", "integer"} <= set(dir(room))
    assert numpy_room is not None
    assert {"real", "integer"} <= set(dir(numpy_room))
    assert hasattr(room, "real") or not ops.OPERATIONS[kind].ends_in_f32


# A toy: the negative of a tensor, which has its own quantization and takes a clamp along


def _recognize(op: ir.Operation, reader: Reader) -> bool | Missed:
    if not match.is_elementwise(op) or [step.name for step in match.body_of(op)] != ["arith.negf", "linalg.yield"]:
        return False
    (source,) = match.inputs_of(op)
    return reader.add(op, "negate", (source,)) if reader.knows(source) else Missed("negates a constant")


def _integer(emit: Emitter, inputs: Sequence[QuantSpec], y: QuantSpec, bounds: tuple[int, int]) -> ir.Value:
    (x,) = inputs

    def body(value: ir.Value) -> ir.Value:
        return arith.subi(arith.constant(i32(), 0), arith.extsi(i32(), value))

    total = elementwise([emit.inputs[0]], tensor_type(emit.node.shape, np.int32), body, layer=emit.node.layer)
    channels = emit.node.shape[1]
    bias = np.full(channels, int(x.zero_point_array), np.int32)
    ratio = np.full(channels, float(x.scale_array) / float(y.scale_array))
    return emit.requantize(total, bias, ratio, y, bounds, shift=False)


def _numpy_real(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    return -inputs[0]


def _numpy_integer(node: Node, x: Operands) -> Tensor | None:
    (s_x,), target = x.specs, x.target
    if target is None:
        return None
    m = affine.multiplier(s_x.scale, 1.0, target.scale)
    total = int(s_x.zero_point) - x.inputs[0].astype(np.int32)
    return np.clip(affine.requantize(total, m, target.zero_point, target.qmin, target.qmax), x.lo, x.hi)


class Negating(nn.Module):
    """A layer, its negative, clamped, and another layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(-self.first(x)))


def _enter(monkeypatch: pytest.MonkeyPatch) -> None:
    room, numpy_room = ModuleType("toy_room"), ModuleType("toy_numpy_room")
    room.recognize, room.integer = _recognize, _integer  # type: ignore[attr-defined]
    numpy_room.real, numpy_room.integer = _numpy_real, _numpy_integer  # type: ignore[attr-defined]
    for made in (room, numpy_room):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    # Before all others: a negative is a function of one value, which the room of tables takes.
    entered = {"negate": ops.Traits(room.__name__, takes_clamp=True), **ops.OPERATIONS}
    monkeypatch.setattr(ops, "OPERATIONS", entered)
    monkeypatch.setitem(numpy_ops.OPERATIONS, "negate", numpy_room.__name__)


def test_an_operation_from_outside_runs_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 3, 8, 8)
    calibration, x = np.random.default_rng(0).normal(0, 1, (2, *shape)).astype(np.float32)
    before = import_module(Negating().eval(), torch.zeros(shape), "negating").network
    assert [node.kind for node in before.nodes] == ["input", "conv", "table", "conv"]
    _enter(monkeypatch)
    model = import_module(Negating().eval(), torch.zeros(shape), "negating")
    assert [node.kind for node in model.network.nodes] == ["input", "conv", "negate", "clamp", "conv"]
    names = [node.name for node in model.network.nodes]
    assert set(names[1:]) <= lay_out(model.network, frozenset((names[1], names[4]))).integer
    plan = plan_from_images(model, calibration, QuantConfig())
    assert is_exact(model, plan)
    lowered = lower(model, plan, Form())
    assert not lowered.reasons or "in f32" not in str(lowered.reasons)
    assert_same_bits(call(compiled(lowered), x), reference(model, plan, x))


@dataclass(frozen=True)
class Toy(Vnni):
    """An instruction set that differs from VNNI by the name of its product."""

    products = {"toy.dot": "i8"}  # noqa: RUF012

    def multiply_add(self, k: Kernel, acc: str, x: str, weight: str, width: int) -> str:
        """Emit the toy's product."""
        sums, _, data = vectors(width)
        return k.intrinsic("llvm.toy.dot", [acc, x, weight], [sums, data, data], sums)


def test_an_instruction_set_from_outside_is_a_target_a_variant_and_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "toy", Toy("toy", ("toyfeature",), 32, 16, ("toylake",)))
    assert Target("cpu", cpu="toylake").kernels() == "toy"
    assert Target("cpu", cpu="generic+toyfeature").kernels() == "toy"
    assert product_of("llvm.toy.dot.256") == "i8"
    case = Case("conv", 6, 6, 8, 16, (3, 3), pads=(1, 1, 1, 1))
    parsed = ir.Module.parse(module(case, "multiplier", numbers(case, "multiplier")), context=ir.Context())
    Pipeline.parse("quantune-lower-to-cpu-kernels{features=toy}").run(parsed)
    assert "llvm.toy.dot" in str(parsed)
    assert "vpdpbusd" not in str(parsed)
