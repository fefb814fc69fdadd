"""From a configuration to the numbers of one calibrated model: its plan, refined where the configuration says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from quantune.cache import ArtifactCache, content_key
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import KnownWeights, QuantizationPlan, Ranges, make_plan
from quantune.tuning.calibrating import Calibration
from quantune.tuning.recent import Recent
from quantune.tuning.refining import Refining

_SCALES, _REFINED = 128, 4
"""Plans that are kept; refined ones may hold all weights of a network."""


class Plans:
    """The plans of one calibrated model. on_refining hears (done, in all) of a refinement's images or layers."""

    def __init__(
        self,
        calibration: Calibration,
        cache: ArtifactCache,
        on_refining: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.calibration = calibration
        self._cache, self._on_refining = cache, on_refining
        self._scales: Recent[QuantConfig, QuantizationPlan] = Recent(_SCALES)
        self._refined: Recent[QuantConfig, QuantizationPlan] = Recent(_REFINED)
        self._identities: dict[QuantConfig, str] = {}
        self._ranges: dict[int, Ranges] = {}
        self._weights: KnownWeights = {}

    def scales(self, config: QuantConfig) -> QuantizationPlan | None:
        """The numbers of a configuration before any refinement; None for a float one."""
        if config.is_float:
            return None
        config = config.unrefined
        return self._scales.get(config, lambda: self._plan(config))

    def plan(self, config: QuantConfig) -> QuantizationPlan | None:
        """The numbers of a configuration, what refines them included; None for a float one."""
        scales = self.scales(config)
        if scales is None or not config.refinement:
            return scales
        return self._refined.get(config, lambda: self._refining.refined(scales, config))

    def identity(self, config: QuantConfig) -> str:
        """A hash that is equal for configurations of one program and one set of numbers; nothing is built for it."""
        if config not in self._identities:
            plan, refined = self.scales(config), filter(None, (config.refinement,))
            self._identities[config] = content_key(config.precision, "" if plan is None else plan.digest(), *refined)
        return self._identities[config]

    def _plan(self, config: QuantConfig) -> QuantizationPlan:
        statistics = self.calibration.statistics
        seen = min(config.calib, statistics.available)  # more than there are images give the same statistics
        return make_plan(
            self.calibration.network, statistics.at(config.calib), config, self._ranges.setdefault(seen, {}),
            self._weights, statistics.power,
        )  # fmt: skip

    @cached_property
    def _refining(self) -> Refining:
        return Refining(self.calibration, self._cache, self._on_refining)
