"""Other weights and biases in place of a network's own, in every form in which a layer has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlir_passes.ops.reader import read_network
from mlir_passes.passes.set_constants import hold_constants
from quantune.compiler import pipelines
from quantune.compiler.iree import compile_module
from quantune.compiler.pipelines import Debugging
from quantune.compiler.targets import Target
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics import affine
from quantune.numerics.histogram import Histogram
from quantune.numerics.simulate import simulate
from quantune.quantization import constants
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant, with_constants
from quantune.quantization.plan import QuantizationPlan, make_plan, observed
from quantune.runtime.program import Program

GENERIC = Target("cpu", cpu="generic")


class Net(nn.Module):
    """Every form of a layer, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.bare = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.deep, self.grouped = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1, groups=2)
        self.bare_groups = nn.Conv2d(6, 6, 1, groups=2, bias=False)
        self.head, self.bare_head = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)
        self.shift, self.more = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bare(torch.relu(self.dense(x))) + self.shift + self.more)
        x = torch.relu(self.bare_groups(self.grouped(self.deep(x))))
        return self.bare_head(self.head(x.mean((2, 3))))


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    torch.manual_seed(0)
    return import_module(Net(), torch.zeros(2, 3, 6, 6), "net")


def _plan(model: ImportedModel) -> QuantizationPlan:
    histogram = Histogram()
    histogram.add(np.array([-1, 2], np.float32))
    return make_plan(model.network, dict.fromkeys(observed(model.network), histogram), QuantConfig())


def _others(model: ImportedModel, seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        node.name: {
            "weight": rng.normal(size=node.weight.shape).astype(np.float32),
            "bias": rng.normal(size=node.bias.shape).astype(np.float32),
        }
        for node in model.network.layers
        if node.weight is not None and node.bias is not None
    }


def test_the_network_reads_as_it_was_but_for_its_numbers(model: ImportedModel) -> None:
    assert [node.name for node in model.network.layers] == [
        "dense", "bare", "deep", "grouped", "bare_groups", "head", "bare_head"
    ]  # fmt: skip
    others = _others(model, 1)
    module = pipelines.parse(model.bytecode)
    hold_constants(module.operation, others)
    pipelines.run(module, "quantune-set-constants", Debugging())
    assert module.operation.verify()
    found = read_network(module.operation).network
    assert [(n.name, n.kind, n.inputs, n.shape) for n in found.nodes] == [
        (n.name, n.kind, n.inputs, n.shape) for n in model.network.nodes
    ]
    for node in found.layers:
        np.testing.assert_array_equal(node.weight, others[node.name]["weight"])
        np.testing.assert_array_equal(node.bias, others[node.name]["bias"])
    zeros = {name: {"bias": np.zeros_like(parts["bias"])} for name, parts in others.items()}
    hold_constants(module.operation, zeros)
    pipelines.run(module, "quantune-set-constants", Debugging())
    for node in read_network(module.operation).network.layers:
        assert node.bias is not None
        assert not node.bias.any()
        np.testing.assert_array_equal(node.weight, others[node.name]["weight"])


def _refined(model: ImportedModel, plan: QuantizationPlan) -> QuantizationPlan:
    """The plan with other integers and biases."""
    found = {}
    for name, parts in _others(model, 2).items():
        params = plan.weights[name]
        found[name] = Constant(affine.dequantize(affine.quantize(parts["weight"], params), params), parts["bias"])
    return QuantizationPlan(plan.activations, plan.weights, constants=found)


def test_constants_are_numbers_and_the_program_is_the_same(model: ImportedModel) -> None:
    plan = _plan(model)
    refined = _refined(model, plan)
    before, after = (pipelines.lower(model.bytecode, p, GENERIC, "int8", outline=True) for p in (plan, refined))
    assert before.module == after.module
    assert before.parameters is not None
    assert after.parameters is not None
    changed = {name for name in before.parameters if (before.parameters[name] != after.parameters[name]).any()}
    assert {f"{node.name}.weight" for node in model.network.layers} <= changed
    assert after.pipeline == f"quantune-set-constants,{before.pipeline}"
    assert plan.digest() != refined.digest()


@pytest.mark.parametrize("only", ["weight", "bias", ""])
def test_a_refined_network_is_exact_to_the_simulation(model: ImportedModel, only: str, tmp_path: Path) -> None:
    plan = _refined(model, _plan(model))
    kept = {
        name: Constant(*(array if only in ("", part) else None for part, array in each.parts.items()))
        for name, each in plan.constants.items()
    }
    plan = QuantizationPlan(plan.activations, plan.weights, constants=kept)
    lowered = pipelines.lower(model.bytecode, plan, Target("cpu"), "int8")
    compiled = compile_module(lowered.module, Target("cpu"), output_dir=tmp_path, failure_dir=tmp_path)
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
    network = with_constants(model.network, kept)
    expected = simulate(network, plan.activations, plan.weights, x)[network.outputs[0]]
    np.testing.assert_array_equal(Program(compiled.path.read_bytes())(x), expected)
    plain = simulate(model.network, plan.activations, plan.weights, x)[network.outputs[0]]
    assert not np.array_equal(plain, expected)


def test_constants_survive_a_file(model: ImportedModel) -> None:
    refined = _refined(model, _plan(model)).constants
    refined = {**refined, "head": Constant(bias=refined["head"].bias)}
    again = constants.from_bytes(constants.to_bytes(refined))
    assert constants.digest(again) == constants.digest(refined)
    assert again["head"].weight is None
    assert constants.digest({}) != constants.digest(refined) != constants.digest({**refined, "head": Constant()})
    for bad in (b"", b"PK", constants.to_bytes(refined)[:-30]):
        with pytest.raises(ValueError, match="no constants"):
            constants.from_bytes(bad)


def test_what_does_not_fit_is_refused(model: ImportedModel) -> None:
    plan = _plan(model)
    bias = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="'relu' is no integer layer"):
        QuantizationPlan(plan.activations, plan.weights, constants={"relu": Constant(bias=bias)})
    off = np.full((4, 4, 1, 1), 0.1001, np.float32)
    with pytest.raises(ValueError, match="weight of 'bare' does not lie on its grid"):
        QuantizationPlan(plan.activations, plan.weights, constants={"bare": Constant(off)})
    with pytest.raises(ValueError, match="expected finite f32"):
        Constant(bias=np.array([np.nan], np.float32))
    with pytest.raises(ValueError, match="bias of type float64"):
        Constant(bias=np.ones(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer 'nobody'"):
        with_constants(model.network, {"nobody": Constant(bias=bias)})
    with pytest.raises(ValueError, match=r"the bias of 'head' has shape \(4,\); expected \(5,\)"):
        with_constants(model.network, {"head": Constant(bias=bias)})
