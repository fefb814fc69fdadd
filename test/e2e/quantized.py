"""From an imported network and images to a plan, a compiled program and the numpy reference, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Node
from mlir_passes.passes.outline_parameters import collect_parameters
from quantune.artifact.records import LayerExecution
from quantune.compiler import pipelines
from quantune.compiler.inspect import layer_executions
from quantune.compiler.iree import CompiledModule, compile_module
from quantune.compiler.pipelines import Debugging, Lowered
from quantune.compiler.targets import Target
from quantune.frontend.imported import ImportedModel
from quantune.numerics.affine import dequantize
from quantune.numerics.histogram import Histogram
from quantune.numerics.simulate import simulate
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan, make_plan, observed
from quantune.runtime.program import Program

HOST = Target("cpu")
LAYOUTS = ("nchw", "nhwc", "target")


@dataclass(frozen=True)
class Form:
    """How a program is built.

    layout: nchw as imported, nhwc for the plain channels-last form, target for what the pipeline makes of it for this
    machine. outlined: whether its numbers are parameters beside it.
    """

    layout: str = "target"
    outlined: bool = False


def plan_from_images(model: ImportedModel, images: NDArray[np.float32], config: QuantConfig) -> QuantizationPlan:
    """A plan from the ranges that the f32 network shows on ``images``, a batch of the model's size, in numpy."""
    tensors = simulate(model.network, {}, {}, images)
    statistics = {name: Histogram() for name in observed(model.network)}
    for name, histogram in statistics.items():
        histogram.add(tensors[name].reshape(-1))
    return make_plan(model.network, statistics, config)


def reference(model: ImportedModel, plan: QuantizationPlan, images: NDArray[np.float32]) -> list[NDArray]:
    """What numpy says the quantized program returns: f32, also where a result is quantized for its other readers."""
    tensors = simulate(model.network, plan.activations, plan.weights, images, shifts=plan.shifts)
    params = plan.activations
    return [dequantize(tensors[n], params[n]) if n in params else tensors[n] for n in model.network.outputs]


def is_exact(model: ImportedModel, plan: QuantizationPlan) -> bool:
    """Whether nothing is summed in f32, whose result would depend on the order and on contractions."""

    def in_integers(node: Node) -> bool:
        reads = all(name in plan.activations for name in node.inputs)
        if node.traits.weighted:
            return reads and node.name in plan.weights
        return reads and (node.kind in ("avgpool", "clamp") or _result(node) in plan.activations)

    def _result(node: Node) -> str:
        clamp = model.network.fused_clamp(node)
        return node.name if clamp is None else clamp.name

    def is_computed(node: Node) -> bool:
        return node.traits.takes_clamp or node.traits.function

    return all(in_integers(node) for node in model.network.nodes if is_computed(node))


def lower(model: ImportedModel, plan: QuantizationPlan | None, form: Form, precision: str = "int8") -> Lowered:
    """Run the passes for this machine."""
    if form.layout == "target":
        return pipelines.lower(model.bytecode, plan, HOST, precision, outline=form.outlined)
    lowered = pipelines.lower(model.bytecode, plan, HOST, precision, until="integer")
    module = pipelines.parse(lowered.module)
    if form.layout == "nhwc":
        pipelines.run(module, "quantune-to-nhwc", Debugging())
    if not form.outlined:
        return Lowered(pipelines.to_bytecode(module), None, lowered.pipeline)
    parameters = collect_parameters(module)
    pipelines.run(module, "quantune-outline-parameters", Debugging())
    return Lowered(str(module).encode(), parameters, lowered.pipeline)


def compiled(lowered: Lowered) -> Program:
    """The program, compiled for and loaded on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        return load(compile_to(lowered, Path(folder)), lowered)


def compile_to(lowered: Lowered, folder: Path) -> CompiledModule:
    """Compile for this machine."""
    return compile_module(lowered.module, HOST, output_dir=folder, failure_dir=folder)


def load(module: CompiledModule, lowered: Lowered) -> Program:
    """A compiled program with its numbers."""
    return Program(module.path.read_bytes(), parameters=lowered.parameters)


def executions(model: ImportedModel, module: CompiledModule) -> tuple[LayerExecution, ...]:
    """What the model's layers run in, by the compiler's own dispatches."""
    return layer_executions(module.dispatches, layers={node.layer for node in model.network.layers})


def integer_share(rows: Iterable[LayerExecution]) -> float:
    """The part of the multiplications that are integer ones."""
    macs = [(row.macs, row.is_integer) for row in rows]
    return sum(count for count, integer in macs if integer) / sum(count for count, _ in macs)


def sqnr_db(exact: NDArray, approximate: NDArray) -> float:
    """Signal to quantization noise ratio, in dB."""
    noise = np.square(exact.astype(np.float64) - approximate).sum()
    return float(10 * np.log10(np.square(exact.astype(np.float64)).sum() / noise)) if noise else float("inf")


def call(program: Program, images: NDArray[np.float32]) -> list[NDArray]:
    """The program's results, always as a list."""
    results = program(images)
    return list(results) if isinstance(results, tuple | list) else [results]


def assert_same_bits(actual: list[NDArray], expected: list[NDArray]) -> None:
    """Fail unless all arrays agree in shape, type and every bit (0.0 and -0.0 count as one)."""
    assert [(a.shape, a.dtype) for a in actual] == [(e.shape, e.dtype) for e in expected]
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)
