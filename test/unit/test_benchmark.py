from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantune.artifact.provenance import Provenance, attach
from quantune.cli import benchmark as cli
from quantune.compiler import iree
from quantune.compiler.inspect import layer_executions, required_processor
from quantune.compiler.targets import Target
from quantune.errors import RunFailed, UsageError
from quantune.runtime.artifact import Artifact
from quantune.runtime.benchmark import _speedup, benchmark, compare, dispatch_times
from quantune.runtime.measure import Effort, Samples, measure, pinned, resident_bytes

MODULE = b"""
func.func @main(%x: tensor<8x16xf32>) -> tensor<8x4xf32> {
  %w = arith.constant dense_resource<w> : tensor<16x4xf32>
  %z = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<8x4xf32>
  %i = linalg.fill ins(%z : f32) outs(%e : tensor<8x4xf32>) -> tensor<8x4xf32>
  %y = linalg.matmul ins(%x, %w : tensor<8x16xf32>, tensor<16x4xf32>) outs(%i : tensor<8x4xf32>)
    -> tensor<8x4xf32> loc("head")
  return %y : tensor<8x4xf32>
}
{-# dialect_resources: { builtin: { w: "0x04000000WEIGHTS" } } #-}
""".replace(b"WEIGHTS", np.arange(64, dtype=np.float32).tobytes().hex().encode())
QUICK = Effort(repetitions=3, min_seconds=0.01, warmup_seconds=0.0)


@pytest.fixture(scope="module", name="path")
def _path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    compiled = iree.compile_module(MODULE, Target("cpu"), output_dir=folder)
    record = Provenance(
        "cpu:host", layers=layer_executions(compiled.dispatches), processor=required_processor(compiled.dispatches)
    )
    return Artifact(attach(compiled.path.read_bytes(), record)).save(folder / "a.vmfb")


def test_measure_interleaves() -> None:
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    samples = measure(calls, Effort(repetitions=4, min_seconds=0, warmup_seconds=0))
    assert "".join(order[-8:]) == "abbaabba"
    assert [len(sample.medians) for sample in samples] == [4, 4]
    assert samples[0].calls == 4


