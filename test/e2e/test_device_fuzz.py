"""Whatever arrives at a device's port, the server goes on, and its memory stays bounded; and so do clients."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_server import TOKEN, as_process
from fuzz import damaged

from quantune.compiler.targets import Target
from quantune.device import connection, protocol
from quantune.device.address import Address
from quantune.device.client import Device
from quantune.device.protocol import Broken, Channel
from quantune.device.server import Server
from quantune.errors import QuantuneError
from quantune.runtime.measure import Effort

FEW, MANY = 150, 3000
MOST_GROWTH = 64 << 20
VALUES = (
    None, True, -1, 0, 1 << 70, 1.5, float("inf"), "", "x" * 3000, "\ud800", "../../etc/passwd", "0" * 64, ".npy",
    [], [[]], [None] * 300, [["0" * 64, ".npy"]], [["0" * 64, None]], {}, {"a": {}},
)  # fmt: skip
REQUESTS = (
    {"type": "put", "sha256": "0" * 64, "kind": ".npy"},
    {"type": "missing", "files": [["0" * 64, ".vmfb"]]},
    {"type": "run", "program": "0" * 64, "numbers": None, "images": "0" * 64, "first": 0, "end": 1},
    {
        "type": "time", "programs": [["0" * 64, None]], "images": None, "threads": 1,
        "effort": {"repetitions": 1, "min_seconds": 0.01, "warmup_seconds": 0},
    },
    {"type": "memory", "program": "0" * 64, "images": None, "threads": 1},
    {"type": "signature", "program": "0" * 64},
    {"type": "dispatches", "program": "0" * 64, "seconds": 0.1},
    {"type": "renew"},
)  # fmt: skip

SAMPLE = {"quartiles": [1.0, 2.0, 3.0], "medians": [2.0, 2.0], "minimum": 1.0, "calls": 7, "tail": [4.0, 5.0]}
ANSWERS: dict[str, dict[str, Any]] = {
    "missing": {"missing": []},
    "put": {},
    "renew": {},
    "run": {"result": {}},
    "time": {"result": {"samples": [SAMPLE], "processor": 0}},
    "memory": {"result": {"resident": 5, "device": 0}},
    "signature": {"result": {"inputs": ["1x3x4x4xf32=1"]}},
    "dispatches": {"result": {"times": {"a": 0.5}}},
}
_file = io.BytesIO()
np.save(_file, np.zeros((2, 5), np.float32))
ROWS = _file.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen, Address, Path]]:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "token").write_text(TOKEN)
    options = ("--token-file", str(folder / "token"), "--max-size", "1MB", "--store-size", "4MB", "--timeout", "30")
    with as_process(folder / "store", folder / "log", *options) as (server, port):
        yield server, Address("127.0.0.1", port, TOKEN, wait_s=60.0), folder


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_messages_of_a_client(served: tuple[subprocess.Popen, Address, Path], count: int) -> None:
    """Messages of a client that knows the token: each gets an answer, or ends its connection."""
    server, address, folder = served
    rng = random.Random(count)
    before, device = _resident(server.pid), Device(address, on_note=lambda text: None)
    answered = ended = 0
    for _ in range(count):
        request, data = _mutated(rng)
        device.known  # noqa: B018 - connects
        channel = device._link._connected()
        try:
            _send(channel, rng, request, data)
            answer, size = channel.receive(wait_s=60.0, most_bytes=1 << 20)
            channel.read(size, None)
            assert set(answer) & {"error", "missing", "result"} or answer == {}
            answered += 1
        except Broken:
            ended += 1
            device.close()
    device.close()
    assert answered > count // 4
    assert ended > count // 20
    _is_well(server, address, folder, before)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_noise_of_strangers(tmp_path: Path, count: int) -> None:
    """Bytes of those who do not know the token, each from an address of its own: from one, a few are enough."""
    rng = random.Random(count)
    (tmp_path / "token").write_text(TOKEN)
    options = ("--token-file", str(tmp_path / "token"), "--max-size", "1MB", "--store-size", "4MB")
    with as_process(tmp_path / "store", tmp_path / "log", *options) as (server, port):
        before = _resident(server.pid)
        for number in range(count):
            own = f"127.1.{number // 250}.{number % 250 + 1}"
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", port), 30, source_address=(own, 0)) as stranger,
            ):
                greeting = stranger.recv(4096)
                stranger.sendall(_noise(rng, greeting))
                with contextlib.suppress(OSError):  # it may have closed the connection already
                    stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
        _is_well(server, Address("127.0.0.1", port, TOKEN, wait_s=60.0), tmp_path, before)


class _Liar(Server):
    """A server that greets as one does, says anything of itself, and answers anything."""

    rng = random.Random(0)

    def _greet_and_serve(self, channel: Channel, address: str) -> None:
        if self._greet(channel):
            welcome = {"type": "welcome", "device": self.description, "limits": asdict(self.limits)}
            channel.send(_changed(self.rng, welcome) if self.rng.random() < 0.2 else welcome)
            self._serve(channel)

    def _serve(self, channel: Channel) -> None:
        while True:
            request, size = channel.receive(wait_s=30.0, most_bytes=1 << 20)
            channel.read(size, None)
            header, data = ANSWERS.get(str(request["type"]), {}), b""
            if request["type"] == "run" or self.rng.random() < 0.05:
                data = damaged(ROWS, self.rng) if self.rng.random() < 0.8 else ROWS
                header = header | {"sha256": hashlib.sha256(data).hexdigest()}
            channel.send(_changed(self.rng, header) if self.rng.random() < 0.5 else header, data or None)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_mutated_answers_of_a_device(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that lies costs its client one line, whatever it says it is and whatever it answers."""
    rng = random.Random(count)
    _Liar.rng = random.Random(count)
    monkeypatch.setattr(connection, "_FIRST_PAUSE_S", 0.001)
    program, images = tmp_path / "a.vmfb", tmp_path / "images.npy"
    program.write_bytes(b"a program")
    np.save(images, np.zeros((2, 3, 4, 4), np.float32))
    files, effort = [(program, None)], Effort(1, 0.01, 0.0)
    jobs: tuple[Callable[[Device], object], ...] = (
        lambda device: device.run(program, None, images, 0, 2).sum(),
        lambda device: device.time(files, images, effort)[0].minimum + 1,
        lambda device: device.compare(files, None, effort, threads=1),
        lambda device: device.memory(program, images, threads=1)["resident"] + 1,
        lambda device: sum(device.dispatch_times(program, min_seconds=0.1).values()),
        lambda device: "".join(device.signature(program)),
        lambda device: f"{device.identity}{device.target(Target('cpu'))}",
        lambda device: device.renew(),
    )
    server = _Liar("127.0.0.1", 0, token=TOKEN, store=tmp_path / "store")
    thread = threading.Thread(target=server.serve)
    thread.start()
    kept, told = 0, []
    try:
        for _ in range(count):
            address = Address(*server.address, TOKEN, wait_s=0.0)
            with contextlib.closing(Device(address, on_note=lambda text: None)) as device:
                try:
                    rng.choice(jobs)(device)
                    kept += 1
                except QuantuneError as error:
                    told.append(str(error))
    finally:
        server.close()
        thread.join()
    assert min(kept, len(told)) > count // 10
    about = (str(program), str(images), str(Address(*server.address)))
    assert [line for line in told if not any(each in line for each in about) or len(line) > 100_000] == []


