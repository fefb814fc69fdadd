"""ONNX files in: operator by operator against ONNX Runtime, whole files through the child that reads them, refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantune.cli import compile
from quantune.errors import ImportFailed, UsageError
from quantune.frontend import onnx_files
from quantune.frontend.files import import_file
from quantune.frontend.onnx_files import read_onnx
from quantune.frontend.onnx_operators import OPERATORS

SHAPE = (1, 4, 6, 8)


def floats(*shape: int, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray],
    shape: Sequence[int | str] = SHAPE,
    *,
    version: int = 18,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)


def single(kind: str, *constants: NDArray | None, **attributes: Any) -> onnx.ModelProto:
    names = ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
    node = helper.make_node(kind, ["x", *names], ["y"], name="node", **attributes)
    version = 20 if kind in ("Gelu",) else 18
    return model([node], {n: c for n, c in zip(names, constants, strict=True) if c is not None}, version=version)


W, B, C4 = floats(5, 4, 3, 3), floats(5), floats(4)
CASES: dict[str, onnx.ModelProto] = {
    "conv": single("Conv", W, B, pads=[1, 1, 1, 1]),
    "conv, strides and dilations": single("Conv", W, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 0, 2]),
    "conv, uneven pads": single("Conv", W, pads=[0, 1, 1, 2], strides=[2, 2]),
    "conv, same": single("Conv", W, B, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv, same lower": single("Conv", W, B, auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv, groups": single("Conv", floats(8, 2, 3, 3), group=2),
    "conv transpose": single("ConvTranspose", floats(4, 3, 2, 2), strides=[2, 2]),
    "batch norm": single("BatchNormalization", C4, floats(4, seed=1), floats(4, seed=2), np.abs(C4) + 1, epsilon=1e-3),
    "max pool": single("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, uneven pads": single("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    "max pool, ceil": single("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average pool": single("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool, counted": single(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "global average": single("GlobalAveragePool"),
    "global maximum": single("GlobalMaxPool"),
    "instance norm": single("InstanceNormalization", C4, floats(4, seed=5)),
    "layer norm": single("LayerNormalization", floats(8), floats(8, seed=5), axis=-1),
    "relu6": single("Clip", np.float32(0), np.float32(6)),
    "clip, one end": single("Clip", np.float32(-0.5)),
    "hard sigmoid": single("HardSigmoid"),
    "hard sigmoid, as torch": single("HardSigmoid", alpha=1 / 6, beta=0.5),
    "leaky": single("LeakyRelu", alpha=0.2),
    "elu": single("Elu", alpha=0.7),
    "prelu": single("PRelu", floats(4, 1, 1)),
    "gelu, tanh": single("Gelu", approximate="tanh"),
    "softmax": single("Softmax", axis=1),
    "log softmax": single("LogSoftmax", axis=1),
    "power": single("Pow", np.float32(2)),
    "matmul": single("MatMul", floats(8, 3)),
    "minimum over an axis": single("ReduceMin", ints(1)),
    "constants": model(
        [helper.make_node("Constant", [], ["c"], value_float=0.5),
         helper.make_node("ConstantOfShape", ["size"], ["ones"], value=numpy_helper.from_array(np.float32([2]))),
         helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Sqrt", ["a"], ["q"]),
         helper.make_node("Add", ["q", "c"], ["s"]), helper.make_node("Reciprocal", ["s"], ["r"]),
         helper.make_node("Mul", ["r", "ones"], ["y"])],
        {"size": ints(4, 1, 1)},
    ),
    "cast of a comparison": model(
        [helper.make_node("Greater", ["x", "zero"], ["g"]), helper.make_node("Cast", ["g"], ["y"], to=1)],
        {"zero": np.float32(0)},
    ),
    "minimum": single("Min", np.float32(0.1)),
    "less, where": model(
        [helper.make_node("Less", ["x", "zero"], ["m"]), helper.make_node("Where", ["m", "zero", "x"], ["y"])],
        {"zero": np.float32(0)},
    ),
    "reshape with 0 and -1": single("Reshape", ints(0, 2, -1)),
    "flatten": single("Flatten", axis=2),
    "transpose": single("Transpose", perm=[0, 2, 3, 1]),
    "squeeze": single("Squeeze", ints(0)),
    "unsqueeze": single("Unsqueeze", ints(1, -1)),
    "slice": single("Slice", ints(1, -5), ints(99, 7), ints(1, 3), ints(1, 2)),
    "pad": single("Pad", ints(0, 0, 1, 0, 0, 0, 2, 1), np.float32(0.5)),
    "pad, reflect": single("Pad", ints(0, 0, 1, 0, 0, 0, 2, 1), mode="reflect"),
    "mean": single("ReduceMean", ints(2, 3), keepdims=0),
    "sum over all": single("ReduceSum"),
    "maximum": single("ReduceMax", ints(1)),
    "resize, nearest": single(
        "Resize", None, np.array([1, 1, 2, 2], np.float32), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "resize, bilinear": single("Resize", None, None, ints(1, 4, 9, 11), mode="linear"),
    "resize, corners": single(
        "Resize", None, None, ints(1, 4, 9, 11), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "depth to space": single("DepthToSpace", blocksize=2),
    "depth to space, CRD": single("DepthToSpace", blocksize=2, mode="CRD"),
    "space to depth": single("SpaceToDepth", blocksize=2),
    "gather": single("Gather", ints(2, 0), axis=1),
    "gather one": single("Gather", np.array(2), axis=1),
    "expand": single("Expand", ints(3, 4, 6, 8)),
    "tile": single("Tile", ints(1, 2, 1, 1)),
    "gemm": model(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1)],
        {"w": floats(7, 192), "b": floats(7)},
    ),
    "gemm, scaled": model(
        [helper.make_node("Flatten", ["x"], ["f"]),
         helper.make_node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
        {"w": floats(192, 7), "b": floats(7)},
    ),
    "split": model(
        [helper.make_node("Split", ["x", "s"], ["a", "b"], axis=1), helper.make_node("Mul", ["a", "b"], ["y"])],
        {"s": ints(2, 2)},
    ),
    "shape as torch writes it": model(
        [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
         helper.make_node("Unsqueeze", ["n", "zeros"], ["u"]), helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
         helper.make_node("Reshape", ["x", "t"], ["y"])],
        {"zero": np.array(0), "zeros": ints(0), "rest": ints(2, -1)},
    ),
}  # fmt: skip
for _kind in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "Erf", "Exp", "Abs", "Neg", "Floor", "Ceil",
              "HardSwish", "Gelu", "Identity"):  # fmt: skip
    CASES[_kind] = single(_kind)
for _kind in ("Add", "Sub", "Mul", "Div", "Max"):
    CASES[_kind] = single(_kind, floats(4, 1, 1) + 3)


@pytest.mark.parametrize("name", CASES)
def test_operators_compute_what_onnx_runtime_computes(name: str) -> None:
    form, x = CASES[name], floats(*SHAPE, seed=9)
    [expected] = onnxruntime.InferenceSession(form.SerializeToString()).run(None, {"x": x})
    network = onnx_files._Network(form.graph, onnx_files._inputs(form.graph)).eval()
    with torch.no_grad():
        found = network(torch.from_numpy(x)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_most_operators_are_tried() -> None:
    tried = {node.op_type for form in CASES.values() for node in form.graph.node}
    assert len(tried) > 0.75 * len(OPERATORS), sorted(set(OPERATORS) - tried)


def residual() -> onnx.ModelProto:
    """Convolution, batch norm, relu, addition, pool and product, named as exporters do."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], name="/features/0/Conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"], name="/features/1/BatchNormalization"),
        node("Relu", ["n"], ["r"], name="/features/2/Relu"),
        node("Conv", ["r", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]),
        node("Add", ["r", "c"], ["s"], name="/Add"),
        node("GlobalAveragePool", ["s"], ["p"], name="/pool"),
        node("Flatten", ["p"], ["f"], name="/Flatten"),
        node("Gemm", ["f", "w2", "b2"], ["y"], name="/classifier/Gemm", transB=1),
    ]
    constants = {
        "w0": floats(6, 4, 3, 3), "g": floats(6), "b": floats(6, seed=4), "m": floats(6, seed=5),
        "v": np.abs(floats(6)) + 1, "w1": floats(6, 6, 3, 3) / 5, "b1": floats(6), "w2": floats(3, 6), "b2": floats(3),
    }  # fmt: skip
    return model(nodes, constants, ("batch", 4, 6, 8))


