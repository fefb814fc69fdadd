"""Searches that measure on a device: another process, here with fewer features of the processor than this one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from device_server import ARM, as_process
from torch import nn

from quantune import api
from quantune.cache import ArtifactCache
from quantune.cli import benchmark as benchmark_command
from quantune.compiler.probe import needed_processor
from quantune.compiler.targets import Target, parse
from quantune.device.client import Device
from quantune.errors import EnvironmentFailure, UsageError
from quantune.runtime.artifact import load
from quantune.runtime.host import host_features
from quantune.tuning.measuring import measuring

LACKING = ("avx512f", "avx512vnni", "avxvnni")
needs_avx512 = pytest.mark.skipif(not host_features().get("avx512f"), reason="this processor has no AVX-512 to lack")


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def _pairs(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(seed)
    return [(random.normal(size=(3, 8, 8)).astype(np.float32), i % 3) for i in range(count)]


def _search(out: Path, cache: ArtifactCache, **options: object) -> api.Result:
    return api.compile(
        _net(), calib=_pairs(8, 1), eval=_pairs(40, 2), options=api.ModelOptions(shape=(3, 8, 8)), out=out,
        cache=cache, max_drop=1.0, transfer=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("device")
    with as_process(folder / "store", folder / "log", lacking="avx512,avxvnni") as (_, port):
        yield f"tcp://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("cpu", {"evaluate_on": "device"}, UsageError, "evaluate on the device: there is none"),
        ("cpu", {"evaluate_on": "moon"}, UsageError, "evaluate on 'moon': expected here, device or dask"),
        ("cpu", {"device": "board"}, UsageError, "device 'board': expected tcp://HOST:7433"),
        ("cpu", {"device": "tcp://127.0.0.1:1"}, EnvironmentFailure, "cannot be reached: Connection refused"),
        (
            "cpu:neoverse-n1",
            {},
            EnvironmentFailure,
            "target cpu:neoverse-n1: .*measure on one",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    target: str, options: dict, error: type[Exception], message: str, cache: ArtifactCache
) -> None:
    with pytest.raises(error, match=message):
        measuring(parse(target), cache=cache, **options)


@needs_avx512
def test_the_device_decides_what_is_compiled(restricted: str, cache: ArtifactCache) -> None:
    place = measuring(Target("cpu"), device=restricted, cache=cache)
    place.close()
    assert place.target.cpu.startswith("x86-64-v3")
    assert "avx512f" not in place.target.cpu
    assert place.target.kernels() == "avx2"
    assert place.runner is None  # what it runs, this processor runs too
    assert isinstance(place.timer, Device)
    assert re.fullmatch(rf"device {restricted}: .* processors, .*, IREE [\d.]+", place.timed_on)
    assert place.counted_on == ""
    both = measuring(Target("cpu"), device=restricted, evaluate_on="device", cache=cache)
    both.close()
    assert both.counted_on == both.timed_on == place.timed_on
    assert both.runner is both.timer is not None
    with pytest.raises(EnvironmentFailure, match=r"target cpu:cascadelake: .*avx512f.*, which device tcp://.* lacks"):
        measuring(parse("cpu:cascadelake"), device=restricted, cache=cache)


def test_a_processor_that_is_not_here_is_one_of_a_device(tmp_path: Path, cache: ArtifactCache) -> None:
    """What this machine refuses is measured where a device has that processor, the accuracy too."""
    with as_process(tmp_path / "store", tmp_path / "log", lacking=ARM) as (_, port):
        device = f"tcp://127.0.0.1:{port}"
        for named in ("cpu", "cpu:neoverse-n1"):
            place = measuring(parse(named), device=device, cache=cache)
            place.close()
            assert str(place.target) == "cpu:neoverse-n1"
            assert isinstance(place.timer, Device)
            assert place.runner is place.timer
        with pytest.raises(
            EnvironmentFailure, match=r"target cpu:neoverse-n1: .* this machine .*; evaluate on the device"
        ):
            measuring(parse("cpu:neoverse-n1"), device=device, evaluate_on="here", cache=cache)
        with pytest.raises(EnvironmentFailure, match=r"target cpu:neoverse-v1: .*i8mm.*, which device tcp://.* lacks"):
            measuring(parse("cpu:neoverse-v1"), device=device, cache=cache)
        shape = api.ModelOptions(shape=(3, 8, 8))
        artifact = api.quantize(_net(), "precision=f32", device=device, options=shape, cache=cache)
        assert artifact.provenance is not None
        assert artifact.provenance.target == "cpu:neoverse-n1"
        with pytest.raises(EnvironmentFailure, match=r"target cpu:cascadelake: .*, device tcp://.* is aarch64"):
            api.quantize(_net(), "precision=f32", target="cpu:cascadelake", device=device, options=shape, cache=cache)


@needs_avx512
@pytest.mark.slow
def test_a_search_for_another_processor(restricted: str, cache: ArtifactCache, tmp_path: Path) -> None:
    there = _search(tmp_path / "there", cache, device=restricted, evaluate_on="device", max_trials=2)
    assert there.artifact is not None
    assert there.artifact.provenance is not None
    needed = there.artifact.provenance.processor
    assert needed is not None
    assert "avx2" in needed.features
    assert not set(LACKING) & set(needed.features)
    here = _search(tmp_path / "here", cache, target=str(measured_target(restricted)), max_trials=2)
    assert [t.config for t in there.tuning.trials] == [t.config for t in here.tuning.trials]
    assert [t.score and t.score.accuracy for t in there.tuning.trials] == [
        t.score and t.score.accuracy for t in here.tuning.trials
    ]
    report = json.loads((tmp_path / "there" / "report.json").read_text())
    recipe = json.loads((tmp_path / "there" / "best.json").read_text())
    for named in (report["environment"]["timed on"], recipe["timed_on"], recipe["counted_on"]):
        assert named.startswith(f"device {restricted}: ")
        assert "another" in named
    with pytest.raises(UsageError, match="device"):  # another device: other times
        _search(tmp_path / "there", cache, target=str(measured_target(restricted)), max_trials=3)


def measured_target(device: str) -> Target:
    place = measuring(Target("cpu"), device=device, cache=ArtifactCache())
    place.close()
    return place.target


@needs_avx512
def test_an_artifact_that_needs_more_ends_in_one_line(
    restricted: str, cache: ArtifactCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two artifacts of one network: the device times the one for x86-64-v3, and refuses the one for this processor."""
    paths = {}
    for name, target in (("mine", "cpu"), ("level", "cpu:x86-64-v3")):
        artifact = api.quantize(
            _net(), "precision=f32", target=target, options=api.ModelOptions(shape=(3, 8, 8)), cache=cache
        )
        paths[name] = str(artifact.save(tmp_path / f"{name}.vmfb"))
    options = ["--device", restricted, "--min-time", "10ms", "--repetitions", "2"]
    assert benchmark_command.main([paths["mine"], *options]) == 4
    [line] = capsys.readouterr().err.splitlines()
    assert "avx512f" in line
    assert "compile for --target-cpu x86-64-v3" in line
    assert benchmark_command.main([paths["level"], *options, "--per-layer", "--json", str(tmp_path / "n.json")]) == 0
    told = json.loads((tmp_path / "n.json").read_text())
    assert told["machine"].endswith(f"IREE {processor_version()}")
    assert told["comparisons"][0]["timings"][0]["device"] == restricted
    assert [row["precision"] for row in told["layers"][0]] == [row.precision for row in load(paths["level"]).layers]
    assert all(row["ms"] > 0 for row in told["layers"][0])


