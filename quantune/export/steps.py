"""Single operations on elements, by their names in MLIR, as ONNX nodes; and functions of one value made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlir_passes.functions import COMPARE, NUMBER, VALUE, Function
from quantune.export.graph import Graph

_OPERATORS = {
    "arith.addf": "Add", "arith.subf": "Sub", "arith.mulf": "Mul", "arith.divf": "Div", "arith.negf": "Neg",
    "arith.maximumf": "Max", "arith.minimumf": "Min", "arith.maxnumf": "Max", "arith.minnumf": "Min",
    "arith.select": "Where", "arith.andi": "And", "arith.ori": "Or", "arith.xori": "Xor", "math.absf": "Abs",
    "math.ceil": "Ceil", "math.cos": "Cos", "math.erf": "Erf", "math.exp": "Exp", "math.floor": "Floor",
    "math.fpowi": "Pow", "math.log": "Log", "math.powf": "Pow", "math.roundeven": "Round", "math.sin": "Sin",
    "math.sqrt": "Sqrt", "math.tanh": "Tanh",
}  # fmt: skip
_SAME = {"arith.truncf", "arith.extf", "arith.sitofp"}  # f64 and integers stand for numbers of torch, all f32 here
_COMPARE = {1: "Equal", 2: "Greater", 3: "GreaterOrEqual", 4: "Less", 5: "LessOrEqual"}
_COMPARE |= {number + 7: kind for number, kind in _COMPARE.items()}  # the unordered ones: NaN is no image's


def number(graph: Graph, value: float | tuple[float, ...], stem: str, rank: int = 0) -> str:
    """A constant; several numbers lie along dimension 1 of a tensor of ``rank`` dimensions."""
    numbers = np.asarray(value, np.float32)
    return graph.constant(numbers.reshape(-1, *[1] * (rank - 2)) if numbers.ndim else numbers, f"{stem}/constant")


def step(graph: Graph, name: str, operands: Sequence[str], predicate: int, stem: str) -> str | None:
    """One operation; None for what has no form here. predicate: of a compare."""
    if name in _SAME:
        return operands[0]
    if name == COMPARE:
        kind = _COMPARE.get(predicate)
        if kind is not None:
            return graph.add(kind, operands, stem)
        return graph.add("Not", [graph.add("Equal", operands, stem)], stem) if predicate in (6, 13) else None
    if name == "math.rsqrt":
        return graph.add("Reciprocal", [graph.add("Sqrt", operands, stem)], stem)
    if name == "math.exp2":
        return graph.add("Pow", [number(graph, 2, stem), *operands], stem)
    if name == "math.expm1":
        return graph.add("Sub", [graph.add("Exp", operands, stem), number(graph, 1, stem)], stem)
    if name == "math.log1p":
        return graph.add("Log", [graph.add("Add", [*operands, number(graph, 1, stem)], stem)], stem)
    return graph.add(_OPERATORS[name], operands, stem) if name in _OPERATORS else None


def function(graph: Graph, computed: Function, value: str, stem: str, rank: int) -> str | None:
    """A function of one tensor of ``rank`` dimensions, element by element; None where a step of it has no form here."""
    places: list[str] = []
    for each in computed.steps:
        if each.name == VALUE:
            made: str | None = value
        elif each.name == NUMBER:
            made = number(graph, each.number, stem, rank)
        else:
            predicate = int(each.number) if each.name == COMPARE and not isinstance(each.number, tuple) else 0
            made = step(graph, each.name, [places[place] for place in each.operands], predicate, stem)
        if made is None:
            return None
        places.append(made)
    return places[-1]
