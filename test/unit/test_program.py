from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantune.artifact.provenance import Provenance, attach
from quantune.artifact.records import Processor
from quantune.compiler import iree
from quantune.compiler.inspect import required_processor
from quantune.compiler.targets import Target
from quantune.errors import EnvironmentFailure, RunFailed, UsageError
from quantune.runtime import devices
from quantune.runtime.artifact import Artifact, load
from quantune.runtime.child import Worker, evaluate
from quantune.runtime.measure import Effort
from quantune.runtime.program import Program, read_parameters

# Two images a call: twice the sum of each image, next to the sum of its absolute values.
MODULE = b"""
#id = affine_map<(n, c, h, w) -> (n, c, h, w)>
#sum = affine_map<(n, c, h, w) -> (n)>
func.func @main(%x: tensor<2x1x2x2xf32>) -> tensor<2x2xf32> {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<2xf32>
  %i = linalg.fill ins(%zero : f32) outs(%e : tensor<2xf32>) -> tensor<2xf32>
  %s:2 = linalg.generic {indexing_maps = [#id, #sum, #sum],
      iterator_types = ["parallel", "reduction", "reduction", "reduction"]}
      ins(%x : tensor<2x1x2x2xf32>) outs(%i, %i : tensor<2xf32>, tensor<2xf32>) {
  ^bb0(%a: f32, %p: f32, %q: f32):
    %d = arith.addf %a, %a : f32
    %b = math.absf %a : f32
    %0 = arith.addf %p, %d : f32
    %1 = arith.addf %q, %b : f32
    linalg.yield %0, %1 : f32, f32
  } -> (tensor<2xf32>, tensor<2xf32>)
  %l = tensor.expand_shape %s#0 [[0, 1]] output_shape [2, 1] : tensor<2xf32> into tensor<2x1xf32>
  %r = tensor.expand_shape %s#1 [[0, 1]] output_shape [2, 1] : tensor<2xf32> into tensor<2x1xf32>
  %o = tensor.concat dim(1) %l, %r : (tensor<2x1xf32>, tensor<2x1xf32>) -> tensor<2x2xf32>
  return %o : tensor<2x2xf32>
}
"""
WITH_PARAMETER = b"""
util.global private @w = #flow.parameter.named<"model"::"layer.w"> : tensor<4xi8>
func.func @main(%x: tensor<4xi8>) -> (tensor<4xi8>, tensor<4xi8>) {
  %w = util.global.load immutable @w : tensor<4xi8>
  %0 = arith.addi %x, %w : tensor<4xi8>
  %1 = arith.subi %x, %w : tensor<4xi8>
  return %0, %1 : tensor<4xi8>, tensor<4xi8>
}
"""
RANDOM = np.random.default_rng(0)


def expected(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1)
    return np.stack([2 * flat.sum(1), np.abs(flat).sum(1)], 1)


@pytest.fixture(scope="module", name="compiled")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> iree.CompiledModule:
    return iree.compile_module(MODULE, Target("cpu"), output_dir=tmp_path_factory.mktemp("sum"))


@pytest.fixture(scope="module", name="with_parameter")
def _with_parameter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return iree.compile_module(WITH_PARAMETER, Target("cpu"), output_dir=tmp_path_factory.mktemp("add")).path


