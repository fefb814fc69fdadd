"""Exported programs from anywhere: what torch would run of them is never run, and what is a network is read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pt2_files as made
import pytest
import torch
from pt2_files import CONSTANTS, MODEL, SAMPLES, WEIGHTS, edited, program, with_parts

from quantune.errors import UsageError
from quantune.frontend.importer import import_program, quiet
from quantune.frontend.pt2 import read_program

NAMES = ("sample inputs", "a weight", "a constant", "an object", "weights of an older torch",
         "constants of an older torch", "a size", "the inputs' structure")  # fmt: skip


def _read(folder: Path, data: bytes) -> torch.export.ExportedProgram:
    path = folder / "program.pt2"
    path.write_bytes(data)
    return read_program(path)


def _refusal(folder: Path, data: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        _read(folder, data)
    line = str(caught.value)
    assert line.startswith(f"model '{folder / 'program.pt2'}': ")
    assert line.isprintable()
    return line.partition(": ")[2]


def test_a_program_is_the_same_as_torch_reads_it(tmp_path: Path) -> None:
    ours, theirs = _read(tmp_path, program()), torch.export.load(io.BytesIO(program()))
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(ours.module()(x), theirs.module()(x))
    assert import_program(ours, "net").fingerprint == import_program(theirs, "net").fingerprint


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / f"victim_{os.urandom(4).hex()}"  # a name of its own: modules are imported once


@pytest.mark.parametrize("name", NAMES)
def test_code_in_a_file_is_not_run(name: str, victim: Path) -> None:
    attack = made.attacks(victim)[name]
    with contextlib.suppress(UsageError):
        _read(victim.parent, attack)
    assert not victim.exists()
    assert f"{victim.stem}_module" not in sys.modules
    with contextlib.suppress(Exception), quiet():
        torch.export.load(io.BytesIO(attack))
    assert victim.exists(), "torch itself does not run it: this is no test"


def test_all_attacks_are_tried(victim: Path) -> None:
    assert tuple(made.attacks(victim)) == NAMES


def test_what_could_be_run_is_refused(victim: Path) -> None:
    for suspect, said in zip(
        made.suspects(victim).values(),
        (
            "it calls 'torch.os.system'; expected",
            "which is no name",
            "does more than to compute",
            "holds compiled code",
        ),
        strict=True,
    ):
        assert said in _refusal(victim.parent, suspect)
    assert not victim.exists()


def _change(*path: str | int, to: Any) -> Callable[[Any], None]:
    def edit(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return edit


WEIGHT = ("config", "conv.weight")
META = (*WEIGHT, "tensor_meta")
GRAPH = ("graph_module", "graph")
SIGNATURE = ("graph_module", "module_call_graph", 0, "signature")


@pytest.mark.parametrize(
    ("part", "edit", "said"),
    [
        (WEIGHTS, _change(*WEIGHT, "path_name", to="../../etc/passwd"), "which is no name"),
        (WEIGHTS, _change(*WEIGHT, "path_name", to="weight_99"), "the tensor 'weight_99' is missing"),
        (WEIGHTS, _change(*META, "sizes", 0, to={"as_int": 2**40}), "does not fit its 432 bytes"),
        (WEIGHTS, _change(*META, "sizes", to=[{"as_int": 2**40}]), "does not fit its 432 bytes"),
        (WEIGHTS, _change(*META, "strides", to=[{"as_int": 0}] * 4), None),
        (WEIGHTS, _change(*META, "storage_offset", to={"as_int": 1}), "does not fit its 432 bytes"),
        (WEIGHTS, _change(*META, "storage_offset", to={"as_int": -1}), "a tensor has the size -1"),
        (WEIGHTS, _change(*META, "dtype", to=99), "a tensor has the type 99, which is unknown"),
        (WEIGHTS, _change(*META, "layout", to=1), "is not stored densely"),
        (WEIGHTS, _change(*META, "device", to={"type": "a\nb"}), "which is no name"),
        (WEIGHTS, _change(*META, to=None), "'tensor_meta' is None, which is of the wrong type"),
        (CONSTANTS, _change("config", to=[]), "'config' is [], which is of the wrong type"),
        (MODEL, _change("verifiers", to=1.5), "'verifiers' is 1.5, which is of the wrong type"),
        (MODEL, _change("range_constraints", to={"s0": {}}), "export it with fixed shapes"),
        (MODEL, _change(*GRAPH, "sym_int_values", to={"s": {}}), "export it with fixed shapes"),
        (MODEL, _change(*GRAPH, "custom_obj_values", to={"s": {}}), "holds objects that are no tensors"),
        (
            MODEL,
            _change(*GRAPH, "nodes", 0, "target", to="torch.ops.aten.conv9d.default"),
            "this torch has no operator",
        ),
        (MODEL, _change(*GRAPH, "nodes", 0, "target", to="torch.ops.aten.__class__.mro"), "this torch has no operator"),
        (MODEL, _change(*GRAPH, "nodes", 0, "target", to="torch.ops.aten.save.default"), "does more than to compute"),
        (MODEL, _change(*GRAPH, "nodes", 0, "target", to="torch.ops.inductor.x.y"), "expected operators torch.ops"),
        (MODEL, _change(*GRAPH, "nodes", 0, "name", to="a b"), "'name' is 'a b', which is no name"),
        (MODEL, _change(*GRAPH, "nodes", 0, "name", to="a" * 20_000), "which is no name"),
        (MODEL, _change(*GRAPH, "nodes", 0, "metadata", to={"nn_module_stack": "a\nb"}), "is no name"),
        (MODEL, _change(*GRAPH, "outputs", to=[{"as_custom_obj": {}}]), "an argument of the kind 'as_custom_obj'"),
        (MODEL, _change(*GRAPH, "outputs", to=[{"as_graph": {}}]), "an argument of the kind 'as_graph'"),
        (MODEL, _change(*GRAPH, "outputs", to=[{}]), "{} is no argument"),
        (MODEL, _change(*SIGNATURE, "in_spec", to="[" * 100_000), "the structure of its inputs is not JSON"),
        (MODEL, _change(*SIGNATURE, "in_spec", to="[2, {}]"), "of another version"),
        (MODEL, _change(*SIGNATURE, "in_spec", to='[1, {"type": "a.b", "children_spec": []}]'), "in a 'a.b'; expected"),
        (MODEL, _change("graph_module", "module_call_graph", to=[]), "does not say how it is called"),
        (MODEL, _change("graph_module", "signature", "input_specs", to=[{"token": {}}]), "of the kind 'token'"),
        (MODEL, _change("schema_version", "major", to=99), "not a program saved by torch.export.save: "),
    ],
)
def test_parts_that_are_no_network(part: str, edit: Callable[[Any], None], said: str | None, tmp_path: Path) -> None:
    if said is None:  # one number for all weights: they lie within their file
        assert _read(tmp_path, edited(part, edit)).state_dict["conv.weight"].unique().numel() == 1
    else:
        assert said in _refusal(tmp_path, edited(part, edit))


def test_a_small_file_does_not_become_a_large_network(tmp_path: Path) -> None:
    def share(config: dict[str, Any]) -> None:
        known = config["config"]["conv.weight"]
        meta = {**known["tensor_meta"], "sizes": [{"as_int": 1 << 18}], "strides": [{"as_int": 1}]}
        config["config"] |= {f"w{i}": {**known, "tensor_meta": meta} for i in range(3000)}

    said = _refusal(tmp_path, edited(WEIGHTS, share, {"data/weights/weight_0": bytes(1 << 20)}))
    assert "its tensors are far larger than the file" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a program saved by torch.export.save: File is not a zip file"),
        (program()[:-30], "not a program saved by torch.export.save"),
        (with_parts(archive_format=b"pt3"), "not a program saved by torch.export.save"),
        (with_parts(archive_version=b"7\n\n"), r"its layout has version '7\n\n'; this torch reads 0"),
        (with_parts(**{MODEL: b"{"}), "'models/model.json' is not JSON"),
        (with_parts(**{MODEL: b"[]"}), "'models/model.json' is [], which is of the wrong type"),
        (with_parts(**{MODEL: b"[" * 100_000}), "'models/model.json' is not JSON"),
        (made.archive({}), "not a program saved"),
    ],
)
def test_other_files(data: bytes, said: str, tmp_path: Path) -> None:
    assert said in _refusal(tmp_path, data)


def test_archives_that_grow_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/archive_format", bytes(1 << 20))
    assert "compressed" in _refusal(tmp_path, buffer.getvalue())


def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(program())
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr(next(name for name in file.namelist() if name.endswith(MODEL)), json.dumps({}))
    assert "two parts of its archive have one name" in _refusal(tmp_path, buffer.getvalue())


def test_sample_inputs_and_extra_files_are_not_looked_at(tmp_path: Path) -> None:
    assert _read(tmp_path, with_parts(**{SAMPLES: b"\x80garbage", "extra/notes.txt": b"\xff"})).example_inputs is None
