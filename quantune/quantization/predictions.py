"""What calibration alone says about a configuration: cheap predictions of its noise, before anything is compiled.

For each layer, the noise that quantization adds to an output channel o, over the power of that channel:

    r_o = (Σ_c n_c·Σ W[o,c]² + Σ_c P_c·Σ δW[o,c]²) / P_o          n_c = s²/12 + κ·P_c

P is the mean square of a channel on calibration images, s the input's scale, κ the share of the input's power that
clipping removes, W the weight and δW its quantization error; c runs over the input channels that o reads. A channel is
judged by its own power: one of small range drowns in the rounding of a large one, and the weights of the next layer,
which undo its range, amplify that. Independent noise adds up along a network, so the prediction is -10·log10 of the sum
over layers of the mean of min(r_o, 1). κ comes from the histogram of the largest calibration set, whatever the
configuration calibrates with, so that a range seen on one image is judged by all of them.

Of the last sum, the part that the inputs' means M make is the same for every image. Where rounding alone makes δW it is
Σ_c M_c²·Σ δW², which is in the sum. Weights beyond a cut range all lose in size, and what chose refined weights had
their sum in view: there the part is (Σ_c M_c·Σ δW)² itself. Bias correction takes it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlir_passes.network import Network, Node
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import SCHEMES
from quantune.numerics.weight_ranges import importance
from quantune.quantization import space
from quantune.quantization.calibration import Statistics
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan

FEATURES = ("predicted_db", "rounding_db", "clipping_db", "weight_db", "worst_layer_db")
ARCHITECTURE = ("log_macs", "log_parameters", "layers", "depthwise", "pointwise", "adds", "concats")
_FLOOR = 1e-12
_LEFT = {"none": 1.0, "fast": 0.5, "sequential": 0.0}
"""What bias correction leaves of the weights' part of the mean, by ``bias``. For fast it is no derivation: layer by
layer it takes all of it, yet gained about half of what sequential did on three networks (docs/numerics.md)."""


class Proxies:
    """Noise predictions for the configurations of one model; each is computed once. plan: config -> plan."""

    def __init__(
        self, network: Network, plan: Callable[[QuantConfig], QuantizationPlan | None], statistics: Statistics
    ) -> None:
        self._network, self._plan = network, plan
        self._power, self._mean = statistics.power, statistics.mean
        self._reference = statistics.by_size[max(statistics.by_size)]
        self._architecture = tuple(architecture(network).values())
        self._known: dict[QuantConfig, tuple[float, ...]] = {}
        self._weights: dict[tuple[str, QuantParams, Constant | None], tuple[NDArray[np.float64], ...]] = {}
        self._layers: dict[_Layer, tuple[float, float, float, float]] = {}

    def features(self, params: Mapping[str, Any]) -> tuple[float, ...]:
        """FEATURES and ARCHITECTURE of a trial's parameters."""
        return (*self._predict(space.from_params(params)), *self._architecture)

    def prior(self, params: Mapping[str, Any]) -> float:
        """The predicted signal-to-noise ratio of the output in dB; larger is better."""
        return self._predict(space.from_params(params))[0]

    def best(self, configs: Sequence[QuantConfig] = space.LEVEL1) -> QuantConfig:
        """The configuration, integers throughout, that is predicted to have the least noise."""
        return max((c for c in configs if c.precision == "int8"), key=lambda c: self._predict(c)[0])

    def upcoming(
        self,
        first: Sequence[QuantConfig],
        precisions: Sequence[str],
        trials: int | None,
        by_prior: int,
        identity: Callable[[QuantConfig], str],
        configs: Sequence[QuantConfig] = space.LEVEL1,
    ) -> list[QuantConfig]:
        """The first configurations that a search will measure, then one of each further program that it may need.

        The search begins with ``first`` and goes on by the prior, for ``by_prior`` trials or until it ends with
        ``trials``; of configurations of one identity it measures one. Behind these, all ``configs`` with these
        precisions differ from one of the returned in numbers only.
        """
        known = [replace(c, bits=first[0].bits) for c in configs if c.precision in precisions]
        order = [*first, *sorted(known, key=lambda c: -self._predict(c)[0])]
        measured: dict[str, QuantConfig] = {}
        for config in order:
            if len(measured) < by_prior:
                measured.setdefault(identity(config), config)
        soon = list(measured.values())
        if trials is not None and trials <= by_prior:
            return soon[:trials]
        compiled = {_program(config) for config in soon}
        others = {_program(config): config for config in reversed(order) if _program(config) not in compiled}
        return [*soon, *reversed(others.values())]

    def _predict(self, config: QuantConfig) -> tuple[float, ...]:
        if config not in self._known:
            plan = self._plan(config)
            assert plan is not None
            layers = [_Layer.of(node, plan, config) for node in self._network.layers if node.name in plan.weights]
            parts = np.array([self._layer(layer) for layer in layers])
            totals = parts.sum(axis=0) if len(parts) else np.zeros(4)
            worst = float(parts[:, 0].max()) if len(parts) else 0.0
            self._known[config] = (*(_decibel(total) for total in totals), _decibel(worst))
        return self._known[config]

    def _layer(self, layer: _Layer) -> tuple[float, float, float, float]:
        """Mean over output channels of min(r, 1): in all, and of rounding, clipping and weights alone."""
        if layer not in self._layers:  # configurations differ in few of them
            self._layers[layer] = self._noises(self._network.by_name[layer.name], layer)
        return self._layers[layer]

    def _noises(self, node: Node, layer: _Layer) -> tuple[float, float, float, float]:
        assert node.weight is not None
        x = layer.x
        power_in, power_out = self._power[node.inputs[0]], self._output_power(node)
        squares = _taps(np.square(node.weight, dtype=np.float64), node)
        lost = clipped_share(self._reference[node.inputs[0]], x)
        channels = importance(node, power_in)
        rounding = float(x.scale) ** 2 / 12 * squares.sum(axis=1)
        clipping = lost * (squares * channels).sum(axis=1)
        weights = self._weight_noise(node, layer)
        signal = np.maximum(power_out, _FLOOR)
        noises = (rounding + clipping + weights, rounding, clipping, weights)
        total, *parts = (float(np.minimum(noise / signal, 1.0).mean()) for noise in noises)
        return total, parts[0], parts[1], parts[2]

    def _output_power(self, node: Node) -> NDArray[np.float64]:
        """The power of a layer's channels behind its clamp; of an unobserved result, what its weights would give."""
        clamp = self._network.fused_clamp(node)
        observed = self._power.get((clamp or node).name)
        if observed is not None:
            return observed
        assert node.weight is not None
        squares = _taps(np.square(node.weight, dtype=np.float64), node)
        return (squares * importance(node, self._power[node.inputs[0]])).sum(axis=1)

    def _weight_noise(self, node: Node, layer: _Layer) -> NDArray[np.float64]:
        """The power that a weight's error adds to each output channel."""
        sums, squares = self._weight_error(node, layer)
        power = importance(node, self._power[node.inputs[0]])
        if layer.mean_left == 1 and layer.is_rounding:
            return (squares * power).sum(axis=1)
        mean = importance(node, self._mean[node.inputs[0]])
        varies = (squares * np.maximum(power - mean**2, 0.0)).sum(axis=1)
        stays = (squares * mean**2).sum(axis=1) if layer.is_rounding else (sums * mean).sum(axis=1) ** 2
        return varies + layer.mean_left * stays

    def _weight_error(self, node: Node, layer: _Layer) -> tuple[NDArray[np.float64], ...]:
        """Of a weight's error over the kernel's taps: sum and sum of squares, each [o, c]."""
        assert node.weight is not None
        key = (node.name, layer.w, layer.refined)
        if key not in self._weights:
            used = node.weight if layer.refined is None else layer.refined.weight
            assert used is not None
            error = node.weight - affine.dequantize(affine.quantize(used, layer.w), layer.w)
            self._weights[key] = _taps(error.astype(np.float64), node), _taps(np.square(error, dtype=np.float64), node)
        return self._weights[key]


