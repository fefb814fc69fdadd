"""Predicted noise: which programs a search is going to need, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlir_passes.network import Network, Node
from quantune.bits import BitWidths
from quantune.calibration import Statistics
from quantune.config import QuantConfig
from quantune.numerics.histogram import Histogram
from quantune.plan import make_plan
from quantune.proxies import Proxies
from quantune.space import LEVEL1, PARAMETERS

SIZES, PRECISIONS = (1, 1000, 10000), ("int8", "mixed")


@pytest.fixture
def proxies() -> Proxies:
    rng = np.random.default_rng(0)
    nodes, source = [Node("x", "", "input", (), (1, 4, 8, 8))], "x"
    for name in ("a", "b", "c"):
        weight = rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
        nodes.append(Node(name, name, "conv", (source,), (1, 4, 8, 8), weight=weight, bias=np.zeros(4, np.float32)))
        source = name
    network = Network(tuple(nodes), (source,))
    histograms, power = {}, {}
    for node in nodes:
        histograms[node.name] = Histogram()
        histograms[node.name].add(rng.standard_t(3, 4000))
        power[node.name] = np.ones(4)
    statistics = Statistics(1, dict.fromkeys(SIZES, histograms), power)
    return Proxies(network, lambda config: make_plan(network, statistics.at(config.calib), config), statistics)


def _programs(configs: list[QuantConfig]) -> list[tuple[bool, str]]:
    return [(config.scheme == "symmetric_power2", config.precision) for config in configs]


def test_programs_come_in_the_order_in_which_the_search_asks_for_them(proxies: Proxies) -> None:
    first = QuantConfig(scheme="symmetric_power2")
    every = proxies.programs([first], PRECISIONS, None, 8)
    assert every[0] == first
    assert len(set(_programs(every))) == len(every) == 4
    by_prior = sorted(LEVEL1, key=lambda c: -proxies.prior({name: getattr(c, name) for name in PARAMETERS}))
    ranks = [by_prior.index(config) for config in every[1:]]
    assert ranks == sorted(ranks)


def test_a_short_search_needs_few_programs(proxies: Proxies) -> None:
    assert proxies.programs([QuantConfig()], PRECISIONS, 1, 8) == [QuantConfig()]
    few = proxies.programs([QuantConfig()], PRECISIONS, 8, 8)
    assert 1 <= len(few) < 4
    assert few == proxies.programs([QuantConfig()], PRECISIONS, 9, 8)[: len(few)]


def test_programs_keep_the_bit_widths_and_the_precisions(proxies: Proxies) -> None:
    narrow = replace(QuantConfig(), bits=BitWidths.parse("w4"))
    found = proxies.programs([narrow], ("int8",), None, 8)
    assert {config.bits for config in found} == {narrow.bits}
    assert {config.precision for config in found} == {"int8"}
    assert len(found) == 2
