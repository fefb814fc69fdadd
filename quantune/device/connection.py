"""A client's connection to a device: greeted, asked, and made again when it is lost."""

from __future__ import annotations

import io
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from quantune import errors
from quantune.device.address import TOKEN, Address
from quantune.device.identity import runtime_version
from quantune.device.protocol import PROTOCOL, Broken, Channel, is_nonce, nonce, proof, same
from quantune.errors import EnvironmentFailure, QuantuneError, RunFailed, UsageError

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_GRACE_S = 30.0
_FIRST_PAUSE_S, _TOLD_S, _LAST_PAUSE_S = 0.0625, 0.5, 4.0
"""Seconds between attempts to connect, each time twice as many; a wait that gets so far is told."""
_MOST_LOSSES = 3
"""A job during which the connection is lost so often is not sent again: it may be what the device dies of."""
_MOST_ANSWER = 1 << 30
_DAY_S = 86400.0
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """What a device said when it was greeted; see quantune.device.identity. device: ``local``, or a driver or URI."""

    device: str
    name: str
    architecture: str
    cpu: str
    features: Mapping[str, bool]
    digest: str
    processors: int
    iree: str
    message_bytes: int
    timeout_s: float

    @classmethod
    def read(cls, welcome: Mapping[str, Any]) -> Known:
        """Take a device's welcome apart; ValueError when something is missing or is of another kind."""
        try:
            device, limits = welcome["device"], welcome["limits"]
            texts = {name: str(device[name]) for name in ("device", "name", "architecture", "cpu", "digest", "iree")}
            features = {str(name): bool(has) for name, has in device["features"].items()}
            known = cls(
                **texts,
                features=features,
                processors=int(device["processors"]),
                message_bytes=int(limits["message_bytes"]),
                timeout_s=float(limits["timeout_s"]),
            )
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if known.processors < 1 or known.message_bytes < 1 or not 0 < known.timeout_s <= _DAY_S:
            raise ValueError(f"{known.processors} processors, {known.message_bytes} bytes, {known.timeout_s} s")
        if not all(text.isprintable() for text in (*texts.values(), *features)):
            raise ValueError("names that cannot be printed")
        return known


class _Busy(Exception):
    """Another client has the device."""