@dataclass(frozen=True)
class _Layer:
    """What decides the predicted noise of a layer.

    x, w: quantization of what it reads and of its weight. refined: what a refiner put into its place. is_rounding:
    whether its weight's error is that of rounding alone. mean_left: the part of that error's mean that bias correction
    leaves.
    """

    name: str
    x: QuantParams
    w: QuantParams
    refined: Constant | None
    is_rounding: bool
    mean_left: float

    @classmethod
    def of(cls, node: Node, plan: QuantizationPlan, config: QuantConfig) -> _Layer:
        constant = plan.constants.get(node.name)
        refined = None if constant is None or constant.weight is None else constant
        is_rounding = refined is None and config.weight_clip == "max"
        x, w = plan.activations[node.inputs[0]], plan.weights[node.name]
        return cls(node.name, x, w, refined, is_rounding, _LEFT[config.bias])


def _program(config: QuantConfig) -> tuple[bool, str, tuple[bool, frozenset[str]]]:
    """What configurations of one program share."""
    return SCHEMES[config.scheme].power2, config.precision, config.bits.in_float


def clipped_share(histogram: Histogram, params: QuantParams) -> float:
    """The share of a tensor's power that lies outside the range of its quantization."""
    centers, counts, scale = histogram.centers, histogram.counts, float(params.scale)
    low = (params.qmin - float(params.zero_point)) * scale
    high = (params.qmax - float(params.zero_point)) * scale
    clipped = np.square(centers - np.clip(centers, low, high))
    return float(np.dot(counts, clipped)) / max(float(np.dot(counts, np.square(centers))), _FLOOR)


def architecture(network: Network) -> dict[str, float]:
    """Numbers that describe a network to a cost model, named as ARCHITECTURE."""
    layers = network.layers
    parameters = sum(node.weight.size for node in layers if node.weight is not None)
    kinds = [node.kind for node in network.nodes]
    values = (
        math.log10(max(sum(node.macs for node in layers), 1)),
        math.log10(max(parameters, 1)),
        float(len(layers)),
        float(sum(node.groups > 1 for node in layers)),
        float(sum(node.kind == "conv" and node.kernel == (1, 1) for node in layers)),
        float(kinds.count("add")),
        float(kinds.count("concat")),
    )
    return dict(zip(ARCHITECTURE, values, strict=True))


def _taps(values: NDArray[np.float64], node: Node) -> NDArray[np.float64]:
    """Sum over the kernel's taps: [o, c] for the c input channels of o's group."""
    return values if values.ndim == 2 else values.sum(axis=(2, 3))


def _decibel(ratio: float) -> float:
    return -10 * math.log10(max(float(ratio), _FLOOR))
