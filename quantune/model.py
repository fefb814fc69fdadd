"""An imported model: what the frontend makes and everything after it works on. Needs no torch."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlir_passes.network import Network
from quantune.errors import ImportFailed, UsageError

if TYPE_CHECKING:
    from torch_mlir import ir


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """An f32 linalg module with named layers and readable weights, as MLIR bytecode, and what is in it.

    name: what to call the model. network: its layers. fingerprint: sha256 of the bytecode, which holds the weights.
    """

    name: str
    bytecode: bytes
    network: Network
    fingerprint: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the model's only input, batch first. Raises UsageError for anything but one image batch."""
        inputs = self.network.inputs
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            shapes = ", ".join(str(node.shape) for node in inputs)
            raise UsageError(f"model '{self.name}' has inputs {shapes}; expected one image batch (n, c, h, w)")
        return inputs[0].shape


def read_model(source: bytes, name: str) -> ImportedModel:
    """Read a linalg module from MLIR text or bytecode of our own; files of others go through quantune.files.

    Raises UsageError, with line and column, for what is not MLIR, and ImportFailed for a module that is no network.
    """
    from torch_mlir import ir

    from mlir_passes.reading import NotMlir, parse

    try:
        module = parse(source, ir.Context())
    except NotMlir as error:
        reason = str(error).removeprefix("-:")[:300]
        raise UsageError(f"model '{name}' is not a module of the linalg dialects: {reason}") from error
    return from_module(module, name)


def from_module(module: ir.Module, name: str) -> ImportedModel:
    """Name the layers of a linalg module, read its network, and take its bytecode."""
    from mlir_passes.prepare import prepare
    from mlir_passes.read_network import NetworkError, read_network

    with module.context:
        try:
            prepare(module.operation)
            network = read_network(module.operation).network
        except NetworkError as error:
            raise ImportFailed(f"model '{name}': {error}") from error
        buffer = io.BytesIO()
        module.operation.write_bytecode(buffer)
    bytecode = buffer.getvalue()
    return ImportedModel(name, bytecode, network, hashlib.sha256(bytecode).hexdigest())