def written(folder: Path, form: onnx.ModelProto) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(form.SerializeToString())
    return path


def test_a_file_becomes_a_network_whose_layers_have_its_names(tmp_path: Path) -> None:
    """A batch of unknown size is one image, and batch norms are folded."""
    found = import_file(str(written(tmp_path, residual())))
    assert found.name == "net"
    assert found.input_shape == (1, 4, 6, 8)
    assert [node.kind for node in found.network.nodes].count("float") == 0
    assert [node.name for node in found.network.layers] == ["/features/0/Conv", "c", "/classifier/Gemm"]


def test_the_program_computes_what_the_file_does(tmp_path: Path) -> None:
    form, x = residual(), floats(1, 4, 6, 8, seed=9)
    [expected] = onnxruntime.InferenceSession(form.SerializeToString()).run(None, {"x": x})
    with torch.no_grad():
        found = read_onnx(written(tmp_path, form)).module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _external(form: onnx.ModelProto) -> None:
    tensor = form.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _domain(form: onnx.ModelProto) -> None:
    form.graph.node[0].domain = "com.microsoft"


def _kind(form: onnx.ModelProto) -> None:
    form.graph.node[2].op_type = "NonMaxSuppression"


def _quantized(form: onnx.ModelProto) -> None:
    form.graph.node[2].op_type = "QuantizeLinear"


