"""What the JSON of an exported program may say: the schema of a network of fixed shape, and nothing beside it.

Each function gives back a copy of what it was given, made of what it knows; the rest is left out where a network is the
same without it, and refused where not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE as DTYPES

from quantune.errors import first_line
from quantune.frontend.foreign import (
    NAME,
    WEIGHT,
    Refused,
    field,
    identifier,
    mapping,
    match,
    printable,
    typed,
    variant,
    word,
)

NAMESPACES = ("aten", "prims", "quantized_decomposed")
"""Whose operators a program may use: they compute tensors from tensors."""

_TOUCHING_FILES = ("aten::from_file", "aten::save")
_TARGET = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_FILE = re.compile(r"\w+", re.ASCII)
_DEVICE = re.compile(r"[a-z]+", re.ASCII)
_DEEPEST = 20  # nested containers of inputs or outputs
_LARGEST = 2**48
_DENSE = 7  # torch.strided


def program(given: dict[str, Any]) -> dict[str, Any]:
    """A whole program; raises Refused."""
    module = field(given, "graph_module", dict)
    version = field(given, "schema_version", dict)
    if field(given, "range_constraints", dict):
        raise Refused("it has sizes that are not known; export it with fixed shapes")
    return {
        "graph_module": {
            "graph": _graph(field(module, "graph", dict)),
            "signature": _signature(field(module, "signature", dict)),
            "module_call_graph": [_calling(module)],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": mapping(field(given, "opset_version", dict), NAME, lambda value: typed(value, int, "opset")),
        "range_constraints": {},
        "schema_version": {"major": field(version, "major", int), "minor": field(version, "minor", int)},
        "verifiers": [identifier(each) for each in typed(given.get("verifiers") or [], list, "verifiers")],
        "torch_version": printable(given.get("torch_version", "")),
        "guards_code": [],
    }


def _graph(graph: dict[str, Any]) -> dict[str, Any]:
    for kind in ("sym_int_values", "sym_bool_values", "sym_float_values"):
        if graph.get(kind):
            raise Refused("it computes with sizes that are not known; export it with fixed shapes")
    if graph.get("custom_obj_values"):
        raise Refused("it holds objects that are no tensors")
    return {
        "inputs": [_argument(each) for each in field(graph, "inputs", list)],
        "outputs": [_argument(each) for each in field(graph, "outputs", list)],
        "nodes": [_node(each) for each in field(graph, "nodes", list)],
        "tensor_values": mapping(field(graph, "tensor_values", dict), NAME, _meta),
        "sym_int_values": {},
        "sym_bool_values": {},
        "is_single_tensor_return": typed(graph.get("is_single_tensor_return", False), bool, "is_single_tensor_return"),
        "custom_obj_values": {},
        "sym_float_values": {},
    }


def _node(node: Any) -> dict[str, Any]:
    name = node.get("name") if isinstance(node, dict) else None
    stack = field(node, "metadata", dict).get("nn_module_stack")
    return {
        "target": _target(field(node, "target", str)),
        "inputs": [
            {
                "name": identifier(field(each, "name", str)),
                "arg": _argument(each.get("arg")),
                "kind": _kind(each.get("kind")),
            }
            for each in field(node, "inputs", list)
        ],
        "outputs": [_argument(each) for each in field(node, "outputs", list)],
        "metadata": {} if stack is None else {"nn_module_stack": printable(stack)},
        "is_hop_single_tensor_return": None,
        "name": None if name is None else identifier(name),
    }


def _target(target: str) -> str:
    """The operator that a node calls: one of torch's own that computes tensors, by its full name."""
    found = _TARGET.fullmatch(target)
    if found is None or found[1] not in NAMESPACES:
        raise Refused(f"it calls {target!r:.60}; expected operators torch.ops.{'|'.join(NAMESPACES)}")
    packet = getattr(getattr(torch.ops, found[1]), found[2], None)
    operator = getattr(packet, found[3], None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise Refused(f"this torch has no operator {target!r:.60}")
    if operator._schema.name in _TOUCHING_FILES or not torch._C._dispatch_has_kernel(operator.name()):
        raise Refused(f"it calls {target!r:.60}, which does more than to compute tensors")
    return target


def _argument(given: Any) -> dict[str, Any]:
    kind, value = variant(given)
    if kind not in _ARGUMENTS:
        raise Refused(f"it has an argument of the kind {kind!r:.60}, which no plain network has")
    return {kind: _ARGUMENTS[kind](value)}


def _named(value: Any) -> dict[str, str]:
    return {"name": match(value, "name", NAME)}


def _optional(value: Any) -> dict[str, Any]:
    kind, inner = variant(value)
    return {"as_tensor": _named(inner)} if kind == "as_tensor" else {"as_none": typed(inner, bool, kind)}


def _sized(value: Any) -> dict[str, int]:
    """A number where a symbol could stand; symbols have been refused before."""
    return {"as_int": field(value, "as_int", int)}


def _device(value: Any) -> dict[str, Any]:
    index = value.get("index") if isinstance(value, dict) else None
    return {"type": match(value, "type", _DEVICE), "index": None if index is None else typed(index, int, "index")}


def _kind(value: Any) -> int | None:
    return None if value is None else typed(value, int, "kind")


def _number(value: Any) -> float | str:
    """A float; JSON has no infinity, and torch writes it as text."""
    return value if value in ("Infinity", "-Infinity", "NaN") else typed(value, (int, float), "as_float")


def _list(each: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda value: [each(item) for item in typed(value, list, "list")]


def _plain(kind: type) -> Callable[[Any], Any]:
    return lambda value: typed(value, kind, kind.__name__)


_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": _plain(bool),
    "as_tensor": _named,
    "as_tensors": _list(_named),
    "as_nested_tensors": _list(_list(_named)),
    "as_optional_tensor": _optional,
    "as_optional_tensors": _list(_optional),
    "as_int": _plain(int),
    "as_ints": _list(_plain(int)),
    "as_int_lists": _list(_list(_plain(int))),
    "as_float": _number,
    "as_floats": _list(_number),
    "as_float_lists": _list(_list(_number)),
    "as_complex": lambda value: {part: _number(field(value, part, (int, float))) for part in ("real", "imag")},
    "as_bool": _plain(bool),
    "as_bools": _list(_plain(bool)),
    "as_string": word,
    "as_strings": _list(word),
    "as_sym_int": _sized,
    "as_sym_ints": _list(_sized),
    "as_scalar_type": _plain(int),
    "as_memory_format": _plain(int),
    "as_layout": _plain(int),
    "as_device": _device,
}


def tensor(entry: Any) -> dict[str, Any]:
    """What is said of a tensor that lies in a file of its own."""
    if field(entry, "use_pickle", bool):
        raise Refused("it holds pickled objects, which would be run and not read; expected plain tensors")
    return {
        "path_name": match(entry, "path_name", _FILE),
        "is_param": field(entry, "is_param", bool),
        "use_pickle": False,
        "tensor_meta": _meta(field(entry, "tensor_meta", dict)),
    }


def _meta(meta: Any) -> dict[str, Any]:
    kind = field(meta, "dtype", int)
    if kind not in DTYPES:
        raise Refused(f"a tensor has the type {kind!r:.60}, which is unknown")
    if field(meta, "layout", int) != _DENSE:
        raise Refused("a tensor is not stored densely")
    return {
        "dtype": kind,
        "sizes": [_size(each) for each in field(meta, "sizes", list)],
        "requires_grad": field(meta, "requires_grad", bool),
        "device": _device(field(meta, "device", dict)),
        "strides": [_size(each) for each in field(meta, "strides", list)],
        "storage_offset": _size(field(meta, "storage_offset", dict)),
        "layout": _DENSE,
    }


def _size(value: Any) -> dict[str, int]:
    if isinstance(value, dict) and "as_expr" in value:
        raise Refused("it has sizes that are formulas; export it with fixed shapes")
    size = field(value, "as_int", int)
    if not 0 <= size < _LARGEST:
        raise Refused(f"a tensor has the size {size}")
    return {"as_int": size}


def _signature(signature: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_specs": [_specification(each, _INPUTS) for each in field(signature, "input_specs", list)],
        "output_specs": [_specification(each, _OUTPUTS) for each in field(signature, "output_specs", list)],
    }


def _specification(given: Any, known: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    kind, value = variant(given)
    if kind not in known:
        raise Refused(f"it has an input or output of the kind {kind!r:.60}, which no plain network has")
    checked: dict[str, Any] = {}
    for part in known[kind]:
        if part == "arg":
            inner = field(value, part, dict)
            checked[part] = _argument(inner) if kind.startswith("user_") else _named(inner)
        elif part == "persistent":
            checked[part] = field(value, part, bool)
        else:
            checked[part] = match(value, part, WEIGHT)
    return {kind: checked}


_INPUTS = {
    "user_input": ("arg",),
    "parameter": ("arg", "parameter_name"),
    "buffer": ("arg", "buffer_name", "persistent"),
    "tensor_constant": ("arg", "tensor_constant_name"),
}
_OUTPUTS = {"user_output": ("arg",), "buffer_mutation": ("arg", "buffer_name")}


def _calling(module: dict[str, Any]) -> dict[str, Any]:
    """How the program as a whole is called; what its parts were called like serves nothing here."""
    for entry in field(module, "module_call_graph", list):
        signature = entry.get("signature") if isinstance(entry, dict) else None
        if signature is not None and entry.get("fqn") == "":
            names = signature.get("forward_arg_names") if isinstance(signature, dict) else None
            return {
                "fqn": "",
                "signature": {
                    "inputs": [_argument(each) for each in field(signature, "inputs", list)],
                    "outputs": [_argument(each) for each in field(signature, "outputs", list)],
                    "in_spec": _structure(field(signature, "in_spec", str)),
                    "out_spec": _structure(field(signature, "out_spec", str)),
                    "forward_arg_names": None
                    if names is None
                    else [identifier(each) for each in typed(names, list, "names")],
                },
            }
    raise Refused("it does not say how it is called")


def _structure(text: str) -> str:
    """The structure of inputs or outputs, of tuples, lists and dicts alone."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the structure of its inputs is not JSON: {first_line(error)}") from error
    if not isinstance(value, list) or len(value) != 2 or value[0] != 1:
        raise Refused("the structure of its inputs is of another version")
    return json.dumps([1, _container(value[1], 0)])


def _container(value: Any, depth: int) -> dict[str, Any]:
    kind, context = (typed(value, dict, "structure").get(key) for key in ("type", "context"))
    children = field(value, "children_spec", list)
    if depth > _DEEPEST:
        raise Refused("the structure of its inputs is too deep")
    if kind is None and context is None and not children:
        return {"type": None, "context": None, "children_spec": []}
    if kind not in ("builtins.tuple", "builtins.list", "builtins.dict"):
        raise Refused(f"its inputs are in a {kind!r:.60}; expected tuples, lists and dicts")
    plain = "null"
    if kind == "builtins.dict":
        try:
            keys = json.loads(typed(context, str, "context"))
        except (ValueError, RecursionError) as error:
            raise Refused("the structure of its inputs is not JSON") from error
        plain = json.dumps([word(key) for key in typed(keys, list, "keys")])
    return {"type": kind, "context": plain, "children_spec": [_container(each, depth + 1) for each in children]}