def _changed(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """A message with one to three of its values, anywhere in it, taken away or replaced."""
    message = copy.deepcopy(header)
    for _ in range(rng.randint(1, 3)):
        where: Any = message
        message.setdefault(name := rng.choice([*message, "error"]), None)
        key: Any = name
        while isinstance(where[key], dict | list) and where[key] and rng.random() < 0.8:
            where = where[key]
            key = rng.choice([*where] if isinstance(where, dict) else [*range(len(where))])
        if rng.random() < 0.2:
            del where[key]
        else:
            where[key] = copy.deepcopy(rng.choice(VALUES))
    return message


def _mutated(rng: random.Random) -> tuple[dict[str, Any], bytes]:
    request = json.loads(json.dumps(rng.choice(REQUESTS)))
    for _ in range(rng.randint(0, 3)):
        where = request
        name = rng.choice(list(where) or ["type"])
        if isinstance(where.get(name), dict) and rng.random() < 0.5:
            where = where[name]
            name = rng.choice(list(where) or ["x"])
        if rng.random() < 0.2:
            where.pop(name, None)
        else:
            where[name] = rng.choice(VALUES)
    data = (
        rng.randbytes(rng.choice((0, 0, 1, 1000, 70_000)))
        if request.get("type") == "put" or rng.random() < 0.1
        else b""
    )
    return request, data


def _send(channel: Channel, rng: random.Random, request: dict[str, Any], data: bytes) -> None:
    """Send a message, now and then one that is damaged on its way, cut, or longer than it says."""
    damage = rng.choice(("none",) * 6 + ("bit", "cut", "longer", "length"))
    if damage == "none":
        return channel.send(request, data or None)
    text = json.dumps(request).encode()
    size = rng.choice((len(data), 1 << 40, len(data) + 1)) if damage == "length" else len(data)
    prefix = protocol._PREFIX.pack(protocol._MAGIC, len(text), size)
    frame = bytearray(prefix + channel._mac("out", prefix, text) + text + data)
    if damage == "bit":
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
    sent = bytes(frame[: rng.randrange(len(frame))]) if damage == "cut" else bytes(frame)
    try:
        channel._socket.sendall(sent + (rng.randbytes(50) if damage == "longer" else b""))
        channel._socket.shutdown(socket.SHUT_WR)  # or a server would wait for the rest
    except OSError as error:
        raise Broken(str(error)) from error


def _noise(rng: random.Random, greeting: bytes) -> bytes:
    """Bytes that are no message, greetings that are none, and messages with lengths that lie."""
    header = rng.choice((
        b"", b"{", b"[]", b"null", b"[" * 20_000, b'{"nonce": 5}', b'{"protocol": 1, "nonce": "x"}', b"\xff\xfe",
        b"9" * 5000,
        json.dumps({"protocol": 1, "nonce": "0" * 32, "proof": rng.choice(VALUES)}).encode(),
    ))  # fmt: skip
    lengths = struct.pack(">4sIQ", b"QTD1", rng.choice((len(header), 0, 1 << 31)), rng.choice((0, 0, 1, 1 << 63)))
    return rng.choice((
        b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(rng.randrange(200)), greeting, lengths + rng.randbytes(32) + header,
        lengths + protocol.hmac.digest(b"", bytes(8) + lengths + header, "sha256") + header,
    ))  # fmt: skip


def _is_well(server: subprocess.Popen, address: Address, folder: Path, before: int) -> None:
    assert server.poll() is None
    with contextlib.closing(Device(address, on_note=lambda text: None)) as device:
        assert device.known.processors > 0
    assert _resident(server.pid) - before < MOST_GROWTH
    assert "Traceback" not in (folder / "log").read_text()
    files = [path for path in (folder / "store").iterdir() if path.name != "lock"]
    assert sum(path.stat().st_size for path in files) <= 4e6


def _resident(pid: int) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024