def _half(form: onnx.ModelProto) -> None:
    form.graph.initializer[0].CopyFrom(numpy_helper.from_array(floats(6, 4, 3, 3).astype(np.float16), "w0"))


def _height(form: onnx.ModelProto) -> None:
    form.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def _old(form: onnx.ModelProto) -> None:
    form.opset_import[0].version = 12


def _bytes(form: onnx.ModelProto) -> None:
    form.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def _dangling(form: onnx.ModelProto) -> None:
    form.graph.node[2].input[0] = "nothing"


def _misfit(form: onnx.ModelProto) -> None:
    form.graph.initializer[0].CopyFrom(numpy_helper.from_array(floats(6, 5, 3, 3), "w0"))


def _training(form: onnx.ModelProto) -> None:
    form.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))


def _functions(form: onnx.ModelProto) -> None:
    form.functions.add(name="mine", domain="mine")


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (_external, UsageError, "the weight 'w0' lies in another file"),
        (_domain, UsageError, "node '/features/0/Conv' is a com.microsoft.Conv; expected operators of ONNX alone"),
        (_kind, ImportFailed, "no reading of operator 'NonMaxSuppression' in node '/features/2/Relu'"),
        (_quantized, UsageError, "it is quantized already: node '/features/2/Relu' is a QuantizeLinear; expected the"),
        (_half, UsageError, "the weight 'w0' is float16; expected float32"),
        (_height, UsageError, "input 'x' has the shape (1, 4, ?, 8); export it with fixed sizes"),
        (_old, UsageError, "its operators are of version 12; expected 13 or later"),
        (_bytes, UsageError, "input 'x' is uint8; expected float32"),
        (_dangling, UsageError, "node '/features/2/Relu' reads 'nothing', which nothing before it makes"),
        (_misfit, UsageError, "node '/features/0/Conv' (Conv) cannot be computed: "),
        (_training, ImportFailed, "batch statistics of its own; export the model in eval mode, in node '/features/1/"),
        (_functions, UsageError, "it defines functions of its own"),
    ],
)
def test_what_is_no_plain_network_is_refused_in_one_line(
    change: Callable[[onnx.ModelProto], None], kind: type[Exception], said: str, tmp_path: Path
) -> None:
    form = residual()
    change(form)
    path = written(tmp_path, form)
    with pytest.raises(kind) as caught:
        read_onnx(path)
    assert str(caught.value).startswith(f"model '{path}': {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no ONNX at all", residual().SerializeToString()[:-100]])
def test_what_is_no_file_is_refused(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    assert compile.main([str(path), "--emit", "linalg", "-q"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"model '{path}': " in line


@pytest.mark.parametrize("option", [("--weights", "w.pth"), ("--classes", "3"), ("--image-shape", "3,8,8")])
def test_options_that_a_file_fixes_are_refused(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compile.main(["net.onnx", "--emit", "linalg", "-q", *option]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{option[0]} does not apply to model 'net.onnx', which fixes it" in line