@pytest.fixture(name="images")
def _images(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", RANDOM.standard_normal((5, 1, 2, 2)).astype(np.float32))
    return tmp_path / "images.npy"


@pytest.mark.parametrize("as_bytes", [False, True])
def test_call(compiled: iree.CompiledModule, as_bytes: bool) -> None:
    program = Program(compiled.path.read_bytes() if as_bytes else compiled.path)
    x = RANDOM.standard_normal((2, 1, 2, 2)).astype(np.float32)
    first = program(x)
    kept = np.copy(first)
    program(x * 2)
    assert np.array_equal(first, kept)  # a result is not overwritten by the next call
    assert np.allclose(first, expected(x), rtol=1e-5)
    assert [str(kind) for kind in (*program.inputs, *program.outputs)] == ["float32[2,1,2,2]", "float32[2,2]"]
    assert program(x[:, :, ::-1]).shape == (2, 2)  # strided views are fine


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.zeros((1, 1, 2, 2), np.float32),), r"input 0: expected float32\[2,1,2,2\], got float32\[1,1,2,2\]"),
        ((np.zeros((2, 1, 2, 2)),), r"expected float32\[2,1,2,2\], got float64\[2,1,2,2\]"),
        ((), "expected 1 inputs, got 0"),
    ],
    ids=["shape", "type", "none"],
)
def test_wrong_inputs(compiled: iree.CompiledModule, arrays: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Program(compiled.path)(*arrays)


def test_parameters(with_parameter: Path, tmp_path: Path) -> None:
    x = np.array([1, 2, 3, 4], np.int8)
    for w in (np.array([5, 6, 7, 8], np.int8), np.array([-1, 0, 1, 2], np.int8)):
        named = {"layer.w": w, "unused": w}
        np.savez(tmp_path / "p.npz", allow_pickle=False, **named)
        for parameters in (named, tmp_path / "p.npz"):
            total, difference = Program(with_parameter, parameters=parameters)(x)
            assert np.array_equal(total, x + w)
            assert np.array_equal(difference, x - w)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "needs its parameters"),
        ({"other": np.zeros(4, np.int8)}, r"a parameter is missing.*layer\.w"),
        ({"layer.w": np.zeros(3, np.int8)}, "another size"),
    ],
)
def test_missing_parameters(with_parameter: Path, parameters: dict[str, np.ndarray] | None, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        Program(with_parameter, parameters=parameters)


def test_bad_parameter_file(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"garbage")
    for name, message in (("x.npz", "not an .npz file"), ("y.npz", "no such file")):
        with pytest.raises(UsageError, match=message):
            read_parameters(tmp_path / name)


def test_bad_programs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Program(tmp_path / "none.vmfb")
    for data in (b"", b"garbage" * 40):
        (tmp_path / "x.vmfb").write_bytes(data)
        with pytest.raises(RunFailed, match=r"x\.vmfb: not a compiled program, or a damaged one"):
            Program(tmp_path / "x.vmfb")


def test_devices(compiled: iree.CompiledModule) -> None:
    with pytest.raises(UsageError, match="device 'gpu': expected one of local-sync"):
        Program(compiled.path, device="gpu")
    with pytest.raises(UsageError, match="one thread, not 2"):
        Program(compiled.path, threads=2)
    if devices.has_device("cuda"):
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(EnvironmentFailure, match=r"no cuda device for 'cuda': .*libcuda\.so.*install"):
        Program(compiled.path, device="cuda")


def test_no_vulkan(
    compiled: iree.CompiledModule, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", str(tmp_path / "none.json"))
    with pytest.raises(EnvironmentFailure, match=r"no vulkan device for 'vulkan': .*install"):
        evaluate(compiled.path, images, device="vulkan")


def _artifact(compiled: iree.CompiledModule, processor: Processor | None = None) -> bytes:
    record = Provenance("cpu:host", "precision=f32", processor=processor or required_processor(compiled.dispatches))
    return attach(compiled.path.read_bytes(), record)


def test_artifact_round_trip(compiled: iree.CompiledModule, tmp_path: Path, images: Path) -> None:
    path = Artifact(_artifact(compiled)).save(tmp_path / "a.vmfb")
    artifact = load(path)
    x = np.ones((2, 1, 2, 2), np.float32)
    assert np.array_equal(artifact(x), expected(x))
    assert artifact.size_bytes == path.stat().st_size
    assert str(artifact.config) == "precision=f32"
    assert artifact.provenance is not None
    assert artifact.provenance.processor is not None
    assert artifact.provenance.processor.features
    # IREE's own loader, which maps the file, takes it with its trailer.
    assert np.allclose(evaluate(path, images).logits, expected(np.load(images)), rtol=1e-5)


def test_damaged_artifact(compiled: iree.CompiledModule, tmp_path: Path) -> None:
    data = bytearray(_artifact(compiled))
    data[len(data) // 3] ^= 4
    (tmp_path / "a.vmfb").write_bytes(data)
    with pytest.raises(RunFailed, match=r"a\.vmfb: the program is damaged"):
        load(tmp_path / "a.vmfb")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.vmfb")


def test_plain_vmfb_is_usable(compiled: iree.CompiledModule, caplog: pytest.LogCaptureFixture) -> None:
    artifact = load(compiled.path)
    assert "no provenance" in caplog.text
    assert (artifact.provenance, artifact.config, artifact.layers) == (None, None, ())
    assert artifact(np.ones((2, 1, 2, 2), np.float32)).shape == (2, 2)


def test_another_processor_is_refused(compiled: iree.CompiledModule, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = required_processor(compiled.dispatches)
    assert needed is not None
    other = {"x86_64": "aarch64"}.get(needed.architecture, "x86_64")
    with pytest.raises(EnvironmentFailure, match=f"artifact: compiled for {other}"):
        Artifact(_artifact(compiled, replace(needed, architecture=other))).program  # noqa: B018
    monkeypatch.setattr(devices, "host_features", lambda: {"avx2": True, "avx9": False})
    strange = replace(needed, features=("avx2", "avx9", "not-known-to-the-runtime"))
    with pytest.raises(EnvironmentFailure, match="with avx9, which this machine lacks"):
        Artifact(_artifact(compiled, strange)).program  # noqa: B018


def test_a_target_that_is_not_known_runs_nowhere_by_default(compiled: iree.CompiledModule) -> None:
    data = attach(compiled.path.read_bytes(), Provenance("npu:v2", "precision=f32"))
    with pytest.raises(RunFailed, match="artifact: made for target 'npu:v2', which this version does not know"):
        Artifact(data)
    assert Artifact(data, device="local-sync")(np.ones((2, 1, 2, 2), np.float32)).shape == (2, 2)


def test_evaluate_pads_the_last_batch(compiled: iree.CompiledModule, images: Path) -> None:
    result = evaluate(compiled.path, images)
    assert np.allclose(result.logits, expected(np.load(images)), rtol=1e-5)
    assert result.timing is None


def test_worker_serves_many_jobs(
    compiled: iree.CompiledModule, with_parameter: Path, images: Path, tmp_path: Path
) -> None:
    whole = expected(np.load(images))
    (tmp_path / "bad.npy").write_bytes(b"garbage")
    np.save(tmp_path / "small.npy", np.zeros((3, 1, 2, 1), np.float32))
    with Worker() as worker:
        effort = Effort(repetitions=2, min_seconds=0.01, warmup_seconds=0)
        part = worker.evaluate(compiled.path, images, first=1, count=3, effort=effort)
        assert np.allclose(part.logits, whole[1:4], rtol=1e-5)
        assert part.timing is not None
        assert len(part.timing.medians) == 2
        assert 0 < part.timing.minimum <= part.timing.quartiles[1]
        pid = worker.pid
        for bad, message in (
            ("bad.npy", "not an .npy file"),
            ("small.npy", r"small\.npy: float32\[3, 1, 2, 1\]; the program takes float32\[2,1,2,2\]"),
            ("none.npy", "no such file"),
        ):
            with pytest.raises(UsageError, match=message):
                worker.evaluate(compiled.path, tmp_path / bad)
        with pytest.raises(UsageError, match="no image at 5; the file holds 5"):
            worker.evaluate(compiled.path, images, first=5)
        with pytest.raises(RunFailed, match="needs its parameters"):
            worker.evaluate(with_parameter, images)
        assert worker.pid == pid  # bad jobs do not cost the process
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RunFailed, match="ended with SIGKILL"):
            worker.evaluate(compiled.path, images)
        assert np.allclose(worker.evaluate(compiled.path, images).logits, whole, rtol=1e-5)


def test_no_space_for_results(compiled: iree.CompiledModule, images: Path, tmp_path: Path) -> None:
    (tmp_path / "full.npy").symlink_to("/dev/full")
    job = {"job": "evaluate", "program": str(compiled.path), "parameters": None, "images": str(images), "first": 0,
           "count": 5, "effort": None, "output": str(tmp_path / "full.npy")}  # fmt: skip
    with Worker() as worker, pytest.raises(EnvironmentFailure, match=r"no space left in .*set TMPDIR to a folder"):
        worker.request(job)


def test_a_long_run_is_stopped(compiled: iree.CompiledModule, images: Path) -> None:
    with Worker() as worker:
        worker.evaluate(compiled.path, images)
        started = time.monotonic()
        with pytest.raises(RunFailed, match=r"took longer than 0\.5 s"):
            worker.evaluate(compiled.path, images, effort=Effort(min_seconds=600), timeout_s=0.5)
        assert time.monotonic() - started < 300
        assert len(worker.evaluate(compiled.path, images).logits) == 5


@pytest.mark.parametrize(
    ("body", "timeout_s", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", 60, r"x\.vmfb: the run ended with SIGSEGV"),
        ("import sys; input(); sys.exit('gone wrong')", 60, "ended with exit status 1: gone wrong"),
        ("input(); import time; time.sleep(600)", 1, "took longer than 1 s"),
    ],
    ids=["crash", "exit", "hang"],
)
def test_bad_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, timeout_s: float, message: str
) -> None:
    shim = tmp_path / "python"
    shim.write_text(f"#!{sys.executable} -S\n{body}\n")
    shim.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shim))
    with Worker(timeout_s=timeout_s) as worker, pytest.raises(RunFailed, match=message):
        worker.evaluate("x.vmfb", "images.npy")


