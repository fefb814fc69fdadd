"""Who is let in by a device server, and what a token protects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from device_server import TOKEN, greet, in_thread

from quantune.device import server
from quantune.device.protocol import Channel
from quantune.device.server import Server
from quantune.errors import EnvironmentFailure, QuantuneError, UsageError


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        ("another horse battery staple", UsageError, "the token is wrong"),
        ("", UsageError, "wants a token; set QUANTUNE_DEVICE_TOKEN"),
    ],
)
def test_a_wrong_token(tmp_path: Path, token: str, error: type[QuantuneError], message: str) -> None:
    with (
        in_thread(tmp_path) as (_, address),
        pytest.raises(error, match=message),
    ):
        greet(dataclasses.replace(address, token=token))


def test_a_token_where_none_is_asked_for(tmp_path: Path) -> None:
    with in_thread(tmp_path, token=None) as (_, address):
        with pytest.raises(UsageError, match="wants no token; is it the right device"):
            greet(dataclasses.replace(address, token=TOKEN))
        assert greet(address).processors > 0


def test_a_server_that_does_not_know_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "same", lambda given, expected: True)  # it lets everybody in
    with (
        in_thread(tmp_path, token="what somebody else made up") as (_, address),
        pytest.raises(UsageError, match="does not know the token"),
    ):
        greet(dataclasses.replace(address, token=TOKEN))


def test_the_token_is_not_on_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bytearray()
    sendall = Channel.send

    def spy(self: Channel, header: dict, data: bytes | None = None) -> None:
        seen.extend(repr(header).encode() + (data or b""))
        sendall(self, header, data)

    monkeypatch.setattr(Channel, "send", spy)
    with in_thread(tmp_path) as (_, address):
        assert greet(address).iree
    assert b"proof" in seen
    assert TOKEN.encode() not in seen


def test_too_many_wrong_tokens(tmp_path: Path) -> None:
    with in_thread(tmp_path) as (_, address):
        wrong = dataclasses.replace(address, token="another horse battery staple")
        for _ in range(5):
            with pytest.raises(UsageError, match="the token is wrong"):
                greet(wrong)
        with pytest.raises(EnvironmentFailure, match="too many wrong tokens; try again in a minute"):
            greet(address)


@pytest.mark.parametrize(
    ("host", "token", "message"),
    [
        ("0.0.0.0", None, "without a token would let anybody run programs here"),
        ("::", None, "without a token would let anybody run programs here"),
        ("127.0.0.1", "short", "the token has 5 letters; expected 16 or more"),
        ("no.such.host.invalid", TOKEN, "address no.such.host.invalid:0"),
    ],
)
def test_places_and_tokens_that_are_refused(tmp_path: Path, host: str, token: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Server(host, 0, token=token, store=tmp_path)
