"""A scheme and a rule for clipping are one object each: those entered from here work from the line to the program."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from quantized import Form, assert_same_bits, call, compiled, is_exact, lower, plan_from_images, reference
from torch import nn

from quantune.errors import UsageError
from quantune.frontend.imported import ImportedModel
from quantune.frontend.importer import import_module
from quantune.numerics.affine import QuantParams
from quantune.numerics.clipping import CLIPS, ClipRule
from quantune.numerics.histogram import Histogram
from quantune.numerics.schemes import SCHEMES, Scheme, Weights
from quantune.quantization.config import QuantConfig
from quantune.quantization.plan import make_plan, observed
from quantune.quantization.precisions import PRECISIONS, Precision
from quantune.quantization.space import from_params, to_params
from quantune.search.scores import Objective, Score

SHAPE = (1, 3, 8, 8)


@dataclass(frozen=True)
class _Coarse(Weights):
    """Weights in steps twice as large as they could be."""

    def params(self, w: NDArray[np.floating], granularity: str, bits: int = 8, axis: int = 0) -> QuantParams:
        fine = super().params(w, granularity, bits, axis)
        return QuantParams(fine.scale * np.float32(2), fine.zero_point, fine.qmin, fine.qmax, fine.axis)


class _Toy(Scheme):
    """u8 whose zero point is 100 whatever the range."""

    @property
    def weights(self) -> Weights:
        return _Coarse()

    def storage(self, lo: float, bits: int) -> tuple[int, int]:
        return 0, 255

    def step(self, lo: float, hi: float, bits: int) -> float:
        return max(-lo / 100, hi / 155)

    def zero_point(self, lo: float, scale: float, bits: int) -> int:
        return 100


class _Octaves(Scheme):
    """The symmetric scheme with scales that are powers of two, which nobody is told."""

    @property
    def weights(self) -> Weights:
        return Weights(power2=True)

    def step(self, lo: float, hi: float, bits: int) -> float:
        return 2.0 ** math.ceil(math.log2(super().step(lo, hi, bits)))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in (_Toy("toy", "u8 around 100"), _Octaves("octaves", "s8")):
        monkeypatch.setitem(SCHEMES, scheme.name, scheme)
    monkeypatch.setitem(
        CLIPS, "half", ClipRule("half", "half of it", lambda h, scheme, bits: (h.minimum / 2, h.maximum / 2))
    )


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    return import_module(module.eval(), torch.zeros(SHAPE), "toy")


def _images() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)


def test_what_is_not_entered_is_refused() -> None:
    with pytest.raises(UsageError, match="scheme=toy: expected one of asymmetric"):
        QuantConfig.parse("scheme=toy")
    with pytest.raises(UsageError, match="clip=half: expected one of max, kl, percentile"):
        QuantConfig.parse("clip=half")


@pytest.mark.parametrize("line", ["scheme=toy,clip=half", "scheme=toy,clip=mse", "scheme=symmetric_power2,clip=half"])
@pytest.mark.usefixtures("toys")
def test_a_scheme_and_a_clip_rule_from_outside_run_in_integers(line: str, model: ImportedModel) -> None:
    config = QuantConfig.parse(line)
    assert from_params(to_params(config)) == config
    plan = plan_from_images(model, _images(), config)
    assert is_exact(model, plan)
    assert_same_bits(call(compiled(lower(model, plan, Form())), _images()), reference(model, plan, _images()))


@pytest.mark.usefixtures("toys")
def test_plans_have_the_numbers_of_their_scheme_and_rule_also_with_a_shared_memory(model: ImportedModel) -> None:
    statistics = {name: Histogram() for name in observed(model.network)}
    for histogram in statistics.values():
        histogram.add(np.linspace(-1, 4, 5000, dtype=np.float32))
    ranges, weights = {}, {}
    lines = ("scheme=asymmetric", "scheme=toy", "scheme=toy,clip=half", "scheme=symmetric", "scheme=octaves")
    shared = [make_plan(model.network, statistics, QuantConfig.parse(line), ranges, weights) for line in lines]
    alone = [make_plan(model.network, statistics, QuantConfig.parse(line)) for line in lines]
    assert [plan.digest() for plan in shared] == [plan.digest() for plan in alone]
    assert len({plan.digest() for plan in shared}) == len(lines)
    assert shared[1].activations["input"] == SCHEMES["toy"].params(-1, 4)
    assert shared[2].activations["input"] == SCHEMES["toy"].params(-0.5, 2)
    (layer, *_) = shared[0].weights
    np.testing.assert_array_equal(shared[1].weights[layer].scale, shared[0].weights[layer].scale * 2)


def test_a_precision_from_outside_says_which_layers_are_in_integers(
    model: ImportedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRECISIONS, "tail", Precision("tail", slice(1, None), simplicity=9))
    config = QuantConfig.parse("precision=tail")
    plan = plan_from_images(model, _images(), config)
    assert not config.is_float
    assert list(plan.weights) == [node.name for node in model.network.layers[1:]]
    found = call(compiled(lower(model, plan, Form(), "tail")), _images())
    np.testing.assert_allclose(found[0], reference(model, plan, _images())[0], atol=0.1)


@pytest.mark.parametrize(("scheme", "role"), [("symmetric_power2", "shift"), ("octaves", "multiplier")])
@pytest.mark.usefixtures("toys")
def test_layers_shift_where_the_scheme_says_so_and_not_where_numbers_suggest_it(
    scheme: str, role: str, model: ImportedModel
) -> None:
    plan = plan_from_images(model, _images(), QuantConfig(scheme=scheme))
    for params in (*plan.activations.values(), *plan.weights.values()):
        assert np.all(np.frexp(params.scale)[0] == 0.5)
    lowered = lower(model, plan, Form(outlined=True))
    assert lowered.parameters is not None
    found = {name.rpartition(".")[2] for name in lowered.parameters}
    assert found & {"shift", "multiplier"} == {role}
    assert_same_bits(call(compiled(lowered), _images()), reference(model, plan, _images()))


@pytest.mark.parametrize("clip", [*CLIPS, "half"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "toy"])
@pytest.mark.usefixtures("toys")
def test_trials_of_every_scheme_and_rule_are_ranked_what_is_new_last(scheme: str, clip: str) -> None:
    score, config = Score(0.5, 1.0, 1, 10), QuantConfig(scheme=scheme, clip=clip)
    simplest = QuantConfig(scheme="symmetric_power2", clip="max")
    involved = QuantConfig(scheme="toy", clip="half")
    ranks = [Objective().rank(score, each) for each in (simplest, config, involved)]
    assert ranks == sorted(ranks)