def processor_version() -> str:
    from quantune.device.identity import runtime_version

    return runtime_version()


def test_what_a_named_processor_needs(cache: ArtifactCache) -> None:
    assert needed_processor(Target("cpu"), cache) is None
    assert needed_processor(Target("cpu"), cache, host=True) is not None
    found = needed_processor(parse("cpu:x86-64-v3+avx512f"), cache)
    assert found is not None
    assert {"avx2", "avx512f"} <= set(found.features)


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts a search as a process, in a folder of its own, on a device at a port."""
    np.savez(tmp_path / "all.npz", images=np.stack([x for x, _ in _pairs(60, 3)]), labels=np.arange(60) % 3)
    (tmp_path / "device_nets.py").write_text(
        "import torch\nfrom torch import nn\ndef tiny():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))\n"
    )
    command = [
        sys.executable, "-m", "quantune.cli.compile", "device_nets:tiny", "--calib", "npz:all.npz?count=8",
        "--eval", "npz:all.npz", "--max-drop", "1", "--max-trials", "3", "--objective", "latency", "-o", "out",
        "--evaluate-on", "device", "-q",
    ]  # fmt: skip

    def start(port: int, wait: int) -> subprocess.Popen:
        device = f"tcp://127.0.0.1:{port}?wait={wait}"
        return subprocess.Popen([*command, "--device", device], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return start


def _until_a_trial(store: Path, running: subprocess.Popen) -> None:
    while not list(store.glob("*.npz")):  # numbers: the first quantized trial is at work
        assert running.poll() is None


def _states(folder: Path) -> list[str]:
    return [trial["state"] for trial in json.loads((folder / "out" / "report.json").read_text())["trials"]]


@pytest.mark.slow
def test_a_search_goes_on_with_a_device_that_was_restarted(tmp_path: Path, search: Callable) -> None:
    """The device is killed within a trial and started again: one line, and the search ends as if nothing had been."""
    store, log = tmp_path / "store", tmp_path / "log"
    with as_process(store, log) as (server, port):
        running = search(port, wait=300)
        _until_a_trial(store, running)
        server.kill()
    with as_process(store, log, port=port):
        errors = running.communicate()[1]
    assert running.returncode == 0, errors
    assert f"device tcp://127.0.0.1:{port} went away" in errors
    assert _states(tmp_path) == ["complete"] * 5  # f32 and f16 are among them


@pytest.mark.slow
def test_a_search_resumes_when_the_device_comes_back(tmp_path: Path, search: Callable) -> None:
    """The device is killed within a trial: exit 4 in one line, nothing is counted as failed, and the search resumes."""
    store, log = tmp_path / "store", tmp_path / "log"
    with as_process(store, log) as (server, port):
        running = search(port, wait=2)
        _until_a_trial(store, running)
        server.kill()
        errors = running.communicate()[1]
    assert running.returncode == 4, errors
    assert f"device tcp://127.0.0.1:{port}" in errors.splitlines()[-1]
    with as_process(store, log) as (_, port):
        again = search(port, wait=2)
        errors = again.communicate()[1]
        assert again.returncode == 0, errors
    assert _states(tmp_path) == ["complete"] * 5  # f32 and f16 are among them
