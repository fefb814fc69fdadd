"""What is reconstructed together: single layers, or the blocks that the graph of a network falls into.

A tensor through which everything goes is a cut: behind its step nothing else is still to be read. What lies between two
cuts is a block: the branches of a residual addition or of a concatenation with what joins them, or a single operation.
In a chain, a depthwise layer belongs to the layers around it, whose channels it only filters; the first layer stays
alone. No name is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlir_passes.network import Node
from quantune.refine import forward

LARGEST = 16
"""Layers of a block; one of more is taken layer by layer."""

Steps = Sequence[tuple[Node, Node]]
"""A part of a schedule: what is computed, and the node of its result (``simulate.schedule``)."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Steps that follow each other. inputs: tensors made before them. output: the only one that is read behind them."""

    steps: tuple[tuple[Node, Node], ...]
    inputs: tuple[str, ...]
    output: str

    @classmethod
    def of(cls, steps: Steps) -> Unit:
        """Of steps whose last one makes the output."""
        made = {result.name for _, result in steps}
        read = dict.fromkeys(name for node, _ in steps for name in node.inputs if name not in made)
        return cls(tuple(steps), tuple(read), steps[-1][1].name)

    @property
    def layers(self) -> tuple[Node, ...]:
        """The layers among the steps."""
        return tuple(node for node, _ in self.steps if node.traits.weighted)


def layers(order: Steps) -> list[Unit]:
    """Each step by itself."""
    return [Unit.of([step]) for step in order]


def blocks(order: Steps) -> list[Unit]:
    """The blocks between cuts."""
    pieces: list[list[tuple[Node, Node]]] = []
    last_reader = {name: i for i, (node, _) in enumerate(order) for name in node.inputs}
    begun, reach = 0, -1
    for i, (_, result) in enumerate(order):
        if reach <= i:  # nothing made before this step is read behind it
            pieces.append(list(order[begun : i + 1]))
            begun = i + 1
        reach = max(reach, last_reader.get(result.name, i))
    if begun < len(order):
        pieces.append(list(order[begun:]))
    joined = _with_depthwise(pieces)
    return [unit for piece in joined for unit in _units(piece)]


def _units(piece: list[tuple[Node, Node]]) -> list[Unit]:
    many = sum(node.traits.weighted for node, _ in piece)
    if len(piece) > 1 and (many > LARGEST or not all(forward.computes(node) for node, _ in piece)):
        return [Unit.of([step]) for step in piece]
    return [Unit.of(piece)]


def _with_depthwise(pieces: list[list[tuple[Node, Node]]]) -> list[list[tuple[Node, Node]]]:
    """The pieces, with each depthwise layer that is one by itself joined to the single layers beside it."""
    found: list[list[tuple[Node, Node]]] = []
    layers, open_behind = 0, False
    for piece in pieces:
        single = len(piece) == 1 and piece[0][0].traits.weighted
        depthwise = single and _is_depthwise(piece[0][0])
        before = found[-1] if found else []
        alone = len(before) == 1 and before[0][0].traits.weighted and layers > 1
        if (depthwise and alone) or (single and open_behind):
            before.extend(piece)
        else:
            found.append(list(piece))
        layers += sum(node.traits.weighted for node, _ in piece)
        open_behind = depthwise
    return found


def _is_depthwise(node: Node) -> bool:
    return node.groups > 1 and node.weight is not None and node.groups == node.weight.shape[0]
