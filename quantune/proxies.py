"""What calibration alone says about a configuration: cheap predictions of the quantization noise, before anything is
compiled.

For every quantized tensor the noise-to-signal ratio follows from a histogram: rounding adds scale²/12 inside the range,
clipping what lies outside. The histogram is that of the largest calibration set, whatever the configuration calibrates
with, so that a range seen on one image is judged by all of them. Ratios of independent noise sources add up along a
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlir_passes.network import Network
from quantune import space
from quantune.config import QuantConfig
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.histogram import Histogram
from quantune.plan import QuantizationPlan

FEATURES = ("predicted_db", "activation_mean_db", "activation_min_db", "weight_mean_db", "weight_min_db")
ARCHITECTURE = ("log_macs", "log_parameters", "layers", "depthwise", "pointwise", "adds", "concats")
_FLOOR = 1e-12


class Proxies:
    """Noise predictions for the configurations of one model; each is computed once.

    plan: config -> plan. reference: tensor name -> histogram, of the largest calibration set.
    """

    def __init__(
        self,
        network: Network,
        plan: Callable[[QuantConfig], QuantizationPlan | None],
        reference: Mapping[str, Histogram],
    ) -> None:
        self._network, self._plan, self._reference = network, plan, reference
        self._architecture = tuple(architecture(network).values())
        self._known: dict[QuantConfig, tuple[float, ...]] = {}
        self._weights: dict[tuple[str, bytes], float] = {}

    def features(self, params: Mapping[str, Any]) -> tuple[float, ...]:
        """FEATURES and ARCHITECTURE of a trial's parameters."""
        return (*self._noise(space.from_params(params)), *self._architecture)

    def prior(self, params: Mapping[str, Any]) -> float:
        """The predicted signal-to-noise ratio of the output in dB; larger is better."""
        return self._noise(space.from_params(params))[0]

    def _noise(self, config: QuantConfig) -> tuple[float, ...]:
        if config not in self._known:
            plan = self._plan(config)
            assert plan is not None
            activations = [
                activation_noise(self._reference[name], params)
                for name, params in plan.activations.items()
                if name in self._reference
            ]
            weights = [
                self._weight_noise(name, node.weight, plan.weights[name])
                for name, node in self._network.by_name.items()
                if name in plan.weights and node.weight is not None
            ]
            total = _decibel(sum(activations) + sum(weights))
            self._known[config] = (total, *_summary(activations), *_summary(weights))
        return self._known[config]

    def _weight_noise(self, name: str, weight: np.ndarray, params: QuantParams) -> float:
        key = (name, params.scale.tobytes())
        if key not in self._weights:
            error = weight - affine.dequantize(affine.quantize(weight, params), params)
            self._weights[key] = float(np.square(error).sum()) / max(float(np.square(weight).sum()), _FLOOR)
        return self._weights[key]


def activation_noise(histogram: Histogram, params: QuantParams) -> float:
    """Noise power over signal power of a tensor with this histogram under these per-tensor parameters."""
    centers, counts, scale = histogram.centers, histogram.counts, float(params.scale)
    low = (params.qmin - float(params.zero_point)) * scale
    high = (params.qmax - float(params.zero_point)) * scale
    clipped = centers - np.clip(centers, low, high)
    inside = (centers >= low) & (centers <= high)
    noise = float(np.dot(counts, np.where(inside, scale * scale / 12, np.square(clipped))))
    return noise / max(float(np.dot(counts, np.square(centers))), _FLOOR)


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


def _summary(ratios: list[float]) -> tuple[float, float]:
    if not ratios:
        return (_decibel(0.0), _decibel(0.0))
    decibels = [_decibel(ratio) for ratio in ratios]
    return (float(np.mean(decibels)), min(decibels))


def _decibel(ratio: float) -> float:
    return -10 * math.log10(max(ratio, _FLOOR))
