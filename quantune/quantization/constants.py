"""Weights and biases in place of a network's own, as numbers: what a refinement found.

A weight lies on its grid exactly (an integer times its scale), so that it quantizes to itself: whatever chose the
integers, the same lowering, kernels and comparison bit for bit follow. A bias is f32 and is rounded as any other.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network, Node
from quantune.numerics.affine import QuantParams, dequantize, quantize

_PARTS = ("weight", "bias")


@dataclass(frozen=True, eq=False)
class Constant:
    """What a layer gets in place of its own; None keeps it.

    weight: f32 of the shape that `Node.weight` has. bias: f32[outputs]. ValueError for other types and for numbers
    that are not finite.
    """

    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for part in _PARTS:
            array = getattr(self, part)
            if array is not None and (array.dtype != np.float32 or not np.isfinite(array).all()):
                raise ValueError(f"{part} of type {array.dtype}: expected finite f32 numbers")

    @property
    def parts(self) -> dict[str, NDArray[np.float32]]:
        """What there is, by name."""
        return {part: array for part in _PARTS if (array := getattr(self, part)) is not None}


Constants = Mapping[str, Constant]
"""Layer name -> what it gets."""


def check(layer: str, constant: Constant, params: QuantParams) -> None:
    """Raise ValueError unless a layer's weight lies on the grid of its quantization."""
    weight = constant.weight
    if weight is not None and not np.array_equal(dequantize(quantize(weight, params), params), weight):
        raise ValueError(f"constants: the weight of '{layer}' does not lie on its grid")


def rounded(node: Node, params: QuantParams) -> Constant:
    """A layer's weight on the grid of its quantization."""
    assert node.weight is not None
    return Constant(dequantize(quantize(node.weight, params), params))


def merged(first: Constants, then: Constants) -> dict[str, Constant]:
    """Constants of which the later ones replace the first, part by part."""
    both = {name: Constant(**each.parts) for name, each in first.items()}
    for name, each in then.items():
        both[name] = replace(both.get(name, Constant()), **each.parts)
    return both


def with_constants(network: Network, constants: Constants) -> Network:
    """The network with the constants in place. ValueError for an unknown layer and for other shapes."""
    layers = {node.name for node in network.layers}
    unknown = sorted(set(constants) - layers)
    if unknown:
        raise ValueError(f"constants: the network has no layer '{unknown[0]}'")
    nodes = tuple(_changed(node, constants[node.name]) if node.name in constants else node for node in network.nodes)
    return Network(nodes, network.outputs)


def _changed(node: Node, constant: Constant) -> Node:
    for part, array in constant.parts.items():
        expected = getattr(node, part).shape
        if array.shape != expected:
            raise ValueError(f"constants: the {part} of '{node.name}' has shape {array.shape}; expected {expected}")
    return replace(node, **constant.parts)  # type: ignore[arg-type]


def digest(constants: Constants) -> str:
    """A hash of all numbers, by their layers."""
    found = hashlib.sha256()
    for name, array in _arrays(constants).items():
        found.update(f"{name} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def to_bytes(constants: Constants) -> bytes:
    """The constants as an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays(constants))  # type: ignore[arg-type]
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Constant]:
    """Read what ``to_bytes`` wrote. Raises ValueError for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no constants: {error}") from error
    parts: dict[str, dict[str, NDArray]] = {}
    for path, array in arrays.items():
        name, _, part = path.rpartition("/")
        if part not in _PARTS:
            raise ValueError(f"no constants: there is a '{path}'")
        parts.setdefault(name, {})[part] = array
    return {name: Constant(**found) for name, found in parts.items()}


def _arrays(constants: Constants) -> dict[str, NDArray[np.float32]]:
    return {f"{name}/{part}": array for name, each in sorted(constants.items()) for part, array in each.parts.items()}
