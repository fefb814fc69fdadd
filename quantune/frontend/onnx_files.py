"""ONNX files from anywhere: read as data, checked, and turned into a torch module that computes the same.

Nothing of the file is run: its operators are looked up by name in our own table (`onnx_operators`). Weights must be in
the file itself, so that no other file is opened. What only depends on constants and shapes is computed while reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.export import ExportedProgram

from quantune.errors import ImportFailed, UsageError, first_line
from quantune.frontend.foreign import Refused
from quantune.frontend.importer import quiet
from quantune.frontend.onnx_operators import OPERATORS, Call

OLDEST = 13
"""Of the operator sets that are read."""

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_SHAPES = ("Shape", "Size")
_CONSTANT_BYTES = 1 << 30


def read_onnx(path: Path) -> ExportedProgram:
    """Read a float network.

    Raises UsageError for a file that cannot be read, ImportFailed for operators that have no reading here.
    """
    what = f"model '{path}'"
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        _check(model)
        with quiet(), torch.no_grad():
            return _program(model.graph)
    except Refused as refused:
        raise UsageError(f"{what}: {refused}") from refused
    except (UsageError, ImportFailed) as error:
        raise type(error)(f"{what}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # protobuf, onnx and torch fail in their own ways, and all mean the same to the user
        raise UsageError(f"{what}: not a readable ONNX file: {type(error).__name__}: {first_line(error)}") from error


def _check(model: onnx.ModelProto) -> None:
    if not model.graph.node:
        raise Refused("it has no graph; expected an ONNX file")
    versions = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    version = versions.get("ai.onnx", 0)
    if version < OLDEST:
        raise Refused(
            f"its operators are of version {version}; expected {OLDEST} or later: export it with opset_version=17"
        )
    if model.functions:
        raise Refused("it defines functions of its own; expected operators of ONNX alone")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refused(
                f"the weight '{tensor.name[:60]}' lies in another file; save it as one: onnx.save(model, FILE) after "
                "onnx.load(FILE)"
            )
    for node in model.graph.node:
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise Refused(
                f"it is quantized already: node '{_name(node)}' is a {node.op_type}; expected the float network"
            )
        if node.domain not in ("", "ai.onnx"):
            raise Refused(f"node '{_name(node)}' is a {node.domain}.{node.op_type}; expected operators of ONNX alone")


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    held = [each.t for each in attributes if each.HasField("t")] + [t for each in attributes for t in each.tensors]
    return [*graph.initializer, *held]


def _name(node: onnx.NodeProto) -> str:
    """What to call a node: its name, or that of its result."""
    name = node.name or (node.output[0] if node.output else node.op_type)
    return "".join(c for c in name[:200] if c.isprintable() and c not in "'\"")


def _inputs(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Black images of the shape of each input; a batch of unknown size is one image."""
    held = {each.name for each in graph.initializer}
    found: dict[str, torch.Tensor] = {}
    for given in graph.input:
        if given.name in held:
            continue
        kind = given.type.tensor_type
        if kind.elem_type != onnx.TensorProto.FLOAT:
            raise Refused(f"input '{given.name[:60]}' is {_type_name(kind.elem_type)}; expected float32")
        dims = list(kind.shape.dim)
        sizes = [each.dim_value if each.HasField("dim_value") else None for each in dims]
        if sizes and sizes[0] is None:
            sizes[0] = 1
        if any(size is None or size < 1 for size in sizes) or not sizes:
            shown = ", ".join("?" if size is None else str(size) for size in sizes)
            raise Refused(f"input '{given.name[:60]}' has the shape ({shown}); export it with fixed sizes")
        if 4 * torch.Size([s for s in sizes if s is not None]).numel() > _CONSTANT_BYTES:
            raise Refused(f"input '{given.name[:60]}' has the shape {tuple(sizes)}, more than 1 GiB")
        found[given.name] = torch.zeros([s for s in sizes if s is not None])
    if not found:
        raise Refused("it has no inputs")
    return found


def _type_name(kind: int) -> str:
    return onnx.TensorProto.DataType.Name(kind).lower() if kind in onnx.TensorProto.DataType.values() else str(kind)


