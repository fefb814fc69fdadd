"""Screening: which configurations answer most like the f32 network, told by a few calibration images without labels.

The divergence of a configuration is the mean over images of KL(p || q) = sum_k p_k (log p_k - log q_k), in nats, where
p are the class probabilities (softmax of the outputs) of the f32 artifact and q those of the quantized one. A top-1
accuracy counts the few answers that change; the divergence weighs how far every answer moved, so some hundred images
order configurations about as well as the labels of thousands do. It takes compiled programs, which noise predicted from
statistics (quantune.quantization.predictions) does not: the prediction chooses which configurations are worth
screening.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from quantune.cache import content_key
from quantune.data.splits import Split
from quantune.errors import EnvironmentFailure, QuantuneError, UsageError
from quantune.quantization import space
from quantune.quantization.config import QuantConfig
from quantune.tuning.evaluator import Evaluator
from quantune.versions import versions

logger = logging.getLogger(__name__)

IMAGES = 256
WORTH_FROM = 16 * IMAGES
"""Evaluation images from which on a trial is so much longer than a screening that a search begins with one."""
CONFIGURATIONS = 24
"""How many configurations a search screens: on tables of six networks the best by divergence among so many of the least
predicted noise was the best of all 96, or within a tenth of a point of it."""
SCREENED = "screened_db"
"""Among the features of a configuration, what `Screening.merit` says of one that was screened."""
_LEAST = 1e-9
_F32 = QuantConfig(precision="f32")


class Screening:
    """Orders the configurations of one model by divergence, as far as they were screened, then by prediction.

    evaluator: runs the artifacts, on images of its builder's calibration set. predicted: a merit in dB of a trial's
    parameters, known without running anything.
    """

    def __init__(self, evaluator: Evaluator, predicted: Callable[[Mapping[str, Any]], float]) -> None:
        self._evaluator, self._builder, self._predicted = evaluator, evaluator.builder, predicted
        self._divergence: dict[str, float] = {}
        self._worst = self._least_predicted = math.inf

    def candidates(self, configs: Sequence[QuantConfig], count: int = CONFIGURATIONS) -> list[QuantConfig]:
        """The ``count`` configurations of the best prediction, best first, one of those that compute the same."""
        chosen: dict[str, QuantConfig] = {}
        for config in sorted(configs, key=lambda c: -self._predicted(space.to_params(c))):
            chosen.setdefault(self._builder.identity(config), config)
        return list(chosen.values())[:count]

    def run(self, configs: Sequence[QuantConfig], on_done: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Screen configurations; one that cannot be built or run is left to its trial, which tells why."""
        for done, config in enumerate(configs, 1):
            try:
                found = self._measure(config, configs[done : done + 1])
            except (UsageError, EnvironmentFailure):
                raise
            except QuantuneError as error:
                logger.debug("screening %s: %s", config, error)
            else:
                self._divergence[self._builder.identity(config)] = found
                self._worst = min(self._worst, _decibel(found))
                self._least_predicted = min(self._least_predicted, self._predicted(space.to_params(config)))
            on_done(done, len(configs))

    def _measure(self, config: QuantConfig, ahead: Sequence[QuantConfig]) -> float:
        builder, cache = self._builder, self._builder.cache
        told = (builder.model.fingerprint, str(builder.target), self._images.fingerprint, repr(versions()))
        key = content_key("divergence", builder.identity(config), *told)
        known = cache.read(key, ".txt", _finite)
        if known is not None:
            return known
        builder.prepare(ahead)  # its numbers are made while this one runs
        found = divergence(self._reference, self._evaluator.answers(config, self._images))
        cache.put(key, repr(found).encode(), ".txt")
        return found

    @cached_property
    def _images(self) -> Split:
        return self._builder.calibration.first(IMAGES)

    @cached_property
    def _reference(self) -> NDArray[np.floating]:
        return self._evaluator.answers(_F32, self._images)

    def merit(self, params: Mapping[str, Any]) -> float:
        """-10·log10 of the divergence of a trial's parameters; larger is better.

        One that was not screened stands below all that were, by as many dB as its prediction stands below theirs.
        """
        if not self._divergence:
            return self._predicted(params)
        found = self._divergence.get(self._builder.identity(space.from_params(params)))
        if found is not None:
            return _decibel(found)
        return self._worst - max(self._least_predicted - self._predicted(params), 0.0)


def divergence(reference: NDArray[np.floating], outputs: NDArray[np.floating]) -> float:
    """The mean divergence in nats of ``outputs`` from ``reference``, both [n, classes] before the softmax."""
    p, q = (log_softmax(values.astype(np.float64), axis=1) for values in (reference, outputs))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _finite(data: bytes) -> float:
    value = float(data)
    if not math.isfinite(value):
        raise ValueError(f"a divergence of {value}")
    return value


def _decibel(found: float) -> float:
    return -10 * math.log10(max(found, _LEAST))
