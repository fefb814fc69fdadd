"""Configuration + statistics -> a quantization plan: which tensors are quantized, and with which numbers.

Two questions are answered for each network. *Where are the integers?* A layer runs in integers when the configuration
says so; what stands between integer layers (adds, pools, concatenations, reshapes) then runs in integers too, and a
tensor is quantized exactly when one of its readers runs in integers. *Which tensors must agree?* Operations that only
select or move values hand their integers on, so their inputs and result form one group with one scale and zero point;
the group's range is that of all tensors that enter it. An input of a concatenation that other operations compute with
keeps its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import FLOAT, INPUT, Network, Node
from quantune.errors import UsageError, hint
from quantune.numerics.affine import QuantParams
from quantune.numerics.clipping import CLIPS, ClipRule
from quantune.numerics.formats.base import Format
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import SCHEMES, Scheme, Weights, is_degenerate
from quantune.numerics.weight_ranges import importance
from quantune.quantization import constants
from quantune.quantization.bits import UNIFORM_8, BitWidths
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant, Constants
from quantune.quantization.precisions import PRECISIONS, QUANTIZED


@dataclass(frozen=True, eq=False)
class QuantizationPlan:
    """The quantization of each tensor of a network.

    activations: tensor name -> per-tensor parameters, for quantized tensors only. weights: layer name -> parameters,
    for integer layers only. notes: what the user should know, such as a tensor that was constant during calibration.
    shifts: whether layers requantize by shifts: every scale is a power of two.
    constants: weights and biases in place of the network's own, for integer layers only; a weight lies on its grid. A
    weight whose parameters have levels is always there, rounded: passes know ranges of integers alone.
    """

    activations: Mapping[str, QuantParams]
    weights: Mapping[str, QuantParams]
    notes: tuple[str, ...] = ()
    shifts: bool = False
    constants: Constants = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, constant in self.constants.items():
            if name not in self.weights:
                raise ValueError(f"constants: '{name}' is no integer layer of the plan")
            constants.check(name, constant, self.weights[name])

    @property
    def is_narrow(self) -> bool:
        """Whether some weights have fewer than eight bits, so that an artifact stores them packed."""
        return any(bits_of(params) < 8 for params in self.weights.values())

    def digest(self) -> str:
        """A hash of all numbers: plans of one network with equal digests quantize alike."""
        digest = hashlib.sha256(b"shifts;" if self.shifts else b"")
        for part in (self.activations, self.weights):
            for name, params in sorted(part.items()):
                digest.update(f"{name} {params.qmin} {params.qmax} {params.axis} {params.scale.shape} ".encode())
                digest.update(params.scale.tobytes() + params.zero_point.tobytes())
                digest.update(b"" if params.levels is None else b"levels " + params.levels.tobytes())
            digest.update(b";")
        if self.constants:
            digest.update(constants.digest(self.constants).encode())
        return digest.hexdigest()

    def to_json(self) -> str:
        """The form that ``quantune-annotate`` reads."""
        both = {"activations": self.activations, "weights": self.weights}
        form: dict[str, Any] = {k: {n: _params_to_json(p) for n, p in v.items()} for k, v in both.items()}
        return json.dumps({**form, "requantize": "shift"} if self.shifts else form, indent=0)


@dataclass(frozen=True)
class Layout:
    """Where a network is quantized, before any number is chosen.

    integer: names of the nodes that run in integers. groups: quantized tensor -> representative of those it agrees
    with. sources: representative -> tensors whose statistics make the group's range.
    """

    integer: frozenset[str]
    groups: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]]


def integer_layers(network: Network, precision: str, bits: BitWidths = UNIFORM_8) -> frozenset[str]:
    """The layers that are asked to run in integers; mixed leaves the first and the last in f32, bits any others."""
    names = [node.name for node in network.layers]
    asked = PRECISIONS[precision].integers
    return frozenset(name for name in names[asked or slice(0)] if not bits.of(name).is_float)


def lay_out(network: Network, layers: frozenset[str]) -> Layout:
    """Decide which nodes run in integers, given the layers that do, and which tensors share their parameters."""
    integer = _integer_nodes(network, layers)
    absorbed = {node.name for node in network.nodes if (c := network.fused_clamp(node)) and c.name in integer}
    quantized = [
        node.name
        for node in network.nodes
        if node.name not in absorbed and any(reader.name in integer for reader in network.consumers[node.name])
    ]
    groups = {name: name for name in quantized}

    def root(name: str) -> str:
        while groups[name] != name:
            name = groups[name]
        return name

    hands_on = {n.name for n in network.nodes if n.name in integer and n.traits.hands_on and not _is_fused(network, n)}
    for node in network.nodes:
        if node.name in hands_on and node.name in groups:
            for name in node.inputs:
                if network.shares(node, name):
                    groups[root(name)] = root(node.name)
    representative = {name: root(name) for name in quantized}
    sources: dict[str, tuple[str, ...]] = {}
    for name in quantized:
        node = network.by_name[name]
        if name not in hands_on or not all(network.shares(node, source) for source in node.inputs):
            sources[representative[name]] = (*sources.get(representative[name], ()), name)
    return Layout(integer, representative, sources)


def observed(network: Network) -> tuple[str, ...]:
    """The tensors whose statistics some configuration may ask for, and what the layers read."""
    names = {node.inputs[0]: None for node in network.layers}
    for precision in QUANTIZED:
        for group in lay_out(network, integer_layers(network, precision)).sources.values():
            names.update(dict.fromkeys(group))
    return tuple(names)


Ranges = MutableMapping[tuple[tuple[str, ...], ClipRule, Scheme, int], tuple[float, float]]
Powers = Mapping[str, NDArray[np.float64]]
KnownWeights = MutableMapping[tuple[str, str, Weights, Format, str], QuantParams]


def bits_of(params: QuantParams) -> int:
    """How many bits the integers of a tensor need."""
    if params.levels is not None:
        return max((len(params.levels) - 1).bit_length(), 1)
    return (params.qmax - params.qmin).bit_length()


def activation_bits(network: Network, layout: Layout, bits: BitWidths) -> dict[str, int]:
    """Representative of a group -> bits: the widest that one of the integer layers reading the group asks for.

    A group that no layer reads has eight. Raises UsageError for bit widths of a layer that the network lacks.
    """
    names = [node.name for node in network.layers]
    for name, _ in bits.layers:
        if name not in names:
            remedy = hint(name, names) or f"; its layers have names such as {', '.join(names[:3])}"
            raise UsageError(f"bits: the model has no layer '{name}'{remedy}")
    wanted: dict[str, int] = {}
    for node in network.layers:
        if node.name in layout.integer:
            group = layout.groups[node.inputs[0]]
            wanted[group] = max(wanted.get(group, 0), bits.of(node.name).activations)
    return {group: wanted.get(group, 8) for group in layout.sources}


def make_plan(
    network: Network,
    statistics: Mapping[str, Histogram],
    config: QuantConfig,
    ranges: Ranges | None = None,
    known_weights: KnownWeights | None = None,
    power: Powers | None = None,
) -> QuantizationPlan:
    """Choose scales and zero points.

    statistics: tensor name -> histogram at the configuration's calibration size. ranges: remembers what clipping chose
    for these statistics, for the next configuration. known_weights: the same for weights, whatever the statistics.
    power: the mean square of each channel of what the layers read, for ``weight_clip=power`` alone.
    """
    ranges = {} if ranges is None else ranges
    known_weights = {} if known_weights is None else known_weights
    scheme, rule = SCHEMES[config.scheme], CLIPS[config.clip]
    layers = integer_layers(network, config.precision, config.bits)
    layout = lay_out(network, layers)
    widths = activation_bits(network, layout, config.bits)
    if not layers and any(config.bits.in_float):
        raise UsageError(f"bits={config.bits}: no layer of the model is quantized; that is precision=f32")
    notes: list[str] = []
    chosen: dict[str, QuantParams] = {}
    for representative, names in layout.sources.items():
        bits = widths[representative]
        suited = scheme.suited(one_sided=all(statistics[name].minimum >= 0 for name in names))
        key = (names, rule, suited, bits)
        if key not in ranges:
            ranges[key] = rule.range(merged(statistics, names), suited, bits)
        lo, hi = ranges[key]
        if is_degenerate(lo, hi):
            notes.append(f"{names[0]}: was 0 on every calibration image; scale 1.0 is used")
        chosen[representative] = scheme.params(lo, hi, bits)
    activations = {name: chosen[representative] for name, representative in layout.groups.items()}
    weights: dict[str, QuantParams] = {}
    on_grid: dict[str, Constant] = {}
    for node in network.layers:
        if node.name not in layers:
            continue
        assert node.bias is not None
        key = _weight_key(node, config)
        if key not in known_weights:
            known_weights[key] = _weight_params(node, config, power or {})
        scale = float(activations[node.inputs[0]].scale)
        params = weights[node.name] = scheme.weights.fit_to_bias(known_weights[key], node.bias, scale)
        if params.levels is not None:
            on_grid[node.name] = constants.rounded(node, params)
    return QuantizationPlan(activations, weights, tuple(notes), shifts=scheme.power2, constants=on_grid)


def _weight_key(node: Node, config: QuantConfig) -> tuple[str, str, Weights, Format, str]:
    """What the scales of a layer's weight depend on, its bias apart."""
    form = config.bits.of(node.name).form
    return node.name, config.granularity, SCHEMES[config.scheme].weights, form, config.weight_clip


