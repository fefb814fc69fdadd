"""An imported model: what the frontend makes and everything after it works on. Needs no torch."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlir_passes.network import Network, Node
from quantune.errors import ImportFailed, UsageError

if TYPE_CHECKING:
    from torch_mlir import ir

_LARGEST = float(np.finfo(np.float32).max)


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

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of an image's outputs. Raises UsageError unless there is one output with a row for each image."""
        batch, shapes = self.input_shape[0], [self.network.by_name[name].shape for name in self.network.outputs]
        if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][0] != batch:
            told = ", ".join(map(str, shapes)) or "nothing"
            raise UsageError(
                f"model '{self.name}' gives {told}; expected one output with a row for each image ({batch}, …)"
            )
        return shapes[0][1:]

    def check_searchable(self) -> None:
        """Raise UsageError for a network that no search can do anything with, having nothing to quantize, say."""
        _ = self.output_shape
        if not self.network.layers:
            raise UsageError(
                f"model '{self.name}' has no convolution or matrix product with constant weights to quantize; "
                "build it with precision=f32 or f16"
            )


def read_model(source: bytes, name: str) -> ImportedModel:
    """Read a linalg module from MLIR text or bytecode of our own; files of others go through quantune.frontend.files.

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
    """Name the layers of a linalg module, read its network, and take its bytecode.

    Raises UsageError for a function that cannot be called with images, and for weights that are no numbers.
    """
    from torch_mlir import ir

    from mlir_passes.ops.prepare import prepare
    from mlir_passes.ops.reader import NetworkError, main_function, read_network

    with module.context:
        try:
            _check_function(main_function(module.operation), name)
            prepare(module.operation)
            network = read_network(module.operation).network
        except NetworkError as error:
            raise ImportFailed(f"model '{name}': {error}") from error
        except (LookupError, TypeError, ValueError, ir.MLIRError) as error:  # forms that no matcher expects
            raise ImportFailed(f"model '{name}': its form is not one this project reads: {_line(error)}") from error
        _check_numbers(network, name)
        buffer = io.BytesIO()
        module.operation.write_bytecode(buffer)
    bytecode = buffer.getvalue()
    return ImportedModel(name, bytecode, network, hashlib.sha256(bytecode).hexdigest())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _check_function(function: ir.Operation, name: str) -> None:
    """Refuse what would fail late, under the name of a program in the cache."""
    from torch_mlir import ir

    symbol = ir.StringAttr(function.attributes["sym_name"]).value
    hidden = "sym_visibility" in function.attributes
    if symbol != "main" or hidden:
        found = f"{'private ' if hidden else ''}@{symbol}"
        raise UsageError(f"model '{name}': its function is {found}; expected a public func.func @main")
    for i, argument in enumerate(function.regions[0].blocks[0].arguments):
        if not isinstance(argument.type, ir.RankedTensorType):
            continue  # told by read_network
        if not isinstance(argument.type.element_type, ir.F32Type) or 0 in argument.type.shape:
            raise UsageError(f"model '{name}': argument {i} is {argument.type}; expected f32 images, such as 1x3x64x64")


def _check_numbers(network: Network, name: str) -> None:
    for node in network.layers:
        for what, values in (("weight", node.weight), ("bias", node.bias)):
            if values is not None and not np.isfinite(values).all():
                count = np.count_nonzero(~np.isfinite(values))
                raise UsageError(
                    f"model '{name}': layer '{node.name}': {count} of {values.size} numbers of its {what} are NaN or "
                    "infinite; check the weights, and batch norms folded into them"
                )
        if node.weight is not None:
            _check_size(node, name)


def _check_size(node: Node, name: str) -> None:
    """Refuse weights of which images of ordinary size make results that float32 has not."""
    assert node.weight is not None
    sums = np.abs(node.weight.astype(np.float64)).sum(axis=tuple(range(1, node.weight.ndim)))
    if sums.max() > _LARGEST:
        raise UsageError(
            f"model '{name}': layer '{node.name}': the weights of a channel add up to {sums.max():.2g}, beyond float32 "
            f"({_LARGEST:.2g}): its results would be infinite; check the weights, and batch norms folded into them"
        )
