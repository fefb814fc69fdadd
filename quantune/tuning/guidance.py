"""What guides a search before its first trial: predictions, a screening where it pays, and past studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from quantune.quantization.predictions import ARCHITECTURE, FEATURES, Proxies
from quantune.quantization.space import from_params
from quantune.search.features import FeatureHook, enumerate_space
from quantune.search.sampler import Prior
from quantune.search.transfer import PastStudy, shipped, usable
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.screening import SCREENED, WORTH_FROM, Screening


@dataclass(frozen=True)
class Guidance:
    """What the sampler hears. features: numbers by parameters. prior: a merit by parameters. past: of other models."""

    features: FeatureHook
    prior: Prior
    past: tuple[PastStudy, ...]


def guide(
    evaluator: Evaluator,
    proxies: Proxies,
    searched: Mapping[str, BaseDistribution],
    on_stage: Callable[[str], None],
    on_screening: Callable[[int, int], None],
    *,
    screen: bool,
    transfer: bool,
) -> Guidance:
    """Gather what is known of the configurations of a space.

    screen: run some of them on calibration images first, if the evaluation images are so many that it pays. transfer:
    whether past studies are used.
    """
    names: Sequence[str] = (*FEATURES, *ARCHITECTURE)
    features, prior = proxies.features, proxies.prior
    if screen and len(evaluator.split) >= WORTH_FROM:
        screening = Screening(evaluator, proxies.prior)
        candidates = screening.candidates([from_params(p) for p in enumerate_space(searched) or ()])
        on_stage(f"screening {len(candidates)} configurations")
        screening.run(candidates, on_screening)

        def with_merit(params: Mapping[str, Any]) -> tuple[float, ...]:
            return (*proxies.features(params), screening.merit(params))

        names, features, prior = (*names, SCREENED), with_merit, screening.merit
    model = evaluator.builder.model
    past = usable(shipped(), model=model.name, fingerprint=model.fingerprint, feature_names=names) if transfer else ()
    return Guidance(features, prior, past)
