"""Networks written as ONNX with Q/DQ: what ONNX Runtime computes from the file against the numpy simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from mlir_passes.network import Network
from quantune.cli import compile
from quantune.errors import EnvironmentFailure, UsageError
from quantune.export.qdq import to_onnx
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.histogram import Histogram
from quantune.numerics.simulate import simulate
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan, make_plan, observed
from quantune.tuning import exports

SHAPE = (2, 3, 9, 9)
Conv = nn.Conv2d


class Net(nn.Module):
    """A forward function over a list of modules."""

    def __init__(self, forward: Callable, *modules: nn.Module) -> None:
        super().__init__()
        self.run, self.m = forward, nn.ModuleList(modules)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.m, x)


def _residual(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(m[0](x))
    x = F.relu(x + m[1](x))
    return m[2](F.max_pool2d(x, 3, 2, 1).mean((2, 3)))


RESIDUAL = Net(_residual, Conv(3, 6, 3, padding=1), Conv(6, 6, 3, padding=1, groups=2), nn.Linear(6, 5))
NETS = {
    "residual": RESIDUAL,
    "uneven windows": Net(
        lambda m, x: m[1](m[0](x)), Conv(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), Conv(4, 3, 1)
    ),
    "depthwise, relu6": Net(lambda m, x: m[1](F.relu6(m[0](x))), Conv(3, 6, 3, groups=3), Conv(6, 4, 1)),
    "clamps": Net(lambda m, x: m[1](m[0](x).clamp(max=0.3)), Conv(3, 4, 1), Conv(4, 4, 1)),
    "concat, slice": Net(
        lambda m, x: m[2](torch.cat([m[0](x), m[1](x)], 1)[:, 1:5, 2:]), Conv(3, 4, 1), Conv(3, 4, 1), Conv(4, 2, 1)
    ),
    "shuffle": Net(
        lambda m, x: m[1](m[0](x).reshape(2, 2, 3, 9, 9).transpose(1, 2).reshape(2, 6, 9, 9)), Conv(3, 6, 1),
        Conv(6, 2, 1),
    ),
    "average, own divisor": Net(
        lambda m, x: m[1](F.avg_pool2d(m[0](x), 2, divisor_override=3)), Conv(3, 4, 1), Conv(4, 2, 1)
    ),
    "numbers of channels, as many as a row has": Net(
        lambda m, x: m[2](m[1](m[0](x))), Conv(3, 9, 1), nn.PReLU(9), Conv(9, 2, 1)
    ),
    "zeros around": Net(lambda m, x: m[1](F.relu(F.pad(m[0](x), (1, 2, 0, 1)))), Conv(3, 4, 1), Conv(4, 2, 1)),
    "table": Net(lambda m, x: m[1](F.hardswish(m[0](x))), Conv(3, 4, 1), Conv(4, 2, 1)),
    "sum": Net(lambda m, x: m[1](F.relu(m[0](x).sum(3, keepdim=True))), Conv(3, 4, 1), Conv(4, 2, 1)),
    "mean": Net(lambda m, x: m[1](m[0](x).mean(1, keepdim=True)), Conv(3, 4, 1), Conv(1, 2, 1)),
    "maximum": Net(lambda m, x: m[1](m[0](x).amax(3, keepdim=True)), Conv(3, 4, 1), Conv(4, 2, 1)),
    "subtract": Net(lambda m, x: m[2](F.relu(m[0](x) - m[1](x))), Conv(3, 4, 1), Conv(3, 4, 1), Conv(4, 2, 1)),
    "product": Net(
        lambda m, x: m[2](m[0](x) * torch.sigmoid(m[1](x.mean((2, 3), keepdim=True)))), Conv(3, 4, 1), Conv(3, 4, 1),
        Conv(4, 2, 1),
    ),
    "average, padded": Net(lambda m, x: m[1](F.avg_pool2d(m[0](x), 3, 2, 1)), Conv(3, 4, 1), Conv(4, 2, 1)),
}  # fmt: skip


def imported(net: nn.Module, shape: Sequence[int] = SHAPE) -> ImportedModel:
    return import_module(net.eval(), torch.zeros(*shape), "net")


def images(shape: Sequence[int] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0.2, 1, shape).astype(np.float32)


def planned(network: Network, x: NDArray[np.float32], **options: str) -> QuantizationPlan:
    tensors = simulate(network, {}, {}, x)
    statistics = {name: Histogram() for name in observed(network)}
    for name, histogram in statistics.items():
        histogram.add(tensors[name].reshape(-1).astype(np.float32))
    line = ",".join(f"{key}={value}" for key, value in {"precision": "int8", **options}.items())
    return make_plan(network, statistics, QuantConfig.parse(line))


def run(model: bytes, x: NDArray[np.float32], *, fused: bool, tensors: bool = False) -> dict[str, NDArray]:
    """The results by name; with ``tensors`` the integers of each quantized tensor too."""
    form = onnx.load_from_string(model)
    made = {node.output[0]: node for node in form.graph.node if node.op_type == "QuantizeLinear"} if tensors else {}
    types = {c.name: c.data_type for c in form.graph.initializer}
    for name, node in made.items():
        form.graph.output.append(onnx.helper.make_tensor_value_info(name, types[node.input[2]], None))
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(form.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers = session.run(names, {session.get_inputs()[0].name: x})
    return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}


@pytest.mark.parametrize("name", NETS)
def test_in_f32_it_is_the_network(name: str) -> None:
    x = images()
    [found] = run(to_onnx(imported(NETS[name]).bytecode, None, "net", {}), x, fused=False).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, NETS[name](torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", NETS)
def test_integers_are_those_of_the_simulation(name: str, granularity: str, scheme: str) -> None:
    """Sums in f32 and additions in f32 may round the other way where the exact result is close to the middle."""
    model, x = imported(NETS[name]), images()
    plan = planned(model.network, x, scheme=scheme, granularity=granularity, precision="int8")
    expected = simulate(model.network, plan.activations, plan.weights, x, shifts=plan.shifts)
    found = run(to_onnx(model.bytecode, plan, "net", {}), x, fused=False, tensors=True)
    assert len(found) == 1 + len(plan.activations)
    for tensor, params in plan.activations.items():
        integers = found[f"{tensor}/quantized"]
        assert integers.dtype == params.dtype
        off = np.abs(integers.astype(int) - expected[tensor].astype(int))
        assert off.max() <= 1, tensor
        assert np.mean(off > 0) <= 0.01, tensor


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_a_runtime_that_fuses_pairs_computes_the_same(scheme: str) -> None:
    model, x = imported(RESIDUAL), images()
    plan = planned(model.network, x, scheme=scheme, granularity="channel", precision="int8")
    [expected] = [simulate(model.network, plan.activations, plan.weights, x)[name] for name in model.network.outputs]
    found = run(to_onnx(model.bytecode, plan, "net", {}), x, fused=True)["output"]
    last = model.network.layers[-1].name
    step = float(plan.activations[model.network.by_name[last].inputs[0]].scale)
    assert np.abs(found - expected).max() <= step


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_openvino_loads_it(scheme: str) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model, x = imported(RESIDUAL), images()
    plan = planned(model.network, x, scheme=scheme, granularity="channel")
    [expected] = [simulate(model.network, plan.activations, plan.weights, x)[name] for name in model.network.outputs]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(to_onnx(model.bytecode, plan, "net", {})), "CPU")
    [found] = compiled([x]).values()
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


def test_layers_left_in_float_are_plain() -> None:
    model, x = imported(RESIDUAL), images()
    plan = planned(model.network, x, precision="mixed")
    form = onnx.load_from_string(to_onnx(model.bytecode, plan, "net", {}))
    made = {node.output[0]: node for node in form.graph.node}
    first, middle, last = model.network.layers
    for layer in (first, last):
        assert layer.name not in plan.weights
        assert f"{layer.name}/weight" not in made
    assert made[f"{middle.name}/weight"].op_type == "DequantizeLinear"
    assert [a.i for a in made[f"{middle.name}/weight"].attribute if a.name == "axis"] == [0]


@pytest.mark.parametrize(
    ("bits", "kind"), [("w8", "INT8"), ("w5", "INT8"), ("w4", "INT4"), ("w2", "INT4"), ("w4p", "INT8")]
)
def test_weights_have_the_type_of_their_bits(bits: str, kind: str) -> None:
    model, x = imported(RESIDUAL), images()
    plan = planned(model.network, x, bits=bits, granularity="channel")
    form = onnx.load_from_string(to_onnx(model.bytecode, plan, "net", {}))
    held = {c.name: c for c in form.graph.initializer if c.name.endswith("/weight/quantized")}
    assert {onnx.TensorProto.DataType.Name(c.data_type) for c in held.values()} == {kind}
    expected = simulate(model.network, plan.activations, plan.weights, x)[model.network.outputs[0]]
    found = run(form.SerializeToString(), x, fused=False)["output"]
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_activations_of_fewer_bits_saturate_as_planned() -> None:
    model, x = imported(RESIDUAL), images()
    plan = planned(model.network, x, bits="w8a4")
    found = run(to_onnx(model.bytecode, plan, "net", {}), 100 * x, fused=False, tensors=True)
    expected = simulate(model.network, plan.activations, plan.weights, 100 * x)
    for tensor, params in plan.activations.items():
        assert found[f"{tensor}/quantized"].max() == expected[tensor].max() <= params.qmax


def test_replaced_constants_are_written() -> None:
    model, x = imported(RESIDUAL), images()
    plan = planned(model.network, x)
    last = model.network.layers[-1]
    assert last.bias is not None
    zero = np.zeros_like(last.weight)
    moved = {"bias": Constant(bias=last.bias + 3), "weight": Constant(weight=zero)}
    made = {n: QuantizationPlan(plan.activations, plan.weights, constants={last.name: c}) for n, c in moved.items()}
    found = {
        name: run(to_onnx(model.bytecode, each, "net", {}), x, fused=False)["output"]
        for name, each in {"plain": plan, **made}.items()
    }
    np.testing.assert_allclose(found["bias"] - found["plain"], 3, atol=0.05)
    np.testing.assert_allclose(found["weight"], np.broadcast_to(last.bias, found["weight"].shape), atol=0.05)


FLOATS: dict[str, Callable] = {
    "silu": F.silu,
    "hard swish": F.hardswish,
    "hard sigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "leaky": F.leaky_relu,
    "mish": F.mish,
    "softmax": lambda x: F.softmax(x, 1),
    "squeeze and excitation": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "subtraction": lambda x: x - x.amax(1, keepdim=True),
    "strided slice": lambda x: x[:, :, ::2, 1::3],
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "products": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "other pads": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
}


@pytest.mark.parametrize("name", FLOATS)
def test_what_runs_in_f32_is_written_too(name: str) -> None:
    net, x = Net(lambda m, x: FLOATS[name](m[0](x)), Conv(3, 4, 1)), images()
    [found] = run(to_onnx(imported(net).bytecode, None, "net", {}), x, fused=False).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, net(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("maps", [("(b, a)", "(a, b)"), ("(a, b)", "(b, a)"), ("(b, a)", "(b, a)")])
def test_loops_that_read_and_write_across_are_written(maps: tuple[str, str]) -> None:
    crossed = maps[0] != maps[1]
    source, result = "tensor<2x3xf32>", "tensor<3x2xf32>" if crossed else "tensor<2x3xf32>"
    text = f"""func.func @main(%x: {source}) -> {result} {{
      %e = tensor.empty() : {result}
      %y = linalg.generic {{indexing_maps = [affine_map<(a, b) -> {maps[0]}>, affine_map<(a, b) -> {maps[1]}>],
        iterator_types = ["parallel", "parallel"]}} ins(%x : {source}) outs(%e : {result}) {{
      ^bb0(%u: f32, %v: f32):
        %w = arith.addf %u, %u : f32
        linalg.yield %w : f32
      }} -> {result}
      return %y : {result}
    }}"""
    x = images((2, 3))
    [found] = run(to_onnx(text.encode(), None, "net", {}), x, fused=False).values()
    np.testing.assert_array_equal(found, 2 * (x.T if crossed else x))


WITHOUT_FORM: dict[str, tuple[Callable, str]] = {
    "gather": (lambda x: F.interpolate(x, scale_factor=2), "layer 'upsample_nearest2d' has the operation 'gather'"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "layer 'index' has the operation 'gather'"),
    "blend": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "layer 'add_6' has the operation 'blend'"
    ),
    "affine": (
        lambda x: x * torch.tensor([1.0, 2, 3, -1]).reshape(1, 4, 1, 1) + 0.3, "layer 'mul' has the operation 'affine'"
    ),
    "surround": (
        lambda x: F.conv_transpose2d(x, torch.ones(4, 4, 2, 2), stride=2),
        "layer 'convolution_1' has tensor.insert_slice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_FORM)
def test_what_has_no_form_is_named_with_its_layer(name: str) -> None:
    """Without a plan too, as before a search: nothing is measured of a network that cannot be handed out."""
    operation, what = WITHOUT_FORM[name]
    model = imported(Net(lambda m, x: m[1](operation(F.relu(m[0](x)))), Conv(3, 4, 1), Conv(4, 2, 1)))
    for plan in (None, planned(model.network, images())):
        with pytest.raises(UsageError) as refused:
            to_onnx(model.bytecode, plan, "net", {})
        line = f"model 'net' cannot be exported to ONNX: {what}, which has no ONNX form here"
        assert str(refused.value) == line


def test_the_file_says_what_it_is() -> None:
    form = onnx.load_from_string(to_onnx(imported(RESIDUAL).bytecode, None, "net", {"quantune.configuration": "f32"}))
    assert {p.key: p.value for p in form.metadata_props} == {"quantune.configuration": "f32"}
    assert [(o.domain, o.version) for o in form.opset_import] == [("", 21)]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("--export", "onnx"), "export 'onnx': expected one of qdq-onnx (did you mean qdq-onnx?)"),
        (("--export", ""), "export '': expected one of qdq-onnx"),
        (
            ("--export", "qdq-onnx", "--like", "a.vmfb"),
            "--export writes what a search or --config makes; leave out",
        ),
        (
            ("--export", "qdq-onnx", "--emit", "qdq"),
            "--export writes what a search or --config makes; leave out --emit",
        ),
        (
            ("--export", "qdq-onnx", "--mode", "local"),
            "--mode local builds an artifact for this machine; leave out --export",
        ),
        (
            ("--export", "qdq-onnx", "-o", "a.onnx"),
            "output 'a.onnx': a search writes a folder; give --config for a file",
        ),
        (("--config", "clip=max", "-o", "a.onnx"), "output 'a.onnx': an ONNX file is written with --export qdq-onnx"),
    ],
)
def test_wrong_requests_are_one_line(given: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile.main(["builtin:no_model", *given]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert line in said


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'quantune\[onnx\]'"):
        exports.check("qdq-onnx")


def test_halves_of_a_step_go_up_where_scales_are_powers_of_two() -> None:
    smaller = Conv(3, 8, 1)
    net = Net(lambda m, x: m[2](m[0](x) + m[1](x)), Conv(3, 8, 1), smaller, Conv(8, 2, 1))
    with torch.no_grad():
        smaller.weight *= 0.3  # half the scale of the other, which is that of the sum
    model, x = imported(net), images()
    plan = planned(model.network, x, scheme="symmetric_power2")
    [added] = [node.name for node in model.network.nodes if node.kind == "add"]
    expected = simulate(model.network, plan.activations, plan.weights, x, shifts=True)[added]
    data = to_onnx(model.bytecode, plan, "net", {})
    assert np.array_equal(run(data, x, fused=False, tensors=True)[f"{added}/quantized"], expected)
    plain = QuantizationPlan(plan.activations, plan.weights)
    data = to_onnx(model.bytecode, plain, "net", {})
    off = run(data, x, fused=False, tensors=True)[f"{added}/quantized"] != expected
    assert off.mean() > 0.01, "no sum lies in the middle: this is no test"
