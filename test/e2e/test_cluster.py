"""Counting with a cluster: two workers of Dask give the bits that this machine gives, and one may be killed."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dask_cluster import cluster
from torch import nn

from quantune import api
from quantune.artifact.records import Processor
from quantune.cache import ArtifactCache
from quantune.cluster import runner as module
from quantune.cluster.runner import ClusterRunner
from quantune.compiler.iree import CompiledModule, compile_module
from quantune.compiler.targets import Target
from quantune.errors import EnvironmentFailure, RunFailed, UsageError
from quantune.runtime.engines import LocalRunner
from quantune.runtime.host import processor_name, this_host
from quantune.tuning.measuring import measuring

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
IMAGES = 61
SOURCE = b"""
func.func @main(%x: tensor<2x3x4x4xf32>) -> tensor<2x48xf32> {
  %y = tensor.collapse_shape %x [[0], [1, 2, 3]] : tensor<2x3x4x4xf32> into tensor<2x48xf32>
  %z = math.tanh %y : tensor<2x48xf32>
  return %z : tensor<2x48xf32>
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledModule:
    return compile_module(SOURCE, Target("cpu"), output_dir=tmp_path_factory.mktemp("program"), explain=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((IMAGES, 3, 4, 4)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def expected(compiled: CompiledModule, images: Path) -> np.ndarray:
    with contextlib.closing(LocalRunner()) as local:
        return local.run(compiled.path, None, images, 0, IMAGES)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cluster(tmp_path_factory.mktemp("cluster"), "shared", "unshared") as (uri, _, _):
        yield uri


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD_BYTES", 4 * 192)  # four images


@pytest.mark.usefixtures("small_shards")
def test_the_same_bits_as_here(uri: str, compiled: CompiledModule, images: Path, expected: np.ndarray) -> None:
    """One worker reads the images where they are, the other one is sent them."""
    with contextlib.closing(ClusterRunner(uri)) as runner:
        for first, end in ((0, IMAGES), (5, 6), (3, 40)):
            given = runner.run(compiled.path, None, images, first, end)
            np.testing.assert_array_equal(given, expected[first:end])
        runner.renew()
        np.testing.assert_array_equal(runner.run(compiled.path, None, images, 0, IMAGES), expected)


@pytest.mark.usefixtures("small_shards")
def test_a_killed_worker_is_survived_and_a_lost_scheduler_is_one_line(
    tmp_path: Path, compiled: CompiledModule, images: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that reads the images where they are is killed; the other one is sent them, and then has nobody."""
    with cluster(tmp_path, "shared", "unshared") as (uri, workers, scheduler):
        runner = ClusterRunner(uri)
        _wait_for(runner, 2)
        seen: list[str] = []
        result = runner._result

        def count(future: object) -> dict:
            told = result(future)
            seen.extend(told)
            if seen.count("rows") == 3 and workers[0].poll() is None:
                workers[0].kill()
            return told

        monkeypatch.setattr(runner, "_result", count)
        np.testing.assert_array_equal(runner.run(compiled.path, None, images, 0, IMAGES), expected)
        assert workers[0].wait() == -9
        assert seen.count("rows") == -(-IMAGES // 4)
        assert "missing" in seen

        def end(future: object) -> dict:
            scheduler.kill()
            return result(future)

        monkeypatch.setattr(runner, "_result", end)
        monkeypatch.setattr(module, "_PATIENCE_S", 5.0)
        monkeypatch.setattr(runner._client, "_timeout", 2.0)  # how long it tries to connect again
        with pytest.raises(EnvironmentFailure, match=rf"^cluster {re.escape(uri)}: [^\n]*$"):
            runner.run(compiled.path, None, images, 0, IMAGES)
        runner.close()


def test_failures_are_told(uri: str, compiled: CompiledModule, images: Path, tmp_path: Path) -> None:
    with contextlib.closing(ClusterRunner(uri)) as runner:
        damaged = tmp_path / "damaged.vmfb"
        damaged.write_bytes(b"PK\x03\x04" + bytes(100))
        with pytest.raises(RunFailed, match=rf"^cluster {re.escape(uri)}: .*not a compiled program"):
            runner.run(damaged, None, images, 0, 5)
        np.save(tmp_path / "flat.npy", np.zeros((2, 5), np.float32))
        with pytest.raises(UsageError, match="the program takes"):
            runner.run(compiled.path, None, tmp_path / "flat.npy", 0, 2)
        with pytest.raises(UsageError, match="cannot be read"):
            runner.run(tmp_path / "none.vmfb", None, images, 0, 2)


def test_workers_that_do_not_fit_get_no_work(uri: str) -> None:
    told: list[str] = []
    required = Processor(this_host().architecture, "abacus", ("fma4",))
    if this_host().features.get("fma4", True):
        pytest.skip("this processor has what hardly any has")
    with pytest.raises(EnvironmentFailure, match=r"no worker that fits: compiled for .* with fma4, which it lacks"):
        ClusterRunner(uri, required=required, on_note=told.append)
    assert all(
        re.fullmatch(rf"cluster {re.escape(uri)}: tcp://\S+ gets no work: compiled for .*", line) for line in told
    )
    assert told


def test_a_search_may_count_there(uri: str, tmp_path: Path) -> None:
    place = measuring(Target("cpu"), evaluate_on=uri, cache=ArtifactCache(tmp_path))
    assert isinstance(place.runner, ClusterRunner)
    assert (place.timer, place.device, place.target, place.timed_on) == (None, "", Target("cpu"), "")
    assert re.fullmatch(rf"cluster {re.escape(uri)}: [12] on {re.escape(processor_name())}", place.counted_on)
    place.close()
    with pytest.raises(UsageError, match="a cluster's workers run programs for processors only"):
        measuring(Target("cuda"), evaluate_on=uri, cache=ArtifactCache(tmp_path))


@pytest.mark.slow
def test_a_search_that_counts_there_finds_the_same(uri: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    random = np.random.default_rng(1)
    images = [(random.normal(size=(3, 8, 8)).astype(np.float32), i % 3) for i in range(48)]

    def search(name: str, **options: str) -> api.Result:
        cache = ArtifactCache(tmp_path / f"{name}-cache")  # answers are cached under what gave them
        return api.compile(
            net, calib=images[:8], eval=images[8:], options=api.ModelOptions(shape=(3, 8, 8)), out=tmp_path / name,
            cache=cache, max_drop=1.0, transfer=False, max_trials=2, **options,
        )  # fmt: skip

    there, here = search("there", evaluate_on=uri), search("here")
    found = [
        {str(t.config): t.score.correct for t in result.tuning.trials if t.score is not None}
        for result in (there, here)
    ]
    assert len(found[0]) >= 2
    assert found[0] == found[1]
    assert there.path is not None
    recipe = json.loads((tmp_path / "there" / "best.json").read_text())
    assert recipe["counted_on"] == there.report["environment"]["accuracy counted on"]
    assert recipe["counted_on"].startswith(f"cluster {uri}: ")
    assert recipe["timed_on"] == processor_name()


def _refuse_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)


@pytest.mark.parametrize(
    ("uri", "prepare", "error", "message"),
    [
        ("dask://host", None, UsageError, "expected dask://HOST:PORT"),
        ("dask://host:1/x", None, UsageError, "expected dask://HOST:PORT"),
        ("dask://host:99999", None, UsageError, "expected dask://HOST:PORT"),
        ("dask://127.0.0.1:1", None, EnvironmentFailure, "cluster dask://127.0.0.1:1 cannot be reached"),
        ("dask://127.0.0.1:1", _refuse_import, EnvironmentFailure, r"pip install 'quantune\[dask\]'"),
    ],
)
def test_clusters_that_are_none(
    uri: str,
    prepare: Callable[[pytest.MonkeyPatch], None] | None,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CONNECT_S", 1.0)
    if prepare is not None:
        prepare(monkeypatch)
    with pytest.raises(error, match=message):
        ClusterRunner(uri)


def _wait_for(runner: ClusterRunner, workers: int) -> None:
    while len(runner._workers()) < workers:
        pass
