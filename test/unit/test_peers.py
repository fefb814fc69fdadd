from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantune.errors import RunFailed, UsageError

peers = importlib.import_module("peers_lib.values")
contestants = importlib.import_module("peers_lib.contestants")
contest = importlib.import_module("peers_lib.contest")
machine = importlib.import_module("peers_lib.machine")

TIMES = st.lists(st.floats(0.01, 1000), min_size=1, max_size=15)


def _row(engine: str, precision: str, threads: int, ms: float, peak: float = 100.0, model: str = "a") -> Any:
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


ANSWER = 'print(\'{"peak": 2, "before": 1, "medians": [3.0], "minimum": 2.5}\', flush=True)'
CHILD = f"""
import sys, time
for job in sys.stdin:
    if "seconds" in job and "hangs" in sys.argv:
        time.sleep(60)
    if "seconds" in job and "dies" in sys.argv:
        sys.exit("out of luck")
    {ANSWER}
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command in the place of the script: the engine's name says what it does when it is to be measured."""
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    monkeypatch.setattr(contestants, "COMMAND", path)
    return tmp_path


@pytest.mark.parametrize(
    ("engine", "message"),
    [("hangs", "hangs f32, 2 threads gave no answer within 5 s"), ("dies", "dies f32, 2 threads ended: out of luck")],
)
def test_a_contestant_that_hangs_or_ends_is_named(child: Path, engine: str, message: str) -> None:
    contestant = peers.Contestant(engine, "f32", 2, child / "model")
    process = contestants.Process(contestant, child / "log", timeout_s=4.0)
    try:
        assert process.request({"images": "x"})["medians"] == [3.0]
        with pytest.raises(RunFailed) as error:
            process.slice(0.5)
        assert str(error.value) == message
    finally:
        process.close()


def test_the_others_run_on_without_a_contestant_that_fails(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Prepared:
        seconds: ClassVar[dict[str, float]] = {}

        def __init__(self, name: str, folder: Path) -> None:
            pass

        def file(self, engine: str, precision: str) -> Path:
            return child / "model"

        def reference(self) -> np.ndarray:
            return np.zeros((1, 2))

    monkeypatch.setattr(contest, "Stable", Prepared)
    monkeypatch.setattr(contest, "_quality", lambda process, *_: (process.request({"images": "x"})["minimum"], 1.0))
    wanted = [("quantune", "f32"), ("dies", "f32"), ("torch", "f32")]
    found = contest.contest("a", wanted, [1], 3, 0.01)
    assert found["absent"] == {"dies f32, 1 thread": "dies f32, 1 thread ended: out of luck"}
    assert [(row.engine, row.rounds_ms) for row in found["rows"]] == [
        ("quantune", (3.0, 3.0, 3.0)), ("torch", (3.0, 3.0, 3.0)),
    ]  # fmt: skip


def test_peak_is_of_the_widest_instructions_and_unknown_without_them() -> None:
    best = machine.peak("int8", ["fma", "avx_vnni", "avx512f", "avx512_vnni"], (4.0, "measured"))
    assert best.gmac_per_s == 512
    assert best.formula == "2 vpdpbusd zmm a cycle x 64 MACs x 4.00 GHz (measured) = 512 GMAC/s"
    assert machine.peak("f32", ["avx2", "fma"], (2.5, "listed")).gmac_per_s == 40
    assert machine.peak("int8", ["avx2", "fma"], (2.5, "listed")) is None
    assert machine.peak("int8", ["avx512_vnni"], None) is None


def test_clock_is_that_of_a_processor_and_listed_where_it_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = machine.clock()
    assert measured is None or 0.2 < measured[0] < 10
    listed = tmp_path / "cpuinfo"
    listed.write_text("cpu MHz\t\t: 2596.118\ncpu MHz\t\t: 3100.000\n")
    monkeypatch.setattr(machine, "CPU_INFO", listed)
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert machine.clock() == (3.1, str(listed))
    listed.unlink()
    assert machine.clock() is None
