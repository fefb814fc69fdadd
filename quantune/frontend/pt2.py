"""Exported programs (.pt2) from anywhere: read as data, and only then given to torch.

``torch.export.load`` is made for files that one trusts. Reading one, it may unpickle (sample inputs, weights and
constants marked ``use_pickle``, custom objects, the layouts before torch 2.8), load shared libraries (AOTInductor),
evaluate text (sizes that are formulas), import modules (the structure of inputs), and compile Python that it writes
from the names in the graph; a node's target may be any attribute of the package torch, which the lowering then calls.

So nothing of a foreign file reaches torch as it is. The file is read here, and written again in memory with what a
network of fixed shape consists of: ATen operators, names, numbers, and the raw bytes of its tensors. What does not fit
is refused in one line.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveWriter
from torch.export.pt2_archive import constants as layout

from quantune.errors import UsageError, first_line
from quantune.frontend.foreign import WEIGHT, Refused, field, mapping, typed
from quantune.frontend.importer import quiet
from quantune.frontend.pt2_graph import DTYPES, program, tensor

_MODEL = "model"  # what torch.export.save calls its only program
_NOT_TENSORS = {
    layout.AOTINDUCTOR_DIR: "compiled code",
    layout.EXECUTORCH_DIR: "another program",
    f"{layout.WEIGHTS_DIR}{_MODEL}.pt": "pickled weights (of an older torch)",
    f"{layout.CONSTANTS_DIR}{_MODEL}.pt": "pickled constants (of an older torch)",
}


def read_program(path: Path) -> torch.export.ExportedProgram:
    """Read a program that torch.export.save wrote; raises UsageError for anything else, before any of it is run."""
    try:
        archive = rewritten(path.read_bytes())
        with quiet():
            return torch.export.load(archive)
    except Refused as refused:
        raise UsageError(f"model '{path}': {refused}; torch.export.save writes what is expected") from refused
    except Exception as error:  # torch fails in its own ways, and all of them mean the same to the user
        raise UsageError(f"model '{path}': not a program saved by torch.export.save: {first_line(error)}") from error


def rewritten(data: bytes) -> io.BytesIO:
    """The same program as an archive that holds nothing but what was checked here."""
    records = _records(data)
    if _text(records, layout.ARCHIVE_FORMAT_PATH) != layout.ARCHIVE_FORMAT_VALUE:
        raise Refused("not a program saved by torch.export.save")
    if (version := _text(records, layout.ARCHIVE_VERSION_PATH)) != layout.ARCHIVE_VERSION_VALUE:
        raise Refused(f"its layout has version {version!r:.20}; this torch reads {layout.ARCHIVE_VERSION_VALUE}")
    for name in records:
        for unwanted, what in _NOT_TENSORS.items():
            if name.startswith(unwanted):
                raise Refused(f"it holds {what}, {name!r:.60}, which would be run and not read")
    graph = program(_json(records, layout.MODELS_FILENAME_FORMAT.format(_MODEL)))
    left = 8 * len(data) + 2**20  # weights may share their bytes; a small file does not become a large network
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for folder, config in (
            (layout.WEIGHTS_DIR, layout.WEIGHTS_CONFIG_FILENAME_FORMAT.format(_MODEL)),
            (layout.CONSTANTS_DIR, layout.CONSTANTS_CONFIG_FILENAME_FORMAT.format(_MODEL)),
        ):
            tensors = mapping(field(_json(records, config), "config", dict), WEIGHT, tensor)
            used = {each["path_name"] for each in tensors.values()}
            for name in sorted(used):
                if folder + name not in records:
                    raise Refused(f"the tensor {name!r:.60} is missing")
                writer.write_bytes(folder + name, records[folder + name])
            for name, each in tensors.items():
                left -= _bytes_of(name, each, len(records[folder + each["path_name"]]))
                if left < 0:
                    raise Refused("its tensors are far larger than the file")
            writer.write_string(config, json.dumps({"config": tensors}))
        writer.write_string(layout.MODELS_FILENAME_FORMAT.format(_MODEL), json.dumps(graph))
        writer.write_bytes(layout.SAMPLE_INPUTS_FILENAME_FORMAT.format(_MODEL), b"")
    buffer.seek(0)
    return buffer


def _records(data: bytes) -> dict[str, bytes]:
    """The files in the archive, without the folder that all of them are in."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise Refused("its archive is compressed or encrypted; expected it as it was saved")
            if sum(entry.file_size for entry in entries) > len(data):
                raise Refused("the parts of its archive overlap")
            records = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        raise Refused(f"not a program saved by torch.export.save: {first_line(error)}") from error
    if len(records) != len(entries):
        raise Refused("two parts of its archive have one name")
    return records


def _text(records: Mapping[str, bytes], name: str) -> str:
    return records.get(name, b"").decode("ascii", "replace")


def _json(records: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in records:
        raise Refused(f"its archive has no '{name}'")
    try:
        value = json.loads(records[name])
    except (ValueError, RecursionError) as error:
        raise Refused(f"'{name}' is not JSON: {first_line(error)}") from error
    return typed(value, dict, name)


def _bytes_of(name: str, entry: Mapping[str, Any], stored: int) -> int:
    """How many bytes a tensor takes by itself; it must lie within its file, each element for itself."""
    meta = entry["tensor_meta"]
    sizes, strides = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
    count, offset = math.prod(sizes), meta["storage_offset"]["as_int"]
    width = DTYPES[meta["dtype"]].itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=False))
    if len(sizes) != len(strides) or (count and (last + 1) * width > stored) or count * width > stored:
        raise Refused(f"the tensor {name!r:.60} of shape {sizes!s:.60} does not fit its {stored} bytes")
    return count * width
