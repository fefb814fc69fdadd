"""A network and its plan as ONNX with quantize/dequantize pairs (Q/DQ), operators of version 21.

    tensor the plan quantizes    x -> QuantizeLinear -> DequantizeLinear -> its readers      u8 or s8, per tensor
    weight of an integer layer   s8 (s4 up to four bits) constant -> DequantizeLinear        per output channel
    its bias                     i32 constant -> DequantizeLinear                            scale s_x * s_w
    everything else              f32, as imported

Integers are those of the artifact; a runtime that fuses the pairs computes what the artifact computes, but for sums of
tensors that lie in the middle of two integers, and for what runs in f32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from mlir_passes.network import INPUT, Network, Node
from mlir_passes.ops.reader import Reading, read_network
from mlir_passes.reading import NotMlir, parse
from quantune.errors import UsageError
from quantune.export.float_ops import FloatOps, NotExported
from quantune.export.graph import Graph
from quantune.export.operations import OPERATIONS
from quantune.numerics.affine import QuantParams, along, quantize, quantize_bias
from quantune.quantization.plan import QuantizationPlan

LARGEST_BYTES = (1 << 31) - 1
"""A protocol buffer's."""

_EMPTY = QuantizationPlan({}, {})


def to_onnx(module: bytes, plan: QuantizationPlan | None, name: str, notes: Mapping[str, str]) -> bytes:
    """The ONNX file of an imported module; all in f32 without a plan.

    notes: what the file says about itself (metadata_props). Raises UsageError naming the first operation and its layer
    for which there is no ONNX form here, and for a network beyond 2 GB.
    """
    from torch_mlir import ir

    context = ir.Context()
    with context, ir.Location.unknown():
        try:
            held = parse(module, context)  # what is read of it lives as long as it does
            model = _Writer(read_network(held.operation), plan or _EMPTY).model(name)
        except (NotExported, NotMlir) as error:  # torch-mlir has dialects of its own that it cannot read again
            raise UsageError(f"model '{name}' cannot be exported to ONNX: {error}") from error
    helper.set_model_props(model, dict(notes))
    if model.ByteSize() > LARGEST_BYTES:
        raise UsageError(
            f"model '{name}' cannot be exported to ONNX: it takes more than 2 GB, which one file cannot have"
        )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _read(network: Network) -> set[str]:
    """The tensors that results depend on, and the inputs."""
    read = {*network.outputs, *(node.name for node in network.inputs)}
    for node in reversed(network.nodes):
        if node.name in read:
            read.update(node.inputs)
    return read