def test_memory_limit(tmp_path: Path) -> None:
    module = MODULE.replace(b"2x1x2x2xf32", b"2x1x16384x16384xf32")
    program = iree.compile_module(module, Target("cpu"), output_dir=tmp_path).path
    images = np.lib.format.open_memmap(tmp_path / "i.npy", "w+", np.float32, (1, 1, 16384, 16384))
    del images
    with (
        Worker(memory_limit=2 << 30) as worker,
        pytest.raises(RunFailed, match=r"its memory limit is 2\.1 GB, --memory-li"),
    ):
        worker.evaluate(program, tmp_path / "i.npy")


@pytest.mark.vulkan
def test_vulkan(tmp_path: Path, images: Path) -> None:
    if not devices.has_device("vulkan"):
        pytest.skip("no Vulkan device")
    program = iree.compile_module(MODULE, Target("vulkan"), output_dir=tmp_path).path
    assert np.allclose(evaluate(program, images, device="vulkan").logits, expected(np.load(images)), rtol=1e-5)


def test_programs_are_timed_with_their_parameters(compiled: iree.CompiledModule, images: Path, tmp_path: Path) -> None:
    effort = Effort(repetitions=2, min_seconds=0.01, warmup_seconds=0)
    body = b"""
module {
  util.global private @w = #flow.parameter.named<"model"::"w"> : tensor<2x2xf32>
  func.func @main(%x: tensor<2x1x2x2xf32>) -> tensor<2x2xf32> {
    %w = util.global.load @w : tensor<2x2xf32>
    return %w : tensor<2x2xf32>
  }
}
"""
    program = iree.compile_module(body, Target("cpu"), output_dir=tmp_path).path
    np.savez(tmp_path / "w.npz", w=np.ones((2, 2), np.float32))
    with Worker() as worker:
        worker.start()
        pid = worker.pid
        samples, _ = worker.compare([(compiled.path, None), (program, tmp_path / "w.npz")], images, effort)
        assert len(samples) == 2
        assert all(len(sample.medians) == 2 and sample.minimum > 0 for sample in samples)
        assert worker.pid == pid
        with pytest.raises(RunFailed, match="needs its parameters"):
            worker.compare([(program, None)], images, effort)
        worker.stop()
        assert len(worker.evaluate(program, images, parameters=tmp_path / "w.npz").logits) == 5