def _weight_params(node: Node, config: QuantConfig, power: Powers) -> QuantParams:
    assert node.weight is not None
    costs = importance(node, power[node.inputs[0]]) if config.weight_clip == "power" else None
    form, how = config.bits.of(node.name).form, SCHEMES[config.scheme].weights
    return form.params(node.weight, config.granularity, how, config.weight_clip, costs)


def merged(statistics: Mapping[str, Histogram], names: Sequence[str]) -> Histogram:
    """The histogram of several tensors together."""
    histogram = statistics[names[0]].copy()
    for name in names[1:]:
        histogram.merge(statistics[name])
    return histogram


def _is_fused(network: Network, node: Node) -> bool:
    return node.traits.clamps and network.fused_clamp(network.by_name[node.inputs[0]]) is node


def _follows_float(network: Network, node: Node, layers: frozenset[str]) -> bool:
    """Whether a clamp or function belongs to what is f32 before it: quantizing in between would only lose precision.

    A clamp does where it alone reads a float operation; a function also of the network's input and of layers in f32;
    a product where one of its factors is a function of what a float operation gives (a reciprocal root, a softmax).
    """
    source = network.by_name[node.inputs[0]]
    if node.traits.function:
        before = _before_functions(network, source)
        is_f32 = before.kind == INPUT or (before.traits.weighted and before.name not in layers)
        return is_f32 or _is_made_in_f32(network, source)
    if node.kind == "product":
        return _is_made_in_f32(network, node)
    return node.traits.clamps and source.kind == FLOAT and len(network.consumers[source.name]) == 1


