"""Which passes run for a request, what they leave behind, and how they fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_mlir import ir

from mlir_passes.passes.lower_quant import assert_no_quant
from mlir_passes.pipeline import Pipeline
from quantune.compiler import pipelines
from quantune.compiler.pipelines import Debugging
from quantune.compiler.targets import Target
from quantune.errors import PassFailed
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import SCHEMES
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import QuantizationPlan, make_plan, observed

GENERIC = Target("cpu", cpu="generic")


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return import_module(net, torch.zeros(1, 3, 8, 8), "net")


def _plan(model: ImportedModel, high: float = 2.0, precision: str = "int8") -> QuantizationPlan:
    histogram = Histogram()
    histogram.add(np.array([-1, high], np.float32))
    statistics = dict.fromkeys(observed(model.network), histogram)
    return make_plan(model.network, statistics, QuantConfig(precision=precision))


def _text(module: bytes) -> str:
    return str(pipelines.parse(module))


def test_stages(model: ImportedModel) -> None:
    texts = {
        stage: _text(pipelines.lower(model.bytecode, _plan(model), GENERIC, "int8", until=stage).module)
        for stage in pipelines.STAGES
    }
    assert "quant." not in texts["linalg"]
    assert "linalg.conv_2d_nchw_fchw" in texts["linalg"]
    assert texts["qdq"].count("quant.qcast") == 4
    assert "xi8>" not in texts["qdq"].replace("!quant", "")
    assert "quant." not in texts["integer"].replace("quantune.", "")
    assert texts["integer"].count("linalg.conv_2d_nchw_fchw") == 2
    assert "outs(%" in texts["integer"]
    assert "linalg.conv_2d_nhwc_hwcf" in texts["vmfb"]
    assert "nchw" not in texts["vmfb"]


def test_the_text_says_what_was_run(model: ImportedModel) -> None:
    lowered = pipelines.lower(model.bytecode, _plan(model), GENERIC, "int8", outline=True)
    assert lowered.pipeline == (
        "quantune-annotate,quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant,"
        "quantune-to-nhwc,quantune-outline-parameters"
    )
    assert str(Pipeline.parse(lowered.pipeline)) == lowered.pipeline
    assert pipelines.lower(model.bytecode, None, GENERIC, "f32").pipeline == "quantune-to-nhwc"
    assert pipelines.lower(model.bytecode, None, GENERIC, "f32", until="linalg").pipeline == ""
    assert pipelines.lower(model.bytecode, _plan(model), GENERIC, "int8", until="linalg").pipeline == ""


@pytest.mark.parametrize(
    ("target", "precision", "expected"),
    [
        (GENERIC, "f32", "quantune-to-nhwc"),
        (GENERIC, "int8", "quantune-to-nhwc"),
        (GENERIC, "f16", "quantune-convert-to-f16,quantune-to-nhwc"),
        (Target("vulkan"), "f32", "quantune-to-nhwc"),
        (
            Target("vulkan"),
            "mixed",
            "quantune-to-nhwc,linalg-generalize-named-ops,quantune-vulkan-sign-extension",
        ),
    ],
)
def test_passes_of_a_target(target: Target, precision: str, expected: str) -> None:
    assert pipelines.target_passes(target, precision) == expected


def test_f16_artifacts_compute_in_f16(model: ImportedModel) -> None:
    text = _text(pipelines.lower(model.bytecode, None, GENERIC, "f16").module)
    assert "tensor<3x3x3x4xf16>" in text
    assert "tensor<1x3x8x8xf32>" in text  # the signature stays


def test_programs_depend_on_no_number(model: ImportedModel) -> None:
    first, second = (
        pipelines.lower(model.bytecode, _plan(model, high), GENERIC, "int8", outline=True) for high in (2.0, 7.0)
    )
    assert first.module == second.module
    assert first.parameters is not None
    assert second.parameters is not None
    assert first.parameters.keys() == second.parameters.keys()
    differ = {name for name, array in first.parameters.items() if not np.array_equal(array, second.parameters[name])}
    assert "input.quantize.scale" in differ or "cast.quantize.scale" in differ
    assert "0.bias" in differ
    assert "0.weight" not in differ
    assert {array.dtype for name, array in first.parameters.items() if name.endswith("weight")} == {np.dtype(np.int8)}
    assert b"loc(" in first.module  # layers are found again by their locations


def test_numbers_inside_and_outside_are_the_same_program(model: ImportedModel) -> None:
    inside = pipelines.lower(model.bytecode, _plan(model), GENERIC, "int8")
    outside = pipelines.lower(model.bytecode, _plan(model), GENERIC, "int8", outline=True)
    assert inside.parameters is None
    module = pipelines.parse(inside.module)
    pipelines.run(module, "quantune-outline-parameters", Debugging())
    assert str(module) == str(ir.Module.parse(outside.module, context=_permissive()))


def _permissive() -> ir.Context:
    context = ir.Context()
    context.allow_unregistered_dialects = True
    return context


def test_nothing_quantized_is_left(model: ImportedModel) -> None:
    for precision in ("int8", "mixed"):
        plan = _plan(model, precision=precision)
        assert_no_quant(pipelines.parse(pipelines.lower(model.bytecode, plan, GENERIC, precision).module))


def test_instrumented_modules_return_the_tensors(model: ImportedModel) -> None:
    module = pipelines.parse(pipelines.instrumented(model.bytecode, ("input", "1"), GENERIC))
    signature = str(module.body.operations[0].attributes["function_type"])
    assert signature == ("(tensor<1x3x8x8xf32>) -> (tensor<1x2x8x8xf32>, tensor<1x3x8x8xf32>, tensor<1x4x8x8xf32>)")


def test_instrumented_modules_sample_the_tensors_where_strides_are_given(model: ImportedModel) -> None:
    module = pipelines.parse(pipelines.instrumented(model.bytecode, ("input", "1"), GENERIC, (7, 1)))
    functions = {str(op.attributes["sym_name"]): str(op.attributes["function_type"]) for op in module.body.operations}
    assert set(functions) == {'"main"', f'"{pipelines.SUMMARY}"'}
    assert functions[f'"{pipelines.SUMMARY}"'] == "(tensor<1x3x8x8xf32>, tensor<1xi64>) -> tensor<1x286xf32>"


# Failures and what is left for those who debug


def test_a_rejected_plan_names_the_pass_and_leaves_a_reproducer(model: ImportedModel, tmp_path: Path) -> None:
    wrong = QuantizationPlan({"nobody": SCHEMES["asymmetric"].params(-1, 1)}, {})
    with pytest.raises(PassFailed, match="has no tensor named 'nobody', which the plan quantizes") as caught:
        pipelines.lower(model.bytecode, wrong, GENERIC, "int8", debugging=Debugging(reproducer_dir=tmp_path / "new"))
    assert "pass quantune-annotate" in str(caught.value)
    reproducer = next((tmp_path / "new").glob("reproducer-*.mlir"))
    assert str(reproducer) in str(caught.value)
    text = reproducer.read_text()
    assert text.startswith("// RUN-ME: quantune-opt --pass-pipeline=")
    assert [path.name for path in reproducer.parent.iterdir()] == [reproducer.name]
    with pytest.raises(PassFailed, match="no tensor named 'nobody'"):  # the file alone fails as the request did
        pipelines.run(pipelines.parse(text.encode()), "quantune-annotate", Debugging())


def test_reasons_come_out_of_the_module(model: ImportedModel) -> None:
    plan = _plan(model)
    first, last = (node.name for node in model.network.layers)
    narrowed = QuantizationPlan(plan.activations, {last: plan.weights[last]})
    lowered = pipelines.lower(model.bytecode, narrowed, GENERIC, "int8")
    assert lowered.reasons == {
        first: "in f32: its weights are not quantized",
        "1": f"in f32: it reads '{first}', which is not quantized",
    }
    assert "quantune.missed" not in str(pipelines.parse(lowered.module))
    assert pipelines.lower(model.bytecode, plan, GENERIC, "int8").reasons == {}


def test_without_a_folder_nothing_is_left(
    model: ImportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(PassFailed):
        pipelines.lower(
            model.bytecode, QuantizationPlan({}, {"nobody": SCHEMES["symmetric"].params(-1, 1)}), GENERIC, "int8"
        )
    assert list(tmp_path.iterdir()) == []


def test_ir_dumps(model: ImportedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    debugging = Debugging(dump_dir=tmp_path / "dump", print_ir=True)
    pipelines.lower(model.bytecode, _plan(model), GENERIC, "int8", debugging=debugging)
    files = sorted(path.name for path in (tmp_path / "dump").rglob("*.mlir"))
    assert [name.partition("_")[2] for name in files] == [
        "quantune-annotate.mlir", "quantune-insert-qdq.mlir", "quantune-lower-qdq-to-integer.mlir",
        "quantune-lower-quant.mlir", "quantune-to-nhwc.mlir",
    ]  # fmt: skip
    assert "IR Dump After InsertQdq" in capfd.readouterr().err
