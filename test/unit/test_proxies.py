"""Predicted noise: which configurations and programs a search is going to need, and in which order."""

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


def _by_prior(proxies: Proxies) -> list[QuantConfig]:
    return sorted(LEVEL1, key=lambda c: -proxies.prior({name: getattr(c, name) for name in PARAMETERS}))


def test_what_comes_first_and_then_a_configuration_of_each_program(proxies: Proxies) -> None:
    first = QuantConfig(scheme="symmetric_power2")
    found = proxies.upcoming([first], PRECISIONS, None, 5, str)
    assert found[0] == first
    assert found[1:5] == [config for config in _by_prior(proxies) if config != first][:4]
    assert len(set(_programs(found))) == 4
    later = _programs(found[5:])
    assert len(set(later)) == len(later)
    assert not set(later) & set(_programs(found[:5]))


def test_a_short_search_needs_what_it_measures(proxies: Proxies) -> None:
    assert proxies.upcoming([QuantConfig()], PRECISIONS, 1, 8, str) == [QuantConfig()]
    eight = proxies.upcoming([QuantConfig()], PRECISIONS, 8, 8, str)
    assert len(eight) == len(set(eight)) == 8
    assert proxies.upcoming([QuantConfig()], PRECISIONS, 3, 8, str) == eight[:3]
    assert proxies.upcoming([QuantConfig()], PRECISIONS, 9, 8, str)[:8] == eight


def test_one_of_the_configurations_that_compute_the_same(proxies: Proxies) -> None:
    found = proxies.upcoming([QuantConfig()], PRECISIONS, 8, 8, lambda c: f"{c.scheme} {c.clip}")
    assert len(found) == len({(config.scheme, config.clip) for config in found}) == 8


def test_bit_widths_and_precisions_are_kept(proxies: Proxies) -> None:
    narrow = replace(QuantConfig(), bits=BitWidths.parse("w4"))
    found = proxies.upcoming([narrow], ("int8",), None, 8, str)
    assert {config.bits for config in found} == {narrow.bits}
    assert {config.precision for config in found} == {"int8"}
    assert set(_programs(found)) == {(True, "int8"), (False, "int8")}