class _Writer:
    """Writes node after node; ``values`` has the name under which each tensor is read."""

    def __init__(self, reading: Reading, plan: QuantizationPlan) -> None:
        self.reading, self.plan, self.graph = reading, plan, Graph()
        self.values: dict[str, str] = {}
        self.floats = FloatOps(self.graph)

    def model(self, title: str) -> onnx.ModelProto:
        network = self.reading.network
        read = _read(network)
        for node in network.nodes:
            if node.name not in read:
                continue
            site = self.reading.sites[node.name]
            if node.kind == INPUT:
                made = self.graph.unique(node.name)
            elif node.traits.weighted:
                made = self._layer(node)
            elif node.kind in OPERATIONS:
                made = OPERATIONS[node.kind](self.graph, node, [self.values[name] for name in node.inputs])
                made = self._rounded_up(made, node) if node.kind == "add" and self.plan.shifts else made
            else:
                made = self.floats.write(site, node)
            self.values[node.name] = self._quantized(made, node)
            self.floats.names[site.result] = self.values[node.name]
        outputs = {self._output(i, name): network.by_name[name].shape for i, name in enumerate(network.outputs)}
        return self.graph.model({node.name: node.shape for node in network.inputs}, outputs, title)

    def _rounded_up(self, value: str, node: Node) -> str:
        """A sum whose halves of a step become the upper integer, as in the artifact, and not the even one.

        With powers of two every second sum may be such a half; with other scales hardly any is, and a runtime that
        fuses the addition with its pairs is worth more.
        """
        clamp = self.reading.network.fused_clamp(node)
        params = self.plan.activations.get(node.name if clamp is None else clamp.name)
        if params is None:
            return value
        nudge = self.graph.constant(params.scale * np.float32(2**-14), f"{node.name}/nudge")
        return self.graph.add("Add", [value, nudge], f"{node.name}/nudged")

    def _output(self, index: int, name: str) -> str:
        stem = "output" if len(self.reading.network.outputs) == 1 else f"output{index}"
        return self.graph.add("Identity", [self.values[name]], stem)

    def _quantized(self, value: str, node: Node) -> str:
        """A tensor as its readers get it."""
        params = self.plan.activations.get(node.name)
        if params is None:
            return value
        scale, point = self._numbers(node.name, params, params.zero_point.astype(params.dtype))
        low, high = (-128, 127) if params.signed else (0, 255)
        if (params.qmin, params.qmax) != (low, high):  # fewer bits than the type has
            ends = (np.array([params.qmin, params.qmax]) - params.zero_point).astype(np.float32) * params.scale
            bounds = [
                self.graph.constant(end, f"{node.name}/{what}") for end, what in zip(ends, ("low", "high"), strict=True)
            ]
            value = self.graph.add("Clip", [value, *bounds], f"{node.name}/bounded")
        integers = self.graph.add("QuantizeLinear", [value, scale, point], f"{node.name}/quantized")
        return self.graph.add("DequantizeLinear", [integers, scale, point], f"{node.name}/dequantized")

    def _numbers(self, stem: str, params: QuantParams, points: np.ndarray) -> tuple[str, str]:
        return self.graph.constant(params.scale, f"{stem}/scale"), self.graph.constant(points, f"{stem}/zero_point")

    def _layer(self, node: Node) -> str:
        changed = self.plan.constants.get(node.name)
        weight = node.weight if changed is None or changed.weight is None else changed.weight
        bias = node.bias if changed is None or changed.bias is None else changed.bias
        assert weight is not None
        assert bias is not None
        params = self.plan.weights.get(node.name)
        if params is None:
            constants = [
                self.graph.constant(weight, f"{node.name}/weight"),
                self.graph.constant(bias, f"{node.name}/bias"),
            ]
        else:
            constants = [self._weight(node.name, weight, params), self._bias(node, bias, params)]
        return OPERATIONS[node.kind](self.graph, node, [self.values[node.inputs[0]], *constants])

    def _weight(self, name: str, weight: np.ndarray, params: QuantParams) -> str:
        integers = quantize(weight, params)
        low, high = (params.qmin, params.qmax) if params.levels is None else (params.levels[0], params.levels[-1])
        if low < -8 or high > 7:
            held, points = self.graph.constant(integers, f"{name}/weight/quantized"), params.zero_point.astype(np.int8)
            scale, point = self._numbers(f"{name}/weight", params, points)
        else:
            held = self.graph.constant_int4(integers, f"{name}/weight/quantized")
            scale = self.graph.constant(params.scale, f"{name}/weight/scale")
            point = self.graph.constant_int4(params.zero_point, f"{name}/weight/zero_point")
        axis = {} if params.axis is None else {"axis": params.axis}
        return self.graph.add("DequantizeLinear", [held, scale, point], f"{name}/weight", **axis)

    def _bias(self, node: Node, bias: np.ndarray, params: QuantParams) -> str:
        s_x, s_w = self.plan.activations[node.inputs[0]].scale, np.broadcast_to(along(params.scale, 1, 0), bias.shape)
        integers = self.graph.constant(quantize_bias(bias, s_x, s_w), f"{node.name}/bias/quantized")
        scale = self.graph.constant(s_x * s_w, f"{node.name}/bias/scale")
        point = self.graph.constant(np.zeros(bias.shape, np.int32), f"{node.name}/bias/zero_point")
        return self.graph.add("DequantizeLinear", [integers, scale, point], f"{node.name}/bias", axis=0)
