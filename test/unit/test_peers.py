from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.errors import UsageError

SCRIPT = Path(__file__).parents[1] / "benchmark" / "peers.py"
_spec = importlib.util.spec_from_file_location("peers", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
peers = importlib.util.module_from_spec(_spec)
sys.modules["peers"] = peers  # dataclasses look their module up
_spec.loader.exec_module(peers)

TIMES = st.lists(st.floats(0.01, 1000), min_size=1, max_size=15)


def _row(engine: str, precision: str, threads: int, ms: float, peak: float = 100.0, model: str = "a") -> peers.Row:
    return peers.Row(model, engine, precision, threads, ms, 0.0, ms, (ms,), None, peak, peak, 40.0, 1.0)


def test_order_is_reversed_every_round() -> None:
    assert [peers.round_order(3, number) for number in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_ratio_is_that_of_the_medians() -> None:
    value, low, high = peers.ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0])
    assert value == 0.5
    assert low == 0.25
    assert high == 2.25


def test_a_slow_moment_that_hits_both_leaves_the_ratio_certain() -> None:
    theirs = [1.0, 1.0, 1.0, 7.0, 1.0, 30.0]
    assert peers.ratio([2 * t for t in theirs], theirs) == pytest.approx((2.0, 2.0, 2.0))


@given(TIMES, st.randoms())
def test_ratio_lies_in_its_interval(ours: list[float], random) -> None:
    theirs = [random.uniform(0.5, 2) * t for t in ours]
    value, low, high = peers.ratio(ours, theirs)
    assert low <= high
    assert min(ours) / max(theirs) <= low
    assert high <= max(ours) / min(theirs)
    assert min(ours) / max(theirs) <= value <= max(ours) / min(theirs)


def test_geometric_mean() -> None:
    assert peers.geomean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert math.isnan(peers.geomean([]))


def test_sqnr() -> None:
    reference = np.array([[3.0, 4.0]], np.float32)
    assert peers.sqnr_db(reference, reference) == math.inf
    assert peers.sqnr_db(reference, reference * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert peers.sqnr_db(reference, 0 * reference) == pytest.approx(0.0)


def test_selection_of_contestants() -> None:
    chosen = peers.selection("quantune, openvino:int8,torch")
    assert chosen == [("quantune", "f32"), ("quantune", "int8"), ("openvino", "int8"), ("torch", "f32")]


@pytest.mark.parametrize("text", ["tvm", "torch:int8", "quantune,", "openvino:f16"])
def test_unknown_contestants_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected engines or engine:precision of quantune:f32"):
        peers.selection(text)


def test_thread_counts() -> None:
    assert peers.thread_counts("2, 1,2") == [1, 2]
    for text in ("0", "1,", "two", "-1"):
        with pytest.raises(UsageError, match="expected numbers of threads"):
            peers.thread_counts(text)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "openvino" else object())
    assert peers.missing_packages("openvino") == ["openvino"]
    assert peers.missing_packages("quantune") == []


def test_summary_compares_quantune_with_each_peer_itself_and_the_faster_float_engine() -> None:
    rows = [
        _row("quantune", "int8", 1, 1.0, peak=50.0), _row("quantune", "int8", 2, 0.6),
        _row("openvino", "int8", 1, 2.0), _row("onnxruntime", "int8", 1, 4.0, peak=100.0),
        _row("quantune", "f32", 1, 3.0), _row("openvino", "f32", 1, 6.0), _row("onnxruntime", "f32", 1, 5.0),
        _row("quantune", "int8", 1, 8.0, model="b"), _row("openvino", "int8", 1, 1.0, model="b"),
    ]  # fmt: skip
    seconds = {"a": {"quantune int8": 3.0, "iree f32": 6.0}, "b": {"quantune int8": 1.0}}
    summary = peers.summarize(rows, seconds)
    assert summary["int8 / openvino int8, 1 thread"] == (pytest.approx(2.0), "b", 8.0)
    assert summary["int8 / onnxruntime int8, 1 thread"] == (pytest.approx(0.25), "a", 0.25)
    assert summary["f32 / faster of onnxruntime and openvino f32, 1 thread"][0] == pytest.approx(0.6)
    assert summary["int8 / own f32, 1 thread"][0] == pytest.approx(1 / 3)
    assert summary["int8 2 threads / 1 thread"][0] == pytest.approx(0.6)
    assert summary["peak memory, int8 / onnxruntime, 1 thread"][0] == pytest.approx(0.5)
    assert summary["compile time, int8 / iree f32"] == (pytest.approx(0.5), "a", 0.5)
    assert not any("int8 / onnxruntime int8, 2" in what for what in summary)
