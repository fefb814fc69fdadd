"""Screening orders configurations by how far their answers moved, and those it did not see by prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantune.cache import ArtifactCache
from quantune.errors import EnvironmentFailure, RunFailed
from quantune.quantization.config import QuantConfig
from quantune.quantization.space import LEVEL1, to_params
from quantune.tuning.evaluator import Evaluator
from quantune.tuning.screening import IMAGES, Screening, divergence

RNG = np.random.default_rng(0)
F32 = RNG.normal(0, 3, (IMAGES, 10))


def _identity(config: QuantConfig) -> str:
    return str(replace(config, calib=1))


class _Builder:
    """Configurations that differ in calib alone compute the same."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.target = ArtifactCache(folder), "cpu"
        self.model = SimpleNamespace(fingerprint="f" * 64)
        self.prepared: list[QuantConfig] = []
        self.calibration = SimpleNamespace(first=lambda count: SimpleNamespace(fingerprint=f"{count} images"))

    def identity(self, config: QuantConfig) -> str:
        return _identity(config)

    def prepare(self, configs: Any) -> None:
        self.prepared += configs


class _Evaluator:
    """Answers with the f32 network's outputs and noise of a configuration's own deviation."""

    def __init__(self, noise: dict[str, float | Exception], folder: Path) -> None:
        self.builder, self._noise = _Builder(folder), noise
        self.asked: list[QuantConfig] = []

    def answers(self, config: QuantConfig, images: SimpleNamespace) -> np.ndarray:
        assert images.fingerprint == f"{IMAGES} images"
        self.asked.append(config)
        noise = 0.0 if config.is_float else self._noise[config.scheme]
        if isinstance(noise, Exception):
            raise noise
        return F32 + noise * np.random.default_rng(1).normal(size=F32.shape)


PREDICTED = {"asymmetric": 9.0, "symmetric": 8.0, "symmetric_uint8": 5.0, "symmetric_power2": 2.0}
CONFIGS = [QuantConfig(scheme=scheme) for scheme in PREDICTED]

Make = Callable[[dict[str, float | Exception]], tuple[Screening, _Evaluator]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A screening of which the noise of each scheme is given."""

    def made(noise: dict[str, float | Exception]) -> tuple[Screening, _Evaluator]:
        evaluator = _Evaluator(noise, tmp_path)
        return Screening(cast(Evaluator, evaluator), lambda params: PREDICTED[params["scheme"]]), evaluator

    return made


def test_candidates_are_the_best_predicted_and_compute_something_else_each(make: Make) -> None:
    screening, _ = make({})
    found = screening.candidates(LEVEL1, 9)
    assert len({_identity(c) for c in found}) == 9
    assert [c.scheme for c in found] == ["asymmetric"] * 8 + ["symmetric"]


def test_the_divergence_overrules_the_prediction(make: Make) -> None:
    screening, evaluator = make({"asymmetric": 1.0, "symmetric": 0.1})
    params = [to_params(c) for c in CONFIGS]
    assert [screening.merit(p) for p in params] == list(PREDICTED.values())
    seen: list[tuple[int, int]] = []
    screening.run(CONFIGS[:2], lambda done, of: seen.append((done, of)))
    merits = [screening.merit(p) for p in params]
    assert merits[1] > merits[0] > merits[2] > merits[3]
    assert merits[0] - merits[2] == pytest.approx(3.0)  # as the predictions do: 8 - 5
    assert merits[2] - merits[3] == pytest.approx(3.0)
    assert screening.merit({**params[0], "calib": 10000}) == merits[0]
    assert seen == [(1, 2), (2, 2)]
    assert [c.precision for c in evaluator.asked] == ["f32", "int8", "int8"]
    assert evaluator.builder.prepared == [CONFIGS[1]]


def test_what_cannot_be_run_is_left_to_its_trial(make: Make) -> None:
    screening, _ = make({"asymmetric": RunFailed("no"), "symmetric": 0.1, "symmetric_uint8": 1.0})
    screening.run(CONFIGS[:3])
    failed, good, poor = (screening.merit(to_params(c)) for c in CONFIGS[:3])
    assert good > poor == failed
    with pytest.raises(EnvironmentFailure, match="disk"):
        make({"asymmetric": EnvironmentFailure("disk")})[0].run(CONFIGS[:1])


def test_divergences_are_kept_for_the_next_session(make: Make) -> None:
    first, evaluator = make({"asymmetric": 1.0, "symmetric": 0.1})
    first.run(CONFIGS[:2])
    again, asked_again = make({})
    again.run(CONFIGS[:2])
    assert [again.merit(to_params(c)) for c in CONFIGS] == [first.merit(to_params(c)) for c in CONFIGS]
    assert evaluator.asked
    assert not asked_again.asked


def test_equal_answers_are_as_good_as_it_gets(make: Make) -> None:
    screening, _ = make({"asymmetric": 0.0})
    screening.run(CONFIGS[:1])
    assert screening.merit(to_params(CONFIGS[0])) == pytest.approx(90.0)


_OUTPUTS = hnp.arrays(np.float32, (5, 4), elements=st.floats(-50, 50, width=32))


@given(_OUTPUTS, _OUTPUTS)
def test_divergence_is_that_of_the_definition(reference: np.ndarray, outputs: np.ndarray) -> None:
    expected = 0.0
    for p_row, q_row in zip(reference.tolist(), outputs.tolist(), strict=True):
        p_sum, q_sum = (math.fsum(math.exp(v) for v in row) for row in (p_row, q_row))
        expected += math.fsum(
            math.exp(p) / p_sum * ((p - math.log(p_sum)) - (q - math.log(q_sum)))
            for p, q in zip(p_row, q_row, strict=True)
        )
    assert divergence(reference, outputs) == pytest.approx(expected / 5, abs=1e-9)
    assert divergence(reference, outputs) >= -1e-12
    assert divergence(reference, reference) == 0.0