class _Step(nn.Module):
    """One node: its constant operands are buffers, so that batch norms can be folded into them."""

    def __init__(self, call: Call, inputs: Sequence[torch.Tensor | None], constant: Sequence[bool]) -> None:
        super().__init__()
        self.call, self.constant = call, tuple(constant)
        self.count = len(inputs)
        for i, (value, held) in enumerate(zip(inputs, constant, strict=True)):
            if held and value is not None:
                self.register_buffer(f"c{i}", value.clone())

    def forward(self, *given: torch.Tensor) -> Any:
        left = iter(given)
        operands = [
            getattr(self, f"c{i}", self.call.constants[i]) if self.constant[i] else next(left)
            for i in range(self.count)
        ]
        return OPERATORS[self.call.kind](self.call, *operands)


class _Network(nn.Module):
    """The nodes that depend on the inputs, in their order. plan: (names read, names made) of each."""

    def __init__(self, graph: onnx.GraphProto, inputs: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.steps, self.plan, self.names = nn.ModuleList(), [], []
        self.inputs, self.outputs = tuple(inputs), tuple(each.name for each in graph.output)
        held = {tensor.name: _array(tensor) for tensor in graph.initializer}
        moving = dict(inputs)
        for node in graph.node:
            self._enter(node, held, moving)
        for name in self.outputs:
            if name not in moving:
                raise Refused(f"the result '{name[:60]}' depends on no input")

    def _enter(self, node: onnx.NodeProto, held: dict[str, torch.Tensor], moving: dict[str, torch.Tensor]) -> None:
        if node.op_type not in OPERATORS:
            raise ImportFailed(f"no reading of operator '{node.op_type[:60]}' in node '{_name(node)}'")
        values: list[torch.Tensor | None] = []
        for name in node.input:
            if name and name not in held and name not in moving:
                raise Refused(f"node '{_name(node)}' reads '{name[:60]}', which nothing before it makes")
            values.append(None if not name else moving.get(name, held.get(name)))
        constant = [name not in moving for name in node.input]
        constants = [
            value.numpy() if fixed and value is not None else None
            for value, fixed in zip(values, constant, strict=True)
        ]
        call = Call(node.op_type, {each.name: _attribute(each) for each in node.attribute}, constants, len(node.output))
        try:
            made = OPERATORS[node.op_type](call, *values)
        except Refused as refused:
            raise ImportFailed(f"{refused}, in node '{_name(node)}' ({node.op_type})") from refused
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, AssertionError) as error:
            raise Refused(f"node '{_name(node)}' ({node.op_type}) cannot be computed: {first_line(error)}") from error
        results = dict(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))
        if all(constant) or node.op_type in _SHAPES:
            held.update(results)
            return
        moving.update(results)
        self.steps.append(_Step(call, values, constant))
        self.plan.append(([n for n, fixed in zip(node.input, constant, strict=True) if not fixed], list(results)))
        self.names.append(_name(node))

    def forward(self, *given: torch.Tensor) -> Any:
        known = dict(zip(self.inputs, given, strict=True))
        for step, (read, made) in zip(self.steps, self.plan, strict=True):
            result = step(*(known[name] for name in read))
            known.update(zip(made, result if isinstance(result, tuple) else (result,), strict=False))
        results = tuple(known[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results


def _array(tensor: onnx.TensorProto) -> torch.Tensor:
    if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        raise Refused(f"the weight '{tensor.name[:60]}' is {_type_name(tensor.data_type)}; expected float32")
    if tensor.data_type == onnx.TensorProto.STRING:
        raise Refused(f"the constant '{tensor.name[:60]}' is text")
    return torch.from_numpy(numpy_helper.to_array(tensor).copy())


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return list(value) if attribute.ints or attribute.floats else value


def _program(graph: onnx.GraphProto) -> ExportedProgram:
    inputs = _inputs(graph)
    network = _Network(graph, inputs).eval()
    try:
        program = torch.export.export(network, tuple(inputs.values()), strict=False)
    except Exception as error:  # torch raises whatever its Python raises
        raise ImportFailed(f"cannot be exported by torch.export: {first_line(error)}") from error
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {key: _renamed(each, network.names) for key, each in stack.items()}
    return program


def _renamed(entry: tuple[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """The place of a step in the module as the name of its node."""
    path, kind = entry
    index = path.rpartition("steps.")[2]
    return (names[int(index)], kind) if index.isdigit() else entry
