"""Whatever a file or an argument holds, its reader reads it or says in one line why not: nothing of it is run."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fuzz
import numpy as np
import pt2_files
import pytest
import sizes
import torch
from fuzz import hold, text, variants
from obligations import Obligation
from refusals import refusal
from safetensors.torch import save
from test_sources_fuzz import readings
from torch import nn

from quantune.allocation.table import parse_size
from quantune.artifact.provenance import Measured, Provenance, attach, split
from quantune.artifact.records import LayerExecution, Processor
from quantune.cli import benchmark, compile, device, opt, verify
from quantune.cluster import shards
from quantune.cluster.runner import ClusterRunner
from quantune.cluster.shards import Part
from quantune.compiler.targets import parse as parse_target
from quantune.data.sources import Reference
from quantune.device.address import Address
from quantune.device.client import Device
from quantune.errors import UsageError
from quantune.frontend import files
from quantune.frontend.checkpoints import tensors
from quantune.frontend.models import ModelRequest, load_model, load_weights
from quantune.frontend.pt2 import read_program, rewritten
from quantune.quantization.bits import BitWidths
from quantune.quantization.config import QuantConfig
from quantune.runtime.arrays import read_results
from quantune.runtime.artifact import Artifact
from quantune.runtime.child import Worker
from quantune.runtime.program import read_parameters
from quantune.runtime.worker import read_images
from quantune.torchvision_compat import torchvision

Get = Callable[[str], Obligation]
FEW, MANY = 40, pytest.param(sizes.CHEAP, marks=pytest.mark.slow)
SLOW = [pytest.param(sizes.EXPENSIVE, marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Reader:
    """A reader with inputs that it takes."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr("module.fb", bytes(range(256)) * 2)
    return buffer.getvalue()


RECORD = Provenance(
    "cpu:host", "precision=int8", layers=(LayerExecution("a", "conv", 12, "i8", "d"),),
    processor=Processor("x86_64", "znver5", ("avx2",)), measured=Measured(0.5, 4, "ee", 1.5, 2),
)  # fmt: skip
ARTIFACT = attach(_archive(), RECORD)
CONFIGURATIONS = (
    b"calib=1000,scheme=symmetric_power2,clip=kl,granularity=channel,precision=mixed",
    b"scheme=asymmetric,clip=max,bits=w4a8/w8a8:features.0.0+classifier.1",
    b"precision=f32",
)


def _configured(line: str) -> object:
    return Artifact(attach(_archive(), Provenance("cpu", line))).config


def _argument(parser: Any, *before: str) -> Callable[[bytes], object]:
    """One argument of a command line; argparse's own way to say no is to exit with 2."""

    def read(data: bytes) -> object:
        try:
            return parser.read([*before[:-1], f"{before[-1]}={text(data)}"])
        except SystemExit as ended:
            if ended.code == 2:
                raise UsageError("said by the parser") from None
            raise

    return read