class Clock:
    """A clock that only calls move: a call takes the next of some milliseconds, the last of them for ever after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0, 0
        monkeypatch.setattr("quantune.runtime.measure.time", self)

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9

    def call(self, *milliseconds: float) -> Callable[[], None]:
        waiting = list(milliseconds)

        def run() -> None:
            self.calls += 1
            self.now += round(1e6 * (waiting.pop(0) if len(waiting) > 1 else waiting[0]))

        return run


def test_measure_counts_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # Three calls warm up for 2.5 ms, and say that 6 fill a slice of 6 ms.
    (sample,) = measure([clock.call(1)], Effort(repetitions=2, min_seconds=0.012, warmup_seconds=0.0025))
    assert sample == Samples((1.0, 1.0), 1.0, (1.0, 1.0, 1.0), 12, (1.0, 1.0))
    assert clock.calls == 3 + 12


def test_a_slow_first_call_does_not_shorten_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    (sample,) = measure([clock.call(100, 1)], Effort(repetitions=3, min_seconds=0.012, warmup_seconds=0.05))
    assert sample.calls == 3 * 4
    (sample,) = measure([clock.call(8)], Effort(repetitions=3, min_seconds=0.012, warmup_seconds=0))
    assert sample.calls == 3  # a slice has a call, however long it takes


def test_medians_of_slices_and_quartiles_of_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    warm = (4, 4)  # the first call, and the one that says how long a call takes: three fill a slice
    slices = (2, 9, 1), (4, 10, 4)
    calls = [clock.call(*warm, *slices[0], *slices[1]), clock.call(4)]
    found, other = measure(calls, Effort(repetitions=2, min_seconds=0.024, warmup_seconds=0))
    assert found == Samples((2.0, 4.0), 1.0, (2.5, 4.0, 7.75), 6, (9.5, 9.95))
    assert other == Samples((4.0, 4.0), 4.0, (4.0, 4.0, 4.0), 6, (4.0, 4.0))


@pytest.mark.parametrize(
    "values",
    [
        {"repetitions": 0}, {"min_seconds": -1}, {"warmup_seconds": float("nan")}, {"min_seconds": float("inf")},
        {"min_seconds": 3600}, {"warmup_seconds": 3600}, {"warmup_seconds": -0.1},
    ],
)  # fmt: skip
def test_bad_effort(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Effort(**values)  # type: ignore[arg-type]


def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(True) as processor:
        assert os.sched_getaffinity(0) == {processor} == {max(before)}
    assert os.sched_getaffinity(0) == before
    with pinned(False) as processor:
        assert processor is None
        assert os.sched_getaffinity(0) == before


def test_resident_memory_grows() -> None:
    before, _ = resident_bytes()
    block = np.ones(40 << 20, np.uint8)
    now, peak = resident_bytes()
    assert now - before > 30 << 20
    assert peak >= now
    assert block[0] == 1


def test_speedup() -> None:
    slow = Samples((2.0, 4.0, 6.0, 8.0), 1.0, (1.0, 2.0, 3.0), 4, (3.0, 3.0))
    fast = Samples((1.0, 2.0, 3.0, 2.0), 1.0, (1.0, 2.0, 3.0), 4, (3.0, 3.0))
    found = _speedup(slow, fast)
    assert found.value == 2
    assert found.low == 2
    assert 2 < found.high <= 4
    assert _speedup(slow, slow).value == 1
    assert _speedup(fast, slow).value == 0.5


def test_the_interval_of_a_speedup_is_that_of_the_median_of_slices() -> None:
    random = np.random.default_rng(1)
    ratios = 2 * np.exp(random.normal(0, 0.1, 25))
    tails = (1.0, 1.0)
    slow = Samples(tuple(ratios), 1.0, (1.0, 2.0, 3.0), 25, tails)
    found = _speedup(slow, Samples((1.0,) * 25, 1.0, (1.0, 1.0, 1.0), 25, tails))
    assert found.value == np.median(ratios)
    # The order statistics between which the median lies with 95 %: the 8th and the 18th of 25 (binomial).
    low, high = np.sort(ratios)[[7, 17]]
    assert found.low == pytest.approx(low, rel=0.02)
    assert found.high == pytest.approx(high, rel=0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_compare(path: Path, threads: int) -> None:
    compared = compare([path, path], threads=threads, effort=QUICK)
    assert compared.names == (str(path), str(path))
    for timing in compared.timings:
        assert 0 < timing.minimum_ms <= timing.median_ms
        assert (timing.threads, timing.repetitions) == (threads, 3)
        assert timing.device == ("local-sync" if threads == 1 else "local-task")
        assert (timing.processor is None) == (threads > 1)
        assert timing.resident_bytes > 0
    assert compared.speedups[0].value == 1
    assert compared.speedups[1].low <= compared.speedups[1].value <= compared.speedups[1].high


class Answers:
    """In the place of a worker: what it would have measured."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None: ...

    def request(self, job: dict) -> dict:
        assert job["job"] == "memory"
        return {"resident": 4096, "device": 512}

    def compare(self, *_: object) -> tuple[list[Samples], int]:
        return [Samples(medians, medians[0] / 2, (1, 3, 7), 11, (8, 9)) for medians in ((2, 4), (1, 2))], 5


