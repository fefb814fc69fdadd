"""A refined plan, found once for a model, its images and its scales, and kept in the cache by content."""

from __future__ import annotations

import importlib.metadata
import io
import threading
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantune.cache import ArtifactCache, content_key
from quantune.data.splits import Split
from quantune.quantization import constants
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan
from quantune.refine import bias, rounding
from quantune.refine.base import Hook, Means, Refiner, Task, images_for, images_for_rounding
from quantune.tuning.calibrating import Calibration

BIASES: dict[str, Refiner] = {"fast": bias.fast, "sequential": bias.sequential}
"""By the configuration's ``bias``."""

ROUNDINGS: dict[str, Refiner] = {"adaround": rounding.adaround, "brecq": rounding.brecq}
"""By the configuration's ``rounding``; they correct biases on their way where these are to be sequential."""

_VERSION = "1"
"""Of what a refiner computes: entries of the cache with another one are not taken."""


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a refiner has finished, in the cache."""

    cache: ArtifactCache
    plan: QuantizationPlan
    content: tuple[str | bytes, ...]

    def read(self, part: str) -> dict[str, Constant] | None:
        """What was kept of a part of the network."""

        def parse(data: bytes) -> dict[str, Constant]:
            found = constants.from_bytes(data)
            _checked(self.plan, found)
            return found

        return self.cache.read(self._key(part), ".npz", parse)

    def write(self, part: str, found: Mapping[str, Constant]) -> None:
        """Keep it."""
        self.cache.put(self._key(part), constants.to_bytes(found), ".npz")

    def _key(self, part: str) -> str:
        return content_key("part of constants", part, *self.content)


class Refining:
    """Refines plans of one model.

    on_layer hears how far a refinement is.
    """

    def __init__(self, subject: Calibration, cache: ArtifactCache, on_layer: Hook) -> None:
        self._subject, self._cache, self._on_layer = subject, cache, on_layer
        self._versions = [importlib.metadata.version(name) for name in ("torch", "iree-base-compiler")]
        self._observing = threading.Lock()  # plans are refined in the background, beside each other

    def refined(self, plan: QuantizationPlan, config: QuantConfig) -> QuantizationPlan:
        """The plan with the constants that the refiners of a configuration find."""
        rounds = config.rounding != "nearest"
        images = images_for_rounding(self._subject.network) if rounds else images_for(self._subject.network)
        seen = self._subject.first(images)
        content = self._content(seen)
        key = content_key("constants", config.refinement, plan.digest(), *content)
        found = self._cache.read(key, ".npz", lambda data: _checked(plan, constants.from_bytes(data)))
        if found is None:
            parts = _Parts(self._cache, plan, (config.refinement, plan.digest(), *content))
            found = self._rounded(plan, config, len(seen), parts) if rounds else plan
            if config.bias == "fast" or not rounds:
                found = self._corrected(found, config.bias)
            self._cache.put(key, constants.to_bytes(found.constants), ".npz")
        return found

    def _content(self, seen: Split) -> tuple[str | bytes, ...]:
        return (_VERSION, *self._versions, self._subject.model.bytecode, seen.fingerprint)

    def _rounded(self, plan: QuantizationPlan, config: QuantConfig, count: int, parts: _Parts) -> QuantizationPlan:
        task = Task(self._subject, plan, count, {}, self._on_layer, config.bias, parts)
        return _checked(plan, ROUNDINGS[config.rounding](task))

    def _corrected(self, plan: QuantizationPlan, how: str) -> QuantizationPlan:
        """With biases for the weights that the plan has."""
        seen = self._subject.first(images_for(self._subject.network))
        found = BIASES[how](Task(self._subject, plan, len(seen), self._means(seen), self._on_layer))
        return _checked(plan, found)

    def _means(self, seen: Split) -> Means:
        key = content_key("layer means", *self._content(seen))
        with self._observing:
            known = self._cache.read(key, ".npz", self._parse)
            if known is None:
                known = bias.layer_means(self._subject, len(seen), self._on_layer)
                buffer = io.BytesIO()
                np.savez(buffer, **known)  # type: ignore[arg-type]
                self._cache.put(key, buffer.getvalue(), ".npz")
        return known

    def _parse(self, data: bytes) -> dict[str, NDArray[np.float64]]:
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                found = dict(archive)
        except (OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"no means: {error}") from error
        bias.check_means(found, self._subject.network)
        return found


def _checked(plan: QuantizationPlan, found: Mapping[str, Constant]) -> QuantizationPlan:
    return replace(plan, constants=constants.merged(plan.constants, found))
