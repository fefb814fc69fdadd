"""Devices: what a server elsewhere answers is what workers here answer, and whatever clients do, the server goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device_server import greet, in_thread

from quantune.artifact.provenance import Provenance, attach
from quantune.artifact.records import Processor
from quantune.compiler.inspect import required_processor
from quantune.compiler.iree import CompiledModule, compile_module
from quantune.compiler.targets import Target
from quantune.device import connection, identity, protocol
from quantune.device.address import Address
from quantune.device.client import Device
from quantune.device.protocol import PROTOCOL, Broken
from quantune.device.server import Limits
from quantune.errors import EnvironmentFailure, RunFailed, UsageError
from quantune.runtime.engines import LocalRunner
from quantune.runtime.host import this_host
from quantune.runtime.measure import Effort

EFFORT = Effort(repetitions=2, min_seconds=0.01, warmup_seconds=0)
SOURCE = b"""
func.func @main(%x: tensor<2x3x4x4xf32>) -> tensor<2x48xf32> {
  %y = tensor.collapse_shape %x [[0], [1, 2, 3]] : tensor<2x3x4x4xf32> into tensor<2x48xf32>
  %z = arith.mulf %y, %y : tensor<2x48xf32>
  return %z : tensor<2x48xf32>
}
"""
WITH_NUMBERS = b"""
module {
  util.global private @w = #flow.parameter.named<"model"::"w"> : tensor<2x48xf32>
  func.func @main(%x: tensor<2x3x4x4xf32>) -> tensor<2x48xf32> {
    %w = util.global.load @w : tensor<2x48xf32>
    %y = tensor.collapse_shape %x [[0], [1, 2, 3]] : tensor<2x3x4x4xf32> into tensor<2x48xf32>
    %z = arith.mulf %y, %w : tensor<2x48xf32>
    return %z : tensor<2x48xf32>
  }
}
"""
FOREVER = b"""
func.func @main(%x: tensor<1x1x2x2xf32>) -> tensor<1x4xf32> {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %many = arith.constant 1000000000000 : index
  %y = tensor.collapse_shape %x [[0], [1, 2, 3]] : tensor<1x1x2x2xf32> into tensor<1x4xf32>
  %z = scf.for %i = %c0 to %many step %c1 iter_args(%a = %y) -> tensor<1x4xf32> {
    %b = math.sin %a : tensor<1x4xf32>
    scf.yield %b : tensor<1x4xf32>
  }
  return %z : tensor<1x4xf32>
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledModule:
    return compile_module(SOURCE, Target("cpu"), output_dir=tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> CompiledModule:
    return compile_module(FOREVER, Target("cpu"), output_dir=tmp_path_factory.mktemp("endless"), explain=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((23, 3, 4, 4)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with in_thread(tmp_path_factory.mktemp("store")) as (_, address):
        yield address


@pytest.fixture
def device(address: Address) -> Iterator[Device]:
    device = Device(address)
    yield device
    device.close()


# What it answers


def test_it_says_what_it_is(device: Device) -> None:
    here = this_host()
    assert device.known.cpu == here.cpu
    assert dict(device.known.features) == here.features
    assert here.digest in device.identity
    assert device.target(Target("cpu")) == Target("cpu")  # the same processor


@pytest.mark.parametrize("chunk", [200, 1 << 20])
def test_it_gives_the_same_bits(
    device: Device, compiled: CompiledModule, images: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantune.device.client._CHUNK_BYTES", chunk)  # of 1 image, and of all
    with_local = LocalRunner()
    for first, end in ((0, 23), (3, 4), (5, 22)):
        expected = with_local.run(compiled.path, None, images, first, end)
        assert expected.shape == (end - first, 48)
        np.testing.assert_array_equal(device.run(compiled.path, None, images, first, end), expected)
    with_local.close()


def test_it_times(device: Device, compiled: CompiledModule, images: Path) -> None:
    samples, processor = device.compare([(compiled.path, None)] * 2, images, EFFORT, threads=1)
    assert [len(each.medians) for each in samples] == [2, 2]
    assert all(0 < each.minimum <= each.quartiles[0] for each in samples)
    assert processor in os.sched_getaffinity(0)
    assert device.time([(compiled.path, None)], images, EFFORT)[0].calls > 1
    assert device.memory(compiled.path, None, threads=1)["resident"] >= 0
    assert device.dispatch_times(compiled.path, min_seconds=0.01)


def test_it_runs_and_times_a_program_with_its_numbers(device: Device, images: Path, tmp_path: Path) -> None:
    program = compile_module(WITH_NUMBERS, Target("cpu"), output_dir=tmp_path, explain=False).path
    numbers = tmp_path / "numbers.npz"
    np.savez(numbers, w=np.full((2, 48), 3, np.float32))
    expected = 3 * np.load(images)[:5].reshape(5, 48)
    np.testing.assert_array_equal(device.run(program, numbers, images, 0, 5), expected)
    assert device.time([(program, numbers)], images, EFFORT)[0].minimum > 0
    with pytest.raises(RunFailed, match="needs its parameters"):
        device.time([(program, None)], images, EFFORT)


def test_what_was_sent_is_not_sent_again(
    device: Device, compiled: CompiledModule, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.run(compiled.path, None, images, 0, 23)
    monkeypatch.setattr(device, "_put", None)
    other = images.with_name("copy.npy")
    other.write_bytes(images.read_bytes())
    assert len(device.run(compiled.path, None, other, 0, 23)) == 23


def test_its_errors_name_the_files_here(device: Device, compiled: CompiledModule, images: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.vmfb"
    damaged.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(RunFailed, match=rf"^device tcp://.*: {damaged}: the file ends within its program"):
        device.run(damaged, None, images, 0, 1)
    np.save(tmp_path / "flat.npy", np.zeros((2, 5), np.float32))
    with pytest.raises(UsageError, match=r"flat\.npy: float32\[2, 5\]; the program takes float32\[2,3,4,4\]"):
        device.run(compiled.path, None, tmp_path / "flat.npy", 0, 2)
    assert len(device.run(compiled.path, None, images, 0, 1)) == 1  # and it goes on


def test_an_artifact_for_another_processor_is_refused(
    device: Device, compiled: CompiledModule, images: Path, tmp_path: Path
) -> None:
    needed = required_processor(compiled.dispatches)
    assert needed is not None
    for required, reason in (
        (dataclasses.replace(needed, architecture="riscv64"), "compiled for riscv64, this machine is"),
        (dataclasses.replace(needed, features=("fma4",)), r"with fma4, which this machine lacks"),
    ):
        path = tmp_path / f"{required.architecture}.vmfb"
        path.write_bytes(attach(compiled.path.read_bytes(), Provenance("cpu:host", processor=required)))
        with pytest.raises(EnvironmentFailure, match=rf"{path}: .*{reason}"):
            device.run(path, None, images, 0, 1)


def test_a_target_that_it_cannot_run_is_refused_before_anything_is_sent(device: Device) -> None:
    lacking = Processor(this_host().architecture, "k8", ("avx2", "fma4"))
    with pytest.raises(
        EnvironmentFailure, match=r"target cpu:k8: compiled for .* with fma4, which device tcp://.* lacks"
    ):
        device.check_target(Target("cpu", cpu="k8"), lacking)
    with pytest.raises(EnvironmentFailure, match="runs programs on local"):
        device.check_target(Target("cuda"), None)


# Who is let in


def test_versions_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(tmp_path) as (_, address):
        monkeypatch.setattr(connection, "runtime_version", lambda: "2.9.1")
        with pytest.raises(EnvironmentFailure, match=r"has IREE's runtime .*, programs are made for 2\.9\.1"):
            greet(address)
        monkeypatch.setattr(connection, "PROTOCOL", PROTOCOL + 1)
        with pytest.raises(EnvironmentFailure, match="speaks protocol 1, this quantune 2; install the same version"):
            greet(address)


def test_one_client_at_a_time(tmp_path: Path, compiled: CompiledModule, images: Path) -> None:
    told: list[str] = []
    with in_thread(tmp_path) as (_, address):
        first, second = Device(address), Device(dataclasses.replace(address, wait_s=30.0), on_note=told.append)
        assert len(first.run(compiled.path, None, images, 0, 2)) == 2
        with pytest.raises(EnvironmentFailure, match=r"is busy: it serves a client at 127\.0\.0\.1$"):
            greet(dataclasses.replace(address, wait_s=0.0))
        waiting = threading.Thread(target=lambda: second.run(compiled.path, None, images, 0, 2))
        waiting.start()
        _until(lambda: bool(told))
        first.close()
        waiting.join()
        second.close()
    assert told == [f"device {address} is busy: it serves a client at 127.0.0.1; waiting for it"]


def test_nobody_is_there(tmp_path: Path) -> None:
    with in_thread(tmp_path) as (_, address):
        pass
    with pytest.raises(EnvironmentFailure, match=r"device tcp://127.0.0.1:\d+ cannot be reached: Connection refused"):
        greet(address)


# What goes wrong meanwhile


def test_a_lost_connection_is_made_again(tmp_path: Path, compiled: CompiledModule, images: Path) -> None:
    told: list[str] = []
    with in_thread(tmp_path / "a") as (_, address):
        device = Device(dataclasses.replace(address, wait_s=30.0), on_note=told.append)
        expected = device.run(compiled.path, None, images, 0, 23)
        _drop(device)
        np.testing.assert_array_equal(device.run(compiled.path, None, images, 0, 23), expected)
    assert "went away" in told[0]
    with in_thread(tmp_path / "b", port=address.port):  # it comes again, without its files
        np.testing.assert_array_equal(device.run(compiled.path, None, images, 0, 23), expected)
        device.close()


def test_a_device_that_stays_away(tmp_path: Path, compiled: CompiledModule, images: Path) -> None:
    with in_thread(tmp_path) as (_, address):
        device = Device(address, on_note=lambda text: None)
        device.run(compiled.path, None, images, 0, 1)
    with pytest.raises(EnvironmentFailure, match="cannot be reached: Connection refused"):
        device.run(compiled.path, None, images, 0, 1)


def test_another_device_at_the_same_address(
    tmp_path: Path, compiled: CompiledModule, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_thread(tmp_path) as (_, address):
        device = Device(address, on_note=lambda text: None)
        device.run(compiled.path, None, images, 0, 1)
    other = dataclasses.replace(this_host(), name="Abacus", digest="other", cpu="x86-64-v2")
    monkeypatch.setattr(identity, "this_host", lambda: other)
    with in_thread(tmp_path, port=address.port):
        with pytest.raises(EnvironmentFailure, match=r"another device answers at .*: Abacus"):
            device.run(compiled.path, None, images, 0, 1)
        fresh = Device(address)
        assert fresh.target(Target("cpu")) == Target("cpu", cpu="x86-64-v2")
        assert fresh.target(Target("cpu", cpu="znver4")) == Target("cpu", cpu="znver4")
        fresh.close()


def test_a_device_that_dies_of_a_job_is_not_asked_for_ever(
    tmp_path: Path, compiled: CompiledModule, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pulled(request: dict) -> list[str]:
        raise protocol.Broken("the plug was pulled")

    told: list[str] = []
    with in_thread(tmp_path) as (running, address):
        monkeypatch.setattr(running, "_missing", pulled)
        device = Device(dataclasses.replace(address, wait_s=30.0), on_note=told.append)
        with pytest.raises(EnvironmentFailure, match="went away 3 times at the same job"):
            device.run(compiled.path, None, images, 0, 1)
    assert sum("went away" in line for line in told) == 2


def test_a_client_that_goes_away_takes_its_job_along(
    tmp_path: Path, endless: CompiledModule, compiled: CompiledModule, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quantune.device")
    np.save(tmp_path / "one.npy", np.zeros((1, 1, 2, 2), np.float32))
    with in_thread(tmp_path / "store", limits=Limits(timeout_s=60.0)) as (_, address):
        device = Device(address, on_note=lambda text: None)
        request = {"type": "run", "numbers": None, "first": 0, "end": 1, "program": device._offer(endless.path)}
        request["images"] = device._offer(tmp_path / "one.npy")
        channel = device._link._channel
        assert channel is not None
        channel.send(request)
        time.sleep(1.0)
        device.close()
        _until(lambda: "went away during a job" in caplog.text)
        other = Device(dataclasses.replace(address, wait_s=30.0))
        assert len(other.run(compiled.path, None, images, 0, 1)) == 1
        other.close()


def test_a_job_has_a_time_limit(tmp_path: Path, endless: CompiledModule) -> None:
    np.save(tmp_path / "one.npy", np.zeros((1, 1, 2, 2), np.float32))
    with in_thread(tmp_path / "store", limits=Limits(timeout_s=2.0)) as (_, address):
        device = Device(address)
        with pytest.raises(RunFailed, match=r"endless.*\.vmfb: the run took longer than 2 s"):
            device.run(endless.path, None, tmp_path / "one.npy", 0, 1)
        device.close()


def test_a_worker_that_is_killed_is_an_answer(
    tmp_path: Path, endless: CompiledModule, compiled: CompiledModule, images: Path
) -> None:
    np.save(tmp_path / "one.npy", np.zeros((1, 1, 2, 2), np.float32))
    with in_thread(tmp_path / "store", limits=Limits(timeout_s=60.0)) as (running, address):
        device = Device(address)

        def kill() -> None:
            workers = running._jobs._runner._workers
            _until(lambda: any(worker.pid for worker in workers))
            time.sleep(0.5)
            for worker in workers:
                if worker.pid is not None:
                    os.kill(worker.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(RunFailed, match="the run ended with SIGKILL") as killed:
            device.run(endless.path, None, tmp_path / "one.npy", 0, 1)
        killer.join()
        assert killed.value.transient  # a search tries it again
        assert len(device.run(compiled.path, None, images, 0, 1)) == 1
        device.close()


def test_an_upload_that_stops_halfway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with in_thread(tmp_path / "store") as (running, address):
        device = Device(address)
        assert device.known.processors
        channel = device._link._channel
        assert channel is not None
        data = os.urandom(1 << 20)
        request = {"type": "put", "sha256": hashlib.sha256(data).hexdigest(), "kind": ".npy"}
        with pytest.raises(Broken, match="a file became shorter"):
            channel.send(request, io.BytesIO(data[:1000]), len(data))
        device.close()
        _until(lambda: "closed the connection" in caplog.text)
        other = Device(dataclasses.replace(address, wait_s=30.0))
        assert other.known.processors
        other.close()
        assert running._store.size_bytes() == 0
        assert not list((tmp_path / "store").glob("*.partial"))


def _drop(device: Device) -> None:
    """Cut the connection as a network does."""
    assert device._link._channel is not None
    device._link._channel._socket.shutdown(socket.SHUT_RDWR)


def _until(holds: object, seconds: float = 60.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