def test_numbers_of_a_comparison(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantune.runtime.benchmark.Worker", Answers)
    compared = compare([path, path], device="local-sync")
    first = compared.timings[0]
    assert (first.median_ms, first.minimum_ms, first.spread_ms) == (3, 1, 7 - 1)
    assert (first.calls, first.repetitions, first.processor) == (11, 2, 5)
    assert (first.resident_bytes, first.device_bytes) == (4096, 512)
    assert compared.timings[1].minimum_ms == 0.5
    assert [speedup.value for speedup in compared.speedups] == [1, 2]


def test_unsaved_artifact_and_input(path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 16), np.float32))
    timing = benchmark(Artifact(path.read_bytes()), effort=QUICK, images=tmp_path / "x.npy")
    assert timing.calls >= 3
    np.save(tmp_path / "x.npy", np.ones((3, 15), np.float32))
    with pytest.raises(UsageError, match="the program takes float32"):
        benchmark(path, effort=QUICK, images=tmp_path / "x.npy")


def test_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        compare([])


def test_dispatch_times(path: Path, tmp_path: Path) -> None:
    times = dispatch_times(path, min_seconds=0.01)
    (layer,) = Artifact(path.read_bytes()).layers
    assert times[layer.dispatch] > 0
    (tmp_path / "x.vmfb").write_bytes(b"garbage" * 40)
    with pytest.raises(RunFailed):
        dispatch_times(tmp_path / "x.vmfb")


def test_cli(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    options = ["--threads", "1,2", "--repetitions", "2", "--min-time", "10ms", "--per-layer", "--json", str(report)]
    assert cli.main([str(path), *options]) == 0
    out = capsys.readouterr().out
    assert "a.vmfb" in out
    assert "head" in out
    assert "0.0% of the multiplications are integer" in out
    assert "IREE" in out
    numbers = json.loads(report.read_text())
    assert [c["timings"][0]["threads"] for c in numbers["comparisons"]] == [1, 2]
    assert numbers["layers"][0][0]["layer"] == "head"
    assert numbers["layers"][0][0]["ms"] > 0


def test_cli_json_on_standard_output(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(path), "--repetitions", "1", "--min-time", "0", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["names"] == [str(path)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.vmfb"], 2, "none.vmfb: cannot be read: No such file"),
        (["A", "--threads", "0"], 2, "--threads 0: expected numbers of threads"),
        (["A", "--threads", "two"], 2, "--threads two"),
        (["A", "--min-time", "fast"], 2, "--min-time fast: expected a time such as 1s"),
        (["A", "--repetitions", "0"], 2, "repetitions=0"),
        (["A", "--device", "gpu"], 2, "device 'gpu': expected one of"),
        (["A", "--input", "none.npy"], 2, "none.npy: no such file"),
        (["A", "--timeout", "0"], 2, "run timeout 0"),
        # Found before anything is measured: the measurement would take a minute.
        (
            ["A", "--min-time", "60s", "--json", "/nowhere/x"],
            2,
            "--json '/nowhere/x': No such file or directory; ex",
        ),
        (["A", "--min-time", "60s", "--json", "/"], 2, "--json '/': is a folder"),
        (["A", "--timeout", "0.5", "--min-time", "60s"], 1, "took longer than 0.5 s"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_cli_errors(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert cli.main([str(path) if a == "A" else a for a in arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_cli_argument_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["a.vmfb", "--repetitions", "x"])
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "argument --repetitions: 'x': expected a whole number" in line
    assert line.endswith("(see quantune-benchmark --help)")


@pytest.mark.parametrize("archive", [True, False])
def test_cli_wrong_archives(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], archive: bool) -> None:
    file = tmp_path / "images.npz"
    if archive:
        np.savez(file, images=np.zeros((1, 3, 8, 8), np.float32))
    else:
        file.write_bytes(b"PK\x03\x04 nothing")
    assert cli.main([str(path), "--min-time", "0", "--input", str(file)]) == 2
    assert ("an archive of several arrays" if archive else "not an .npy file") in capsys.readouterr().err


def test_cli_damaged_artifact(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    (tmp_path / "b.vmfb").write_bytes(data)
    assert cli.main([str(tmp_path / "b.vmfb")]) == 1
    assert "the program is damaged" in capsys.readouterr().err


def test_cli_interrupted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "compare", interrupt)
    assert cli.main([str(path)]) == 130
