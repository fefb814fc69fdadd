"""What guides a search: a screening where it pays, and past studies with the features that are known here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from quantune.quantization.config import QuantConfig
from quantune.quantization.predictions import ARCHITECTURE, FEATURES, Proxies
from quantune.quantization.space import distributions, to_params
from quantune.tuning import guidance
from quantune.tuning.evaluator import Evaluator

PARAMS = to_params(QuantConfig())
WIDTH = len(FEATURES) + len(ARCHITECTURE)


class _Proxies:
    def features(self, params: Any) -> tuple[float, ...]:
        return (0.0,) * WIDTH

    def prior(self, params: Any) -> float:
        return 1.0


class _Screening:
    """Takes the place of the real one; says 7 dB of everything."""

    def __init__(self, evaluator: Any, predicted: Any) -> None:
        assert predicted(PARAMS) == 1.0

    def candidates(self, configs: list[QuantConfig]) -> list[QuantConfig]:
        return configs[: len(configs) // 19]

    def run(self, configs: list[QuantConfig], on_done: Any) -> None:
        on_done(len(configs), len(configs))

    def merit(self, params: Any) -> float:
        return 7.0


def _guide(
    images: int, model: str = "mine", space: str = "paper", **options: bool
) -> tuple[guidance.Guidance, list[Any]]:
    heard: list[Any] = []
    builder = SimpleNamespace(model=SimpleNamespace(name=model, fingerprint="0" * 64))
    evaluator = cast(Evaluator, SimpleNamespace(split=range(images), builder=builder))
    given = {"screen": True, "transfer": True, **options}
    proxies = cast(Proxies, _Proxies())
    hooks = heard.append, lambda done, of: heard.append((done, of))
    return guidance.guide(evaluator, proxies, distributions(space=space), *hooks, **given), heard


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "Screening", _Screening)


def test_many_evaluation_images_are_worth_a_screening() -> None:
    found, heard = _guide(guidance.WORTH_FROM)
    assert heard == ["screening 5 configurations", (5, 5)]
    assert found.prior(PARAMS) == 7.0
    assert found.features(PARAMS) == (*(0.0,) * WIDTH, 7.0)
    assert {len(row) for study in found.past for row in study.features} == {WIDTH + 1}
    assert len(found.past) == 6


@pytest.mark.parametrize(("images", "screen"), [(guidance.WORTH_FROM - 1, True), (guidance.WORTH_FROM, False)])
def test_without_a_screening_the_prediction_leads(images: int, screen: bool) -> None:
    found, heard = _guide(images, screen=screen)
    assert heard == []
    assert found.prior(PARAMS) == 1.0
    assert {len(found.features(PARAMS))} == {WIDTH}
    assert {len(row) for study in found.past for row in study.features} == {WIDTH}


def test_in_the_wide_space_all_of_it_is_screened() -> None:
    assert _guide(guidance.WORTH_FROM, space="wide")[1][0] == f"screening {2160 // 19} configurations"


def test_past_studies_can_be_left_out_and_never_are_of_the_own_model() -> None:
    assert _guide(1, transfer=False)[0].past == ()
    names = {study.model for study in _guide(1, model="resnet18_shapes")[0].past}
    assert len(names) == 5
    assert "resnet18_shapes" not in names
