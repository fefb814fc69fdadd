"""Model references, weights files, and the one line that each mistake gets."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quantune.errors import ImportFailed, QuantuneError, UsageError
from quantune.frontend import models
from quantune.frontend.checkpoints import tensors
from quantune.frontend.importer import import_module
from quantune.frontend.models import ModelRequest, load_model, load_weights, request_key
from quantune.process import children
from quantune.torchvision_compat import torchvision

SQUEEZENET = ModelRequest("torchvision:squeezenet1_1", shape=(3, 32, 32), classes=4)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()


def _line_of(request: ModelRequest, error: type[QuantuneError] = UsageError) -> str:
    with pytest.raises(error) as caught:
        load_model(request)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# References


def test_torchvision_models_have_the_same_random_weights_every_time() -> None:
    model = load_model(SQUEEZENET)
    assert model.name == "squeezenet1_1"
    assert model.input_shape == (1, 3, 32, 32)
    assert model.network.nodes[-1].shape == (1, 4)
    assert load_model(SQUEEZENET).fingerprint == model.fingerprint
    other = ModelRequest("torchvision:squeezenet1_1", shape=(3, 32, 32), classes=4, seed=1)
    assert load_model(other).fingerprint != model.fingerprint


def test_random_models_keep_the_scale_of_their_signals() -> None:
    model = torchvision().models.resnet18(weights=None)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_var.fill_(1e-4)
    models.calibrate_batch_norms(model, (3, 32, 32))
    assert not model.training
    with torch.no_grad():
        out = model(torch.randn(4, 3, 32, 32))
    assert 1e-2 < out.std() < 1e2


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (ModelRequest("resnet18"), "model 'resnet18': expected torchvision:NAME, builtin:NAME, PKG.MOD:FACTORY, "),
        (ModelRequest("torchvision:"), "model 'torchvision:': expected torchvision:NAME"),
        (ModelRequest(":factory"), "model ':factory': expected torchvision:NAME"),
        (
            ModelRequest("torchvision:resnet81"),
            "torchvision has no classification model 'resnet81' (did you mean resnet18?)",
        ),
        (ModelRequest("torchvision:zzz"), "torchvision has no classification model 'zzz'"),
        (ModelRequest("builtin:zzz"), "no builtin model 'zzz'; there is mobilenet_v2_shapes"),
        (ModelRequest("none.mlir"), "model 'none.mlir': No such file"),
        (ModelRequest("none.pt2"), "model 'none.pt2': No such file"),
        (ModelRequest("no_such_package:make"), "no_such_package:make: cannot import no_such_package: No module named"),
        (ModelRequest("torchvison:resnet18"), "(did you mean torchvision?)"),
        (ModelRequest("torch.nn:Identiti"), "torch.nn:Identiti: torch.nn has no 'Identiti' (did you mean Identity?)"),
        (ModelRequest("math:pi"), "math:pi: 'pi' is float, expected a function without arguments"),
        (ModelRequest("torch.nn:Conv2d"), "torch.nn:Conv2d: Conv2d() raised TypeError"),
        (ModelRequest("time:time"), "time:time: expected a torch.nn.Module, got float"),
        (ModelRequest("torch.nn:Identity", classes=3), "--classes does not apply to model 'torch.nn:Identity'"),
        (ModelRequest("a.mlir", shape=(3, 8, 8)), "--image-shape does not apply to model 'a.mlir', which fixes it"),
        (ModelRequest("a.mlir", classes=3), "--classes does not apply to model 'a.mlir', which fixes it"),
        (ModelRequest("a.mlirbc", batch=4), "--batch does not apply to model 'a.mlirbc', which fixes it"),
        (ModelRequest("a.pt2", batch=4), "--batch does not apply to model 'a.pt2', which fixes it"),
        (ModelRequest("a.pt2", weights=Path("w")), "--weights does not apply to model 'a.pt2', which fixes it"),
        (ModelRequest("torchvision:resnet18", batch=0), "batch 0: expected 1 or more"),
        (ModelRequest("torchvision:resnet18", classes=0), "classes 0: expected 1 or more"),
        (ModelRequest("torchvision:resnet18", shape=(3, 0, 8)), "shape 0: expected 1 or more"),
        (
            ModelRequest("torchvision:mobilenet_v2", shape=(4, 32, 32)),
            "model 'mobilenet_v2' does not take images of shape (4, 32, 32): ",
        ),
        (ModelRequest("torchvision:resnet18", weights=Path("none.pth")), "weights 'none.pth': no such file"),
    ],
    ids=lambda value: value.reference if isinstance(value, ModelRequest) else "",
)
def test_wrong_requests(request_: ModelRequest, line: str) -> None:
    assert line in _line_of(request_)


def test_models_too_small_for_their_layers_are_one_line() -> None:
    request = ModelRequest("torchvision:squeezenet1_1", shape=(3, 8, 8))
    assert "'squeezenet1_1' does not run on f32 images of shape (1, 3, 8, 8)" in _line_of(request)


def test_builtin_models_refuse_what_they_fix() -> None:
    request = ModelRequest("builtin:mobilenet_v2_shapes", classes=3)
    assert "--classes does not apply" in _line_of(request)


def test_factories_are_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text("from torch import nn\ndef tiny():\n    return nn.Conv2d(3, 2, 1)\n")
    (tmp_path / "broken_nets.py").write_text("def tiny(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    model = load_model(ModelRequest("my_nets:tiny", shape=(3, 8, 8), batch=2))
    assert model.name == "tiny"
    assert model.input_shape == (2, 3, 8, 8)
    assert "broken_nets:tiny: cannot import broken_nets: invalid syntax" in _line_of(ModelRequest("broken_nets:tiny"))


def test_keys_name_everything_that_decides_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(dict(_model().state_dict()), path)
    requests = [
        ModelRequest("torchvision:resnet18"),
        ModelRequest("torchvision:resnet34"),
        ModelRequest("torchvision:resnet18", classes=2),
        ModelRequest("torchvision:resnet18", shape=(3, 32, 32)),
        ModelRequest("torchvision:resnet18", batch=2),
        ModelRequest("torchvision:resnet18", seed=1),
        ModelRequest("torchvision:resnet18", weights=path),
    ]
    keys = [request_key(request) for request in requests]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    first = request_key(requests[-1])
    save_file({n: v + 1 for n, v in _model().state_dict().items()}, path)
    assert request_key(requests[-1]) != first
    assert request_key(ModelRequest("torch.nn:Identity")) is None
    assert request_key(ModelRequest("model.mlir")) is None
    with pytest.raises(UsageError, match="weights 'none': no such file"):
        request_key(ModelRequest("torchvision:resnet18", weights=Path("none")))


# Files


def test_mlir_files(tmp_path: Path) -> None:
    imported = import_module(_model(), torch.zeros(1, 3, 8, 8), "net")
    path = tmp_path / "saved.mlirbc"
    path.write_bytes(imported.bytecode)
    again = load_model(ModelRequest(str(path)))
    assert again.name == "saved"
    assert again.fingerprint == imported.fingerprint
    text = tmp_path / "text.mlir"
    text.write_text(
        "func.func @main(%x: tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> { return %x : tensor<1x3x4x4xf32> }"
    )
    assert load_model(ModelRequest(str(text))).input_shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"not mlir", "model 'bad' is not a module of the linalg dialects: 1:1: error: "),
        (b"ML\xefR broken", "'bad' is not a module of the linalg dialects: "),
        (b"\xff\xfe\x00", "'bad' is not a module of the linalg dialects: "),
    ],
)
def test_files_that_are_not_mlir(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "bad.mlir"
    path.write_bytes(content)
    assert line in _line_of(ModelRequest(str(path)))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "model 'bad': is no network: expected one func.func with a body, found 0"),
        (b"func.func @main(%x: tensor<?xf32>) { return }", "expected a tensor of static shape"),
    ],
)
def test_broken_mlir_files(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "bad.mlir"
    path.write_bytes(content)
    assert line in _line_of(ModelRequest(str(path)), ImportFailed)


def test_models_with_several_inputs_are_refused_where_images_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "two.mlir"
    path.write_text(
        "func.func @main(%x: tensor<1xf32>, %y: tensor<2xf32>) -> tensor<1xf32> { return %x : tensor<1xf32> }"
    )
    with pytest.raises(UsageError, match=r"model 'two' has inputs \(1,\), \(2,\); expected one image batch"):
        _ = load_model(ModelRequest(str(path))).input_shape


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's own
def test_pt2_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = torch.export.export(_model(), (torch.zeros(1, 3, 8, 8),), strict=False)
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    loaded = load_model(ModelRequest(str(path)))
    assert loaded.name == "program"
    assert [node.kind for node in loaded.network.nodes] == ["input", "conv", "clamp"]
    path.write_bytes(b"broken")
    line = _line_of(ModelRequest(str(path)))
    assert not capfd.readouterr().err
    assert line.startswith(f"model '{path}': not a program saved by torch.export.save: ")


# Weights


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ""])
def test_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    source, target = _model(), _model()
    with torch.no_grad():
        source[0].weight.add_(1)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(dict(source.state_dict()), path)
    else:
        torch.save(source.state_dict(), path)
    load_weights(target, path)
    assert torch.equal(target[0].weight, source[0].weight)


def test_wrapped_prefixed_and_half_precision_states_are_understood(tmp_path: Path) -> None:
    source, target = _model(), _model()
    with torch.no_grad():
        source[0].weight.fill_(0.5)
    state = {f"module.{name}": value for name, value in source.state_dict().items() if "num_batches" not in name}
    state["module.0.weight"] = state["module.0.weight"].half()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    load_weights(target, tmp_path / "checkpoint.pth")
    assert torch.equal(target[0].weight, source[0].weight)
    assert target[0].weight.dtype == torch.float32


def test_auxiliary_heads_may_be_absent_from_the_model(tmp_path: Path) -> None:
    torch.save({**_model().state_dict(), "aux1.conv.weight": torch.zeros(2)}, tmp_path / "w.pth")
    load_weights(_model(), tmp_path / "w.pth")


def _state(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {**_model().state_dict(), **{name.replace("__", "."): v for name, v in changes.items()}}  # type: ignore[dict-item]
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (_state(**{"0__bias": None}), "do not fit the model: '0.bias' is missing"),
        (_state(**{"9__bias": torch.zeros(1)}), "do not fit the model: '9.bias' is unknown"),
        (_state(**{"0__bias": torch.zeros(5)}), "do not fit the model: '0.bias' has shape (5,), the model (4,)"),
        (_state(**{"0__bias": None, "0__weight": None}), "'0.weight' is missing and 1 more"),
        ({"something": torch.zeros(1)}, "and 6 more"),
    ],
)
def test_states_that_do_not_fit(tmp_path: Path, state: dict[str, torch.Tensor], problem: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(UsageError) as caught:
        load_weights(_model(), path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Exploit:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    victim, path = tmp_path / "touched", tmp_path / "w.pth"
    torch.save({"0.weight": Exploit(victim)}, path)
    with pytest.raises(UsageError, match=r"not a readable \.pth file of tensors") as caught:
        tensors(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Exploit(victim)))
    with pytest.raises(UsageError, match=r"not a readable \.pth file of tensors"):
        tensors(path)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"garbage", np.random.default_rng(0).bytes(200)])
def test_garbled_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a readable") as caught:
        load_weights(_model(), path) if name == "w.safetensors" else tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"0.weight": [1.0]}, {"epoch": 3}, {0: torch.zeros(1)}])
def test_files_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="expected a mapping from names to tensors"):
        tensors(tmp_path / "w.pth")


def test_a_file_of_weights_that_grows_is_refused(tmp_path: Path) -> None:
    """One number stands for a terabyte: its reader has a bound, and this process never sees it."""
    torch.save({"0.weight": torch.zeros(1).expand(1 << 38), "0.bias": torch.zeros(4)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"weights '.*w\.pth': (not a readable|takes too much memory)") as caught:
        load_weights(_model(), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("does", ["os._exit(3)", "os.kill(os.getpid(), 9)", "print('noise')", "print('{}')"])
def test_whatever_a_reader_of_weights_does_is_one_line(
    does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(_model().state_dict(), tmp_path / "w.pth")
    start = children.start

    def instead(command: Sequence[str | Path], **options: Any) -> Any:
        return start([command[0], "-c", f"import os; {does}"], **options)

    monkeypatch.setattr(children, "start", instead)
    with pytest.raises(UsageError, match="reader") as caught:
        load_weights(_model(), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