TEXTS = {
    "configurations": Reader(lambda data: QuantConfig.parse(text(data)), CONFIGURATIONS),
    "bit widths": Reader(lambda data: BitWidths.parse(text(data)), (b"w4a8/w8a8:features.0.0+b%2Fc", b"w2")),
    "targets": Reader(lambda data: parse_target(text(data)), (b"cpu:znver4", b"vulkan:ada", b"cuda:sm_80", b"cpu")),
    "size budgets": Reader(lambda data: parse_size(text(data), 1000), (b"1.2MB", b"0.5x", b"300kB")),
    "references to images": Reader(
        lambda data: Reference.parse(text(data)).count,
        (b"imagefolder:a?resize=256&crop=224&count=7", b"builtin:shapes"),
    ),
    "records of artifacts": Reader(Provenance.from_json, (RECORD.to_json().encode(),)),
    "bytes of artifacts": Reader(lambda data: split(data, "x"), (ARTIFACT, _archive(), ARTIFACT[: len(_archive())])),
    "an artifact's configuration": Reader(
        lambda data: Artifact(attach(_archive(), Provenance("cpu", data.decode("utf-8", "replace")))).config,
        CONFIGURATIONS,
    ),
    "--image-shape": Reader(_argument(compile.parser(), "m", "--image-shape"), (b"3,224,224", b"1,28,28")),
    "--time-budget": Reader(_argument(compile.parser(), "m", "--time-budget"), (b"90s", b"1.5h")),
    "--max-drop": Reader(_argument(compile.parser(), "m", "--max-drop"), (b"0.01", b"1e-3")),
    "--elide": Reader(_argument(opt._parser(), "--elide"), (b"16",)),
    "--min-time": Reader(lambda data: benchmark._seconds(text(data)), (b"1s", b"500ms")),
    "--min-accuracy": Reader(_argument(verify._parser(), "a.vmfb", "--min-accuracy"), (b"0.9", b"1e-3")),
    "--timeout": Reader(_argument(verify._parser(), "a.vmfb", "--timeout"), (b"1200", b"0.5")),
    "addresses of devices": Reader(
        lambda data: Address.parse(text(data)), (b"tcp://board:7433?wait=5&token-file=none", b"tcp://[::1]:80")
    ),
    "--max-size": Reader(_argument(device.parser(), "serve", "--max-size"), (b"256MB", b"1.5GB")),
    "--port": Reader(_argument(device.parser(), "serve", "--port"), (b"7433", b"0")),
    "--max-latency": Reader(_argument(verify._parser(), "a.vmfb", "--max-latency"), (b"5ms", b"0.2s")),
}


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, count: int, obligation: Get, capsys: pytest.CaptureFixture[str]) -> None:
    reader = TEXTS[name]
    hold(obligation(f"reader: {name}"), variants(list(reader.seeds), count), reader.read)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def _weights(model: nn.Module, kind: str) -> bytes:
    if kind == ".safetensors":
        return save(dict(model.state_dict()))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=kind == ".pth")
    return buffer.getvalue()


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("kind", [".safetensors", ".pth", ".old.pth"])
@pytest.mark.filterwarnings("ignore")
def test_weights(kind: str, count: int, model: nn.Module, obligation: Get, tmp_path: Path) -> None:
    path = tmp_path / f"weights{kind}"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_weights(model, path) if kind == ".safetensors" else tensors(path)

    hold(obligation(f"reader: weights in {kind}"), variants([_weights(model, kind)], count), read)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_parameters(count: int, obligation: Get, tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "parameters.npz"
    np.savez(buffer, **{"a.weight": np.ones((3, 4), np.int8), "b": np.zeros(2, np.float32)})  # type: ignore[arg-type]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_parameters(path)

    hold(obligation("reader: parameters in .npz"), variants([buffer.getvalue()], count), read)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_results_of_workers(count: int, obligation: Get, tmp_path: Path) -> None:
    path = tmp_path / "logits.npy"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_results(path)

    seeds = [_npy(np.zeros((3, 4), np.float32)), _npy(np.array(["text"]))]
    hold(obligation("reader: results of workers in .npy"), variants(seeds, count), read)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_images_for_workers(count: int, obligation: Get, tmp_path: Path) -> None:
    path, takes = tmp_path / "images.npy", SimpleNamespace(shape=(1, 3, 4, 4), dtype=np.dtype(np.float32))
    program: Any = SimpleNamespace(inputs=(takes,), outputs=(takes,))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        np.asarray(read_images(path, program)).sum()

    hold(obligation("reader: images in .npy"), variants([_npy(np.zeros((2, 3, 4, 4), np.float32))], count), read)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_arrays_for_and_from_devices(count: int, obligation: Get, tmp_path: Path) -> None:
    """A device that takes everything and answers the same: what is read here are images, and its results."""
    path, program = tmp_path / "images.npy", tmp_path / "a.vmfb"
    program.write_bytes(b"a program")
    images, results = _npy(np.zeros((2, 3, 4, 4), np.float32)), _npy(np.zeros((2, 5), np.float32))
    device, answers = Device("tcp://board"), {"missing": [], "data": results, "result": {"inputs": ["2x3x4x4xf32=1"]}}
    known = SimpleNamespace(message_bytes=1 << 20)
    link: Any = SimpleNamespace(known=known, ask=lambda *message: answers, persistently=lambda job: job())
    device._link = link

    def shown(data: bytes) -> None:
        path.write_bytes(data)
        device.run(program, None, path, 0, 2).sum()
        device._offer_first("0" * 64, None, path)

    def answered(data: bytes) -> None:
        answers["data"] = data
        device.run(program, None, path, 0, 2).sum()

    hold(obligation("reader: images for devices in .npy"), variants([images], count), shown)
    path.write_bytes(images)
    hold(obligation("reader: results of devices in .npy"), variants([results], count), answered)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_arrays_for_clusters(count: int, obligation: Get, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    runner = ClusterRunner.__new__(ClusterRunner)  # one that is connected to nothing: its shards come back as they are
    runner._parts, runner._device, runner._timeout_s = {}, "local-sync", 1.0
    asked: Any = lambda given: [np.zeros((each.end - each.first, 5)) for each in given]  # noqa: E731
    runner._answers = asked

    def read(data: bytes) -> None:
        path.write_bytes(data)
        runner.run(path, None, path, 0, 2)
        shards._Site._is_shared(SimpleNamespace(_checked={}), Part("0" * 64, ".npy", str(path), 0, 2))  # type: ignore[arg-type]

    hold(obligation("reader: images for clusters in .npy"), variants([_npy(np.zeros((2, 3, 4)))], count), read)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_images(count: int, obligation: Get, tmp_path: Path) -> None:
    promise = obligation("reader: archives of images, pictures and references")
    for number, read in enumerate(readings(tmp_path, count, seed=1)):
        with promise.trial(f"input {number}"):
            refusal(read)


NAMES = (
    b"net.mlir",
    b"a/b.mlirbc",
    b"exported.pt2",
    b"torchvision:resnet18",
    b"builtin:squeezenet1_1_digits",
    b"a.b:c",
    b"x",
)


@pytest.mark.parametrize("count", [MANY])
def test_names_of_models(count: int, obligation: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torchvision()  # loading it is no part of what is watched

    def read(data: bytes) -> None:
        reference = text(data)
        if not reference.startswith(("torchvision:", "builtin:")) or reference[-4:] not in ("et18", "gits"):
            load_model(ModelRequest(reference))

    hold(obligation("reader: names of models"), variants(list(NAMES), count), read)


def _programs(count: int, seed: int = 1) -> list[bytes]:
    """Programs whose archive is damaged, and ones of which one part is: those come further."""
    parts = pt2_files.records(pt2_files.program())
    kinds = [name for name in parts if name.endswith(".json")] * 3 + list(parts)
    random = fuzz.Random(seed)
    made = list(variants([pt2_files.program()], max(count // 4, 1), seed))
    while len(made) < count:
        name = random.choice(kinds)
        made.append(pt2_files.archive({**parts, name: fuzz.damaged(parts[name], random)}))
    return made


def _edited_programs(count: int, seed: int = 2) -> list[bytes]:
    """Programs that are JSON still, with values of other kinds in some places."""
    random, made = fuzz.Random(seed), []
    values = (
        None,
        True,
        -1,
        2**62,
        1.5,
        "",
        "a b",
        "\ud800",
        [],
        {},
        [[]],
        {"as_int": -1},
        {"as_expr": {"expr_str": "x"}},
    )

    def edit(node: Any) -> None:
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = random.choice(keys)
            if not isinstance(node[key], dict | list) or not node[key] or random.random() < 0.1:
                node[key] = random.choice(values)
                return
            node = node[key]

    for _ in range(count):
        made.append(pt2_files.edited(random.choice([pt2_files.MODEL, pt2_files.WEIGHTS, pt2_files.CONSTANTS]), edit))
    return made


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_exported_programs_are_taken_apart(count: int, obligation: Get) -> None:
    from quantune.frontend.foreign import Refused

    def read(data: bytes) -> None:
        try:
            rewritten(data)
        except Refused as refused:
            raise UsageError(str(refused)) from refused

    hold(obligation("reader: archives of .pt2"), _programs(count) + _edited_programs(count), read)


@pytest.mark.parametrize("count", SLOW)
@pytest.mark.filterwarnings("ignore")
def test_exported_programs_are_read(count: int, obligation: Get, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_program(path)

    hold(obligation("reader: .pt2 given to torch"), _edited_programs(count, 3) + _programs(count, 3), read)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.filterwarnings("ignore")
def test_onnx_files(count: int, obligation: Get, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    from quantune.frontend.onnx_files import read_onnx

    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "s"], ["r"], name="view"),
        helper.make_node("ReduceMean", ["r", "a"], ["y"], name="mean", keepdims=0),
    ]
    constants = {"w": np.ones((2, 3, 3, 3), np.float32), "s": np.array([1, 2, -1]), "a": np.array([2])}
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [images], [result], held)
    seed = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    path = tmp_path / "net.onnx"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_onnx(path)

    hold(obligation("reader: .onnx"), variants([seed], count, 5), read)


TEXT = (
    b'func.func @main(%x: tensor<1x3x8x8xf32>) -> tensor<1x2x8x8xf32> {\n'
    b'  %w = arith.constant dense<0.5> : tensor<2x3x1x1xf32>\n  %z = arith.constant 0.0 : f32\n'
    b'  %e = tensor.empty() : tensor<1x2x8x8xf32>\n'
    b'  %f = linalg.fill ins(%z : f32) outs(%e : tensor<1x2x8x8xf32>) -> tensor<1x2x8x8xf32>\n'
    b'  %y = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}'
    b' ins(%x, %w : tensor<1x3x8x8xf32>, tensor<2x3x1x1xf32>) outs(%f : tensor<1x2x8x8xf32>) -> tensor<1x2x8x8xf32>\n'
    b'  return %y : tensor<1x2x8x8xf32>\n}\n'
)  # fmt: skip


@pytest.mark.parametrize("count", SLOW)
@pytest.mark.parametrize("kind", [".mlir", ".mlirbc"])
def test_modules(kind: str, count: int, obligation: Get, tmp_path: Path) -> None:
    from quantune.frontend.imported import read_model

    path = tmp_path / f"net{kind}"
    seed = TEXT if kind == ".mlir" else read_model(TEXT, "net").bytecode

    def read(data: bytes) -> None:
        path.write_bytes(data)
        files.import_file(str(path))

    hold(obligation(f"reader: {kind}"), variants([seed], count), read, children=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program without a record, as IREE writes it."""
    from quantune.cache import ArtifactCache
    from quantune.compiler.iree import compile_module
    from quantune.compiler.targets import Target

    folder = tmp_path_factory.mktemp("plain")
    done = compile_module(TEXT, Target("cpu"), cache=ArtifactCache(folder), output_dir=folder, explain=False)
    return done.path.read_bytes()


@pytest.mark.parametrize("count", SLOW)
def test_programs_of_another_origin(count: int, plain: bytes, obligation: Get, tmp_path: Path) -> None:
    path = tmp_path / "plain.vmfb"
    with Worker(timeout_s=60, memory_limit=8 << 30) as worker:

        def read(data: bytes) -> None:
            path.write_bytes(data)
            split(data, "x")
            worker.request({"job": "signature", "program": str(path)})

        hold(obligation("reader: programs of another origin"), variants([plain], count), read, children=True)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_recipes(count: int, obligation: Get, tmp_path: Path) -> None:
    from quantune.verification import Wanted, verify

    (tmp_path / "best.vmfb").write_bytes(_archive())
    recipe = tmp_path / "best.json"

    def read(data: bytes) -> None:
        recipe.write_bytes(data)
        list(verify(tmp_path / "best.vmfb", Wanted()))

    seeds = [json.dumps({"file_sha256": "ab" * 32, "accuracy": 0.5}).encode(), b"{}"]
    hold(obligation("reader: best.json"), variants(seeds, count), read)