class Connection:
    """Asks a device; connects at the first use, and again when the connection is lost.

    on_note hears, in one line, when it waits or connects again. Raises UsageError for a wrong token, EnvironmentFailure
    for a device that cannot be reached, is busy, is of another version or went away.
    """

    def __init__(self, address: Address, on_note: Callable[[str], None] = logger.warning) -> None:
        self.address, self._on_note = address, on_note
        self._channel: Channel | None = None
        self._known: Known | None = None

    @property
    def known(self) -> Known:
        """What the device is; it is greeted where it was not yet."""
        if self._known is None:
            self._connected()
        assert self._known is not None
        return self._known

    def close(self) -> None:
        """End the connection; the device is free for others."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def ask(self, request: Mapping[str, Any], data: bytes | None = None) -> dict[str, Any]:
        """Send a message and return what is answered; an error that the device answers is raised here."""
        channel = self._connected()
        channel.send(request, data)
        answer, size = channel.receive(wait_s=self.known.timeout_s + _GRACE_S, most_bytes=_MOST_ANSWER)
        answer.pop("data", None)  # only what comes behind a message is data
        if size:
            file = io.BytesIO()
            if channel.read(size, file) != answer.get("sha256"):
                raise Broken("an answer came damaged")
            answer["data"] = file.getvalue()
        if "error" in answer:
            raise self._told(answer)
        return answer

    def persistently(self, job: Callable[[], T]) -> T:
        """Do a job, again after a lost connection: that is told in one line, and bounded in number and time.

        Jobs may be repeated: they only compute, and files that the device lost meanwhile are sent again.
        """
        losses = 0
        while True:
            try:
                return job()
            except Broken as error:
                self.close()
                losses += 1
                if losses >= _MOST_LOSSES:
                    raise EnvironmentFailure(
                        f"device {self.address} went away {losses} times at the same job, the last time: {error}"
                    ) from error
                self._on_note(f"device {self.address} went away ({error}); connecting again")
            except QuantuneError:
                raise
            except BaseException:
                self.close()  # an interrupted job must not answer the next request
                raise

    def _connected(self) -> Channel:
        """The connection; made, and waited for where the device is busy or unreachable, if there is none."""
        if self._channel is not None:
            return self._channel
        deadline, pause, is_new = time.monotonic() + self.address.wait_s, _FIRST_PAUSE_S, self._known is None
        while True:
            try:
                self._channel = self._greet()
                return self._channel
            except _Busy as error:
                reason = f"is busy: {error}"
            except (OSError, Broken) as error:
                reason = f"cannot be reached: {getattr(error, 'strerror', None) or error}"
                if is_new and isinstance(error, ConnectionRefusedError | socket.gaierror):
                    deadline = 0.0  # it was never there
            if time.monotonic() + pause > deadline:
                raise EnvironmentFailure(f"device {self.address} {reason}")
            if pause == _TOLD_S:
                self._on_note(f"device {self.address} {reason}; waiting for it")
            time.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)

    def _greet(self) -> Channel:
        connection = socket.create_connection((self.address.host, self.address.port), _CONNECT_S)
        channel = Channel(connection)
        try:
            self._prove(channel)
            welcome, _ = channel.receive(wait_s=_CONNECT_S)
            if welcome.get("type") == "busy":
                raise _Busy(str(welcome.get("message")))
            if "error" in welcome:
                raise self._told(welcome)
            self._accept(welcome)
        except BaseException:
            channel.close()
            raise
        return channel

    def _prove(self, channel: Channel) -> None:
        """Exchange greetings and proofs: both sides know the token, and none has told it."""
        hello, _ = channel.receive(wait_s=_CONNECT_S)
        if "error" in hello:
            raise self._told(hello)
        other, token = hello.get("nonce"), self.address.token
        if hello.get("protocol") != PROTOCOL or not isinstance(other, str) or not is_nonce(other):
            raise EnvironmentFailure(
                f"device {self.address} speaks protocol {hello.get('protocol')!r:.20}, this quantune {PROTOCOL}; "
                "install the same version on both"
            )
        if bool(hello.get("token")) != bool(token):
            advice = "is it the right device?" if token else f"set {TOKEN} or ?token-file=FILE"
            raise UsageError(f"device {self.address} wants {'no' if token else 'a'} token; {advice}")
        own = nonce()
        given = proof(token, "client", other, own)
        channel.send({"type": "hello", "protocol": PROTOCOL, "nonce": own, "proof": given})
        answer, _ = channel.receive(wait_s=_CONNECT_S)
        if "error" in answer:
            raise self._told(answer)
        if not same(answer.get("proof"), proof(token, "server", other, own)):
            raise UsageError(f"device {self.address} does not know the token; is it the right device?")
        channel.authenticate(token, own, other, is_server=False)

    def _accept(self, welcome: Mapping[str, Any]) -> None:
        """Take what the device says of itself. Raises EnvironmentFailure when that does not fit."""
        try:
            known = Known.read(welcome)
        except ValueError as error:
            raise EnvironmentFailure(
                f"device {self.address} does not say what it is ({error}); install the same version on both"
            ) from error
        here = runtime_version()
        if known.iree.split(".")[:2] != here.split(".")[:2]:
            raise EnvironmentFailure(
                f"device {self.address} has IREE's runtime {known.iree}, programs are made for {here}; "
                "install the same version there"
            )
        if self._known is not None and (self._known.digest, self._known.name) != (known.digest, known.name):
            raise EnvironmentFailure(f"another device answers at {self.address}: {known.name}")
        self._known = known

    def _told(self, answer: Mapping[str, Any]) -> QuantuneError:
        """The error that the device answered."""
        kind = getattr(errors, str(answer["error"]), None)
        known = kind if isinstance(kind, type) and issubclass(kind, QuantuneError) else RunFailed
        return known(f"device {self.address}: {answer.get('message')}", transient=answer.get("transient") is True)