def _before_functions(network: Network, source: Node) -> Node:
    """What a tensor is a function of, moved or not."""
    while source.traits.function or (source.traits.hands_on and len(source.inputs) == 1):
        source = network.by_name[source.inputs[0]]
    return source


def _is_made_in_f32(network: Network, node: Node) -> bool:
    """Whether a tensor is a function of what a float operation gives, or a product with such a factor."""
    node = _before_functions(network, node)
    if node.kind == "product":
        return any(_is_made_in_f32(network, network.by_name[name]) for name in node.inputs)
    return node.kind == FLOAT


def _is_made_in_integers(network: Network, name: str, layers: frozenset[str]) -> bool:
    """Whether a tensor is made of nothing but results of integer layers: quantizing it is what they do anyway."""
    node = network.by_name[name]
    if node.traits.weighted:
        return name in layers
    return node.traits.integers and all(_is_made_in_integers(network, source, layers) for source in node.inputs)


def _integer_nodes(network: Network, layers: frozenset[str]) -> frozenset[str]:
    integer: set[str] = set()
    final = set(network.outputs)
    for node in reversed(network.nodes):
        if node.traits.view and node.name in final and not network.consumers[node.name]:
            final.update(node.inputs)  # a view of the result is the result
    for node in reversed(network.nodes):
        if node.traits.weighted:
            runs = node.name in layers
        elif not node.traits.integers or _follows_float(network, node, layers):
            runs = False
        else:
            runs = any(reader.name in integer for reader in network.consumers[node.name])
            if node.traits.ends_in_f32 and node.name in final:  # it sums integers exactly, and scales the sum to f32
                runs = runs or _is_made_in_integers(network, node.inputs[0], layers)
        if runs:
            integer.add(node.name)
    return frozenset(integer)


def _params_to_json(params: QuantParams) -> dict[str, Any]:
    return {
        "scale": [float(s) for s in params.scale.reshape(-1)],
        "zero_point": [int(z) for z in params.zero_point.reshape(-1)],
        "min": params.qmin,
        "max": params.qmax,
        "per_channel": params.axis is not None,
    }
