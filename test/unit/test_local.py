"""Which layers stay in float: ranked by what two passes over images show, paid for by the latency that is measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from quantune import api
from quantune.compiler.targets import Target
from quantune.data.sources import Items
from quantune.data.splits import Split
from quantune.errors import UsageError
from quantune.frontend.importer import import_module
from quantune.numerics.affine import dequantize
from quantune.numerics.simulate import simulate
from quantune.quantization.bits import F32, BitWidths
from quantune.quantization.config import QuantConfig
from quantune.tuning import local
from quantune.tuning.builder import Builder
from quantune.tuning.local import Local, LocalChoice, Unit, affordable, decibel, measure

SHAPE = (1, 3, 8, 8)
IMAGES = np.random.default_rng(0).standard_normal((6, *SHAPE), np.float32)
SOURCE = Items([(image[0], 0) for image in IMAGES], "calibration images")
COARSE = QuantConfig(granularity="tensor")


class Net(nn.Module):
    """A residual block whose second layer has one huge weight: with one scale the others are lost."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(512, 4)
        with torch.no_grad():
            self.c1.weight[0, 0] = 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.c2(torch.relu(self.c1(x))))
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def builder() -> Builder:
    model = import_module(Net().eval(), torch.zeros(SHAPE), "net")
    return Builder(model, Target("cpu"), calib=Split(SOURCE, tuple(range(6))), sizes=(1000,))


def _noise(builder: Builder, config: QuantConfig, name: str) -> float:
    """By the simulation."""
    plan = builder.plan(config)
    assert plan is not None
    signal = noise = 0.0
    for image in IMAGES:
        y = simulate(builder.model.network, {}, {}, image)[name]
        value = simulate(builder.model.network, plan.activations, plan.weights, image)[name]
        params = plan.activations.get(name)
        real = value if params is None else dequantize(value, params)  # type: ignore[arg-type]
        signal, noise = signal + float(np.square(y).sum()), noise + float(np.square(y - real).sum())
    return noise / signal


def test_what_a_unit_adds_is_measured_behind_its_addition_and_clamp(builder: Builder) -> None:
    network = builder.model.network
    plan = builder.plan(COARSE)
    assert plan is not None
    found = measure(builder.calibration, plan, 6)
    assert {unit.layer for unit in found.units} == {"stem", "c1", "c2", "head"}
    assert found.noise == pytest.approx(_noise(builder, COARSE, network.outputs[0]), rel=1e-3)
    units = {unit.layer: unit for unit in found.units}
    layers = network.by_name
    relu1 = network.fused_clamp(layers["c1"])
    added = network.consumers["c2"][0]
    relu2 = network.fused_clamp(added)
    assert added.kind == "add"
    assert relu1 is not None
    assert relu2 is not None
    for name, given in (("c1", relu1.name), ("c2", relu2.name), ("head", "head")):
        before = _noise(builder, COARSE, layers[name].inputs[0])
        after = _noise(builder, COARSE, given)
        assert units[name].loss == pytest.approx(decibel(before) - decibel(after), abs=0.05)
        assert units[name].own == pytest.approx(max(after - before, 0.0), rel=0.02, abs=1e-6)
    assert found.units[0].layer == "c1"
    assert [unit.loss for unit in found.units] == sorted((unit.loss for unit in found.units), reverse=True)


def test_with_the_worst_unit_in_f32_the_result_is_better_by_about_what_is_predicted(builder: Builder) -> None:
    plan = builder.plan(COARSE)
    assert plan is not None
    found = measure(builder.calibration, plan, 6)
    name = builder.model.network.outputs[0]
    before = decibel(_noise(builder, COARSE, name))
    config = QuantConfig(granularity="tensor", bits=found.bits(1, BitWidths()))
    after = decibel(_noise(builder, config, name))
    assert config.bits.of("c1") == F32
    assert after > before + 3
    assert found.predicted(1) > before + 2


UNITS = (Unit("a", 9.0, 0.6), Unit("b", 5.0, 0.3), Unit("c", 1.0, 0.1), Unit("d", 0.0, 0.0))


def test_the_prediction_is_what_the_others_add() -> None:
    found = Local(UNITS, 0.01)
    assert [found.predicted(count) for count in range(3)] == pytest.approx([20.0, decibel(0.004), 30.0])
    assert [found.wanted(target) for target in (10, 19.9, 20.1, 23.9, 24.1, 29.9, 31, 299, 301)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        3,
    ]
    assert Local((Unit("a", 0.0, 0.0), Unit("b", 0.0, 0.0)), 0.01).predicted(1) == pytest.approx(20.0)
    assert str(found.bits(2, BitWidths.parse("w4/w8:a+d"))) == "w4a8/w8a8:d/f32:a+b"


@pytest.mark.parametrize(("most", "expected"), [(1.0, 0), (1.05, 0), (1.1, 1), (1.35, 3), (1.75, 7), (9.0, 7)])
def test_the_price_is_measured_by_bisection(most: float, expected: int) -> None:
    asked: list[int] = []

    def slowdown(count: int) -> float:
        asked.append(count)
        return 1 + 0.1 * count

    assert affordable(Local((), 0.0), 7, slowdown, most) == expected
    assert 0 not in asked
    assert len(asked) <= 4
    assert affordable(Local((), 0.0), 0, slowdown, most) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "target of 0 dB: expected a number of decibels above 0"),
        ({"target": -3.0}, "target of -3 dB"),
        ({"target": math.nan}, "target of nan dB"),
        ({"target": math.inf}, "target of inf dB"),
        ({"most": 0.9}, "largest slowdown 0.9: expected a factor of 1 or more, such as 1.1"),
        ({"most": math.nan}, "largest slowdown nan"),
        ({"most": math.inf}, "largest slowdown inf"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as error:
        LocalChoice(**options)
    assert message in str(error.value)


def test_an_artifact_without_a_search(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    options = api.ModelOptions(shape=SHAPE[1:])
    artifact, text = api.quantize_local(Net().eval(), calib=SOURCE, config=COARSE, target_db=30, options=options)
    assert text.startswith("1 of 4 layers stay in f32: predicted ")
    ran = {row.layer: row.precision for row in artifact.layers}
    assert ran == {"stem": "i8", "c1": "f32", "c2": "i8", "head": "i8"}
    assert artifact.config is not None
    assert artifact.config.bits == BitWidths.parse("w8/f32:c1")
    monkeypatch.setattr(local, "slowdown", lambda builder, base, found, count: 2.0)
    config, text = LocalChoice(30, most=1.5).configuration(builder, COARSE)
    assert config == COARSE
    assert "30 dB would take 1, which is slower than 1.5 times" in text
    _, text = LocalChoice(150).configuration(builder, COARSE)
    assert text.startswith("3 of 4 layers stay in f32")
    assert text.endswith("no number of them is predicted to reach 150 dB")
    with pytest.raises(UsageError, match="precision=f32: nothing is quantized"):
        LocalChoice().configuration(builder, QuantConfig(precision="f32"))


def test_the_slowdown_is_timed_beside_the_program_without_f32_layers(builder: Builder) -> None:
    found = Local(tuple(Unit(name, 0.0, 0.0) for name in ("c1", "stem")), 0.0)
    assert 0.05 < local.slowdown(builder, QuantConfig(), found, 1) < 20
    assert all(itertools.starmap(math.isclose, [(local.decibel(0.1), 10.0), (local.decibel(0.0), 300.0)]))
