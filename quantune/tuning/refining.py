"""A refined plan, found once for a model, its images and its scales, and kept in the cache by content."""

from __future__ import annotations

import importlib.metadata
import io
import threading
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantune.cache import ArtifactCache, content_key
from quantune.quantization import constants
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan
from quantune.refine import bias
from quantune.refine.base import Hook, Images, Refiner, Task

REFINERS: dict[str, Refiner] = {"fast": bias.fast, "sequential": bias.sequential}
"""By the configuration's ``bias``."""

_VERSION = "1"
"""Of what a refiner computes: entries of the cache with another one are not taken."""


class Refining:
    """Refines plans of one model.

    content: what decides the f32 network's answers (model, images). count: of the images to use. on_layer hears how far
    a refinement is.
    """

    def __init__(
        self, subject: Images, cache: ArtifactCache, content: tuple[str | bytes, ...], count: int, on_layer: Hook
    ) -> None:
        self._subject, self._cache, self._count, self._on_layer = subject, cache, count, on_layer
        versions = (importlib.metadata.version(name) for name in ("torch", "iree-base-compiler"))
        self._content = (_VERSION, *versions, *content)
        self._observing = threading.Lock()  # plans are refined in the background, beside each other

    def refined(self, plan: QuantizationPlan, how: str) -> QuantizationPlan:
        """The plan with the constants that a refiner of ``REFINERS`` finds."""
        key = content_key("constants", how, plan.digest(), *self._content)
        found = self._cache.read(key, ".npz", lambda data: _checked(plan, constants.from_bytes(data)))
        if found is None:
            found = _checked(plan, REFINERS[how](self._task(plan)))
            self._cache.put(key, constants.to_bytes(found.constants), ".npz")
        return found

    def _task(self, plan: QuantizationPlan) -> Task:
        return Task(self._subject, plan, self._count, self._means(), self._on_layer)

    def _means(self) -> Mapping[str, NDArray[np.float64]]:
        key = content_key("layer means", *self._content)
        with self._observing:
            known = self._cache.read(key, ".npz", self._parse)
            if known is None:
                known = bias.layer_means(self._subject, self._count, self._on_layer)
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
