"""A network as plain data: what the passes read out of a linalg module, for those who may not touch MLIR.

Calibration, planning, the numpy simulation and the search's features all work on this; only numpy is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mlir_passes.functions import Function
from mlir_passes.ops import Traits, traits_of

INPUT, FLOAT = "input", "float"
"""Kinds of nodes that are no operation of the table: what comes in, and anything that is only done in f32."""


Places = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Tap:
    """One summand of a blend: the places it is picked from, and its weight f64, which broadcasts to the result."""

    places: Places
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of a network and the tensor it makes; unused fields keep their defaults.

    name: unique name of the tensor. layer: module path. kind: of `mlir_passes.ops`, INPUT or FLOAT.
    inputs: tensor names. shape: of the result, N C H W where it has four dimensions.
    weight: f32[O, I/groups, kh, kw] of conv, f32[O, I] of matmul, f32[channels] of affine. bias: f32[O].
    pads: (top, left, bottom, right), zeros for conv and avgpool, -inf for maxpool.
    kernel, strides, dilations: (height, width) of conv and pools; avgpool over everything has kernel = the whole image.
    lo, hi: bounds of clamp. axis: of concat. axes: of sum and maximum. permutation: of transpose. offsets, steps: of
    slice and surround. places: of gather, the index in the input of each index of the result, dimension by dimension.
    taps: of blend.
    divisor: avgpool and sum divide by it, 1 for a plain sum. detail: what a float operation is made of.
    function: of table; of a float operation where it is one step of a function of one value.
    """

    name: str
    layer: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    lo: float = -math.inf
    hi: float = math.inf
    axis: int = 1
    axes: tuple[int, ...] = ()
    permutation: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    places: Places = ()
    taps: tuple[Tap, ...] = ()
    divisor: float = 1.0
    detail: str = ""
    function: Function | None = None

    @property
    def traits(self) -> Traits:
        """What is known of the node's operation."""
        return traits_of(self.kind)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a layer, 0 for anything else."""
        if self.weight is None or not self.traits.weighted:
            return 0
        return math.prod(self.shape) * math.prod(self.weight.shape[1:])


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in execution order; the first are the inputs. outputs: names of the returned tensors."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    by_name: Mapping[str, Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Which nodes read each tensor."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @property
    def layers(self) -> tuple[Node, ...]:
        """The convolutions and matrix products with constant weights."""
        return tuple(node for node in self.nodes if node.traits.weighted)

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The network's inputs."""
        return tuple(node for node in self.nodes if node.kind == INPUT)

    def shares(self, node: Node, name: str) -> bool:
        """Whether ``node`` hands on the integers of its input ``name`` as they are, both being quantized alike.

        A concatenation requantizes what others compute with: their scales should not depend on its other inputs.
        """
        if not node.traits.requantizes:
            return node.traits.hands_on
        return all(reader.traits.hands_on for reader in self.consumers[name])

    def fused_clamp(self, node: Node) -> Node | None:
        """The clamp that follows ``node`` directly and alone, which its requantization can take over."""
        readers = self.consumers[node.name]
        if not node.traits.takes_clamp or len(readers) != 1 or node.name in self.outputs:
            return None
        return readers[0] if readers[0].traits.clamps else None
