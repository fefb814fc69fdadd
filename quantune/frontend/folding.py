"""Batch normalization folding on an exported program, in place.

The algebra, with s = γ / sqrt(σ² + ε):

    BN(conv(x, W) + b)  ->  conv(x, W·s) + ((b − μ)·s + β)        s along W's output channels
    BN(x)               ->  x·s + (β − μ·s)                       when no convolution of its own precedes it

Nothing is added to the program's signature: the folded values are stored in the normalization's own parameter and
buffer slots, which nobody reads any more.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_BATCH_NORM = (torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default)
_CONV = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default, torch.ops.aten.conv2d.padding)


def fold_batch_norms(program: ExportedProgram) -> int:
    """Fold every inference batch norm of ``program`` (computed in f64, stored in f32); returns how many."""
    state = _State(program)
    folded = 0
    for node in list(program.graph.nodes):
        if node.op == "call_function" and node.target in _BATCH_NORM and _is_inference(node):
            folded += _fold(program, state, node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return folded


def _is_inference(node: Node) -> bool:
    if node.target is _BATCH_NORM[1]:  # returns a tuple whose first item alone is used in inference
        return len(node.users) == 1
    return node.args[5] is False


class _State:
    """The tensors behind a program's placeholders."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.program = program

    def read(self, node: object) -> torch.Tensor | None:
        name = self.names.get(node.name) if isinstance(node, Node) else None
        if name is None:
            return None
        value: Any = self.program.state_dict.get(name)
        return cast("torch.Tensor | None", self.program.constants.get(name)) if value is None else value

    def write(self, node: Node, value: torch.Tensor) -> None:
        name = self.names[node.name]
        store = self.program.state_dict if name in self.program.state_dict else self.program.constants
        old = store[name]
        new = value.to(torch.float32)
        store[name] = torch.nn.Parameter(new, requires_grad=False) if isinstance(old, torch.nn.Parameter) else new

    def is_private(self, node: object) -> bool:
        return isinstance(node, Node) and node.name in self.names and len(node.users) == 1


def _fold(program: ExportedProgram, state: _State, node: Node) -> bool:
    x, gamma_node, beta_node, mean_node, variance_node = node.args[:5]
    mean, variance = state.read(mean_node), state.read(variance_node)
    if mean is None or variance is None or not (state.is_private(mean_node) and state.is_private(variance_node)):
        return False
    gamma, beta = state.read(gamma_node), state.read(beta_node)
    epsilon = float(node.args[7] if node.target is _BATCH_NORM[0] else node.args[6])  # type: ignore[arg-type]
    scale = torch.rsqrt(variance.double() + epsilon) * (1.0 if gamma is None else gamma.double())
    shift = (0.0 if beta is None else beta.double()) - mean.double() * scale
    assert isinstance(x, Node)
    assert isinstance(mean_node, Node)
    assert isinstance(variance_node, Node)
    replacement = _fold_into_conv(state, x, scale, shift, mean_node)
    if replacement is None:
        state.write(mean_node, shift)
        state.write(variance_node, scale)
        replacement = _as_affine(program, node, x, variance_node, mean_node)
    result = node if node.target is _BATCH_NORM[0] else next(iter(node.users))
    result.replace_all_uses_with(replacement)
    for dead in dict.fromkeys((result, node)):
        program.graph.erase_node(dead)
    return True


def _fold_into_conv(state: _State, conv: Node, scale: torch.Tensor, shift: torch.Tensor, slot: Node) -> Node | None:
    """Scale the weight of ``conv`` and hand it ``slot``, the normalization's mean, as its new bias."""
    if conv.op != "call_function" or conv.target not in _CONV or len(conv.users) != 1:
        return None
    given = list(conv.args)
    weight_node = given[1]
    bias_node = given[2] if len(given) > 2 else conv.kwargs.get("bias")
    weight = state.read(weight_node)
    transposed = conv.target is _CONV[1] and given[6] is True
    if weight is None or transposed or not state.is_private(weight_node):
        return None
    if isinstance(bias_node, Node):
        bias = state.read(bias_node)
        if bias is None:
            return None
        shift = shift + bias.double() * scale
    assert isinstance(weight_node, Node)
    state.write(weight_node, weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    state.write(slot, shift)
    arguments = list(conv.args) + [None] * (3 - len(conv.args))
    arguments[2] = slot
    conv.args = tuple(arguments)
    conv.kwargs = {k: v for k, v in conv.kwargs.items() if k != "bias"}
    return conv


def _as_affine(program: ExportedProgram, node: Node, x: Node, scale: Node, shift: Node) -> Node:
    """``x·scale + shift`` with both broadcast along dimension 1."""
    value = x.meta["val"]
    shape = [1, value.shape[1], *[1] * (value.ndim - 2)]
    channel_stub = value.new_empty(shape)

    def call(target: torch._ops.OpOverload, arguments: tuple, stub: torch.Tensor) -> Node:
        made = program.graph.call_function(target, arguments)
        made.meta = {**{k: v for k, v in node.meta.items() if k != "val"}, "val": stub}
        return made

    with program.graph.inserting_before(node):
        scale_view = call(torch.ops.aten.view.default, (scale, shape), channel_stub)
        shift_view = call(torch.ops.aten.view.default, (shift, shape), channel_stub)
        product = call(torch.ops.aten.mul.Tensor, (x, scale_view), value)
        return call(torch.ops.aten.add.Tensor, (product, shift_view), value)
