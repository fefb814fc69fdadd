"""Exported programs as bytes: a small one, what an attacker makes of it, and how to change a part of its archive."""

from __future__ import annotations

import functools
import importlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

FOLDER = "archive"
MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("shift", torch.ones(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = torch.chunk(self.norm(self.conv(x)).relu(), 2, 1)
        return torch.cat([second, first], 1) + self.shift + torch.tensor([2.0])


@functools.cache
def program() -> bytes:
    """What torch.export.save writes for a small network with every kind of tensor."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(_Net().eval(), (torch.zeros(1, 3, 8, 8),), strict=False), buffer)
    return buffer.getvalue()


def records(data: bytes) -> dict[str, bytes]:
    """The parts of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}


def archive(parts: Mapping[str, bytes]) -> bytes:
    """An archive of parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in parts.items():
            file.writestr(f"{FOLDER}/{name}", content)
    return buffer.getvalue()


def with_parts(**parts: bytes) -> bytes:
    """The program with other or more parts; two underscores in a name stand for a slash."""
    return archive({**records(program()), **{name.replace("__", "/"): content for name, content in parts.items()}})


def edited(part: str, edit: Callable[[Any], None], more: Mapping[str, bytes] | None = None) -> bytes:
    """The program with one of its JSON parts changed in place by ``edit``, and ``more`` parts."""
    parts = records(program())
    value = json.loads(parts[part])
    edit(value)
    return archive({**parts, part: json.dumps(value).encode(), **(more or {})})


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def attacks(victim: Path) -> dict[str, bytes]:
    """Programs that make the file ``victim`` when torch reads them or the frontend lowers them."""
    buffer = io.BytesIO()
    torch.save(Touch(victim), buffer)
    saved, call = buffer.getvalue(), f"__import__('pathlib').Path({str(victim)!r}).touch()"
    module = f"{victim.stem}_module"
    (victim.parent / f"{module}.py").write_text(f"from pathlib import Path\nPath({str(victim)!r}).touch()\n")
    importlib.invalidate_caches()
    enum = json.dumps({"__enum__": True, "fqn": f"{module}:Kind", "name": "A"})

    def pickled(config: dict[str, Any]) -> None:
        next(iter(config["config"].values())).update(use_pickle=True, path_name="tensor_9")

    def opaque(config: dict[str, Any]) -> None:
        next(iter(config["config"].values())).update(use_pickle=True, path_name="opaque_obj_0", tensor_meta=None)

    def formula(model: dict[str, Any]) -> None:
        values = _graph(model)["tensor_values"]
        values["x"]["sizes"][0] = {"as_expr": {"expr_str": call, "hint": None}}

    def imported(model: dict[str, Any]) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        inner = {"type": "builtins.tuple", "context": enum, "children_spec": [leaf]}
        signature["in_spec"] = json.dumps([1, inner])

    return {
        "sample inputs": with_parts(**{SAMPLES: saved}),
        "a weight": edited(WEIGHTS, pickled, {"data/weights/tensor_9": saved}),
        "a constant": edited(CONSTANTS, pickled, {"data/constants/tensor_9": saved}),
        "an object": edited(CONSTANTS, opaque, {"data/constants/opaque_obj_0": pickle.dumps(Touch(victim))}),
        "weights of an older torch": with_parts(**{"data/weights/model.pt": saved}),
        "constants of an older torch": with_parts(**{"data/constants/model.pt": saved}),
        "a size": edited(MODEL, formula),
        "the inputs' structure": edited(MODEL, imported),
    }


def suspects(victim: Path) -> dict[str, bytes]:
    """Programs that torch of today stops late, or writes into Python that nobody calls yet."""
    call = f"__import__('pathlib').Path({str(victim)!r}).touch()"

    def attribute(model: dict[str, Any]) -> None:
        node = next(each for each in _graph(model)["nodes"] if each["target"] == "torch.ops.aten.relu.default")
        node["target"] = "torch.os.system"
        node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {victim}"}, "kind": 1}]

    def named(model: dict[str, Any]) -> None:
        graph = _graph(model)
        relu = next(each for each in graph["nodes"] if each["target"] == "torch.ops.aten.relu.default")
        name = f"unused = 1\n{call}\nif True:\n    unused"  # stands at the left of "=" in the Python that torch writes
        graph["tensor_values"][name] = graph["tensor_values"]["relu"]
        copy = {**relu, "outputs": [{"as_tensor": {"name": name}}], "name": name}
        graph["nodes"].insert(graph["nodes"].index(relu) + 1, copy)

    def file(model: dict[str, Any]) -> None:
        node = next(each for each in _graph(model)["nodes"] if each["target"] == "torch.ops.aten.relu.default")
        arguments = {"filename": {"as_string": str(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 8}}
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [{"name": name, "arg": value, "kind": 1} for name, value in arguments.items()]

    return {
        "an attribute of torch": edited(MODEL, attribute),
        "a name that is code": edited(MODEL, named),
        "an operator that opens files": edited(MODEL, file),
        "compiled code": with_parts(**{"data/aotinductor/model/model.so": b"\x7fELF"}),
    }


def _graph(model: dict[str, Any]) -> dict[str, Any]:
    return model["graph_module"]["graph"]
