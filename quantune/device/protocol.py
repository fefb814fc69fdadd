"""The messages between a device and its client: framed, authenticated, bounded; nothing in them is code to unpack.

A message is a frame, and where it says so bytes behind it:

    magic (4) | length of the header (4) | length of the bytes (8) | HMAC (32) | header: a JSON object | bytes

A connection begins with two greetings that carry random numbers, and proofs: HMACs of both numbers with the token. The
token itself is never sent. From then on the HMAC of each frame has a key of this connection and direction and covers
the frame's number, so that nobody on the way can change, repeat or leave out one; the digest of the bytes is in the
header. What is sent can be read on the way: use a tunnel (ssh -L) where that matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from quantune.errors import QuantuneError

PROTOCOL = 1
MOST_HEADER = 1 << 16
MOST_DIGESTS = 256
"""Digests in one question: they fit into a header."""
BLOCK = 1 << 18
STALL_S = 30.0
"""A message that has begun and does not go on for so long ends the connection."""
_MAGIC = b"QTD1"
_PREFIX = struct.Struct(">4sIQ")
_MAC_BYTES = 32
_NONCE_BYTES = 16


class Broken(QuantuneError):
    """The connection cannot go on: it ended, stalled, or carries something that is no message."""


class Closed(Broken):
    """The other side ended the connection between two messages."""


class Channel:
    """One end of a connection. Sends and receives messages; every failure is Broken, whatever the bytes are."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(connection)
        self._keys = {"out": b"", "in": b""}
        self._counts = {"out": 0, "in": 0}

    def authenticate(self, token: str, own: str, other: str, *, is_server: bool) -> None:
        """Take the keys that follow from the token and the random numbers of both greetings."""
        server, client = (own, other) if is_server else (other, own)
        keys = [_derive(token, role, server, client) for role in ("from the server", "from the client")]
        self._keys = {"out": keys[not is_server], "in": keys[is_server]}

    def send(self, header: Mapping[str, Any], data: bytes | BinaryIO | None = None, size: int = 0) -> None:
        """Send a message. data: what goes behind the frame, or a file of which ``size`` bytes are read."""
        text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode()
        if len(text) > MOST_HEADER:
            raise Broken(f"a message of {len(text)} bytes; at most {MOST_HEADER} are allowed")
        length = len(data) if isinstance(data, bytes) else size
        prefix = _PREFIX.pack(_MAGIC, len(text), length)
        try:
            self._socket.settimeout(STALL_S)
            self._socket.sendall(prefix + self._mac("out", prefix, text) + text)
            for block in _blocks(data, length):
                self._socket.sendall(block)
        except OSError as error:
            raise Broken(_reason(error)) from error

    def receive(self, *, wait_s: float, most_bytes: int = 0) -> tuple[dict[str, Any], int]:
        """The next message's header, and how many bytes follow, which are to be read by `read` next.

        wait_s: how long to wait for its begin. most_bytes: how many bytes may follow it.
        """
        prefix = self._exactly(_PREFIX.size, wait_s, begins=True)
        magic, length, size = _PREFIX.unpack(prefix)
        if magic != _MAGIC:
            raise Broken("the other side does not speak this protocol")
        if length > MOST_HEADER or size > most_bytes:
            raise Broken(f"a message of {length} and {size} bytes; at most {MOST_HEADER} and {most_bytes} are allowed")
        mac, text = self._exactly(_MAC_BYTES, STALL_S), self._exactly(length, STALL_S)
        if not hmac.compare_digest(mac, self._mac("in", prefix, text)):
            raise Broken("a message has another key: it is not from whoever greeted")
        return _read(text), size

    def read(self, size: int, into: BinaryIO | None) -> str:
        """Copy ``size`` bytes to a file (or nowhere) and return their sha256.

        All are read even where the file cannot be written, which is raised at the end: the next message is behind them.
        """
        digest, left, failed = hashlib.sha256(), size, None
        while left:
            block = self._exactly(min(left, BLOCK), STALL_S)
            digest.update(block)
            left -= len(block)
            if into is not None and failed is None:
                try:
                    into.write(block)
                except OSError as error:
                    failed = error
        if failed is not None:
            raise failed
        return digest.hexdigest()

    def gone(self) -> bool:
        """Whether the other side has closed the connection, told without reading."""
        try:
            self._socket.settimeout(0)
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def cut(self) -> None:
        """End the connection from another thread: whoever reads or writes there is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _mac(self, direction: str, prefix: bytes, text: bytes) -> bytes:
        number = self._counts[direction]
        self._counts[direction] += 1
        return hmac.digest(self._keys[direction], number.to_bytes(8, "big") + prefix + text, "sha256")

    def _exactly(self, count: int, wait_s: float, *, begins: bool = False) -> bytes:
        """Read so many bytes: the first within ``wait_s``, the next never more than STALL_S apart."""
        parts, have = [], 0
        wait, deadline = wait_s, time.monotonic() + max(wait_s, STALL_S)
        while have < count:
            try:
                self._socket.settimeout(wait)
                part = self._socket.recv(min(count - have, BLOCK))
            except TimeoutError:
                raise Broken(f"nothing came for {wait:g} s") from None
            except OSError as error:
                raise Broken(_reason(error)) from error
            if not part:
                kind = Closed if begins and not have else Broken
                raise kind("the other side closed the connection")
            if time.monotonic() > deadline:
                raise Broken("a message came too slowly")
            parts.append(part)
            have += len(part)
            wait = STALL_S
        return b"".join(parts)


def nonce() -> str:
    """A random number for a greeting."""
    return secrets.token_hex(_NONCE_BYTES)


def proof(token: str, role: str, server: str, client: str) -> str:
    """What only someone who knows the token can say to both random numbers; roles differ, so that none can echo."""
    return _derive(token, f"proof of the {role}", server, client).hex()


def same(given: object, expected: str) -> bool:
    """Whether a proof is the expected one; takes the same time for every wrong one."""
    return isinstance(given, str) and hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def is_nonce(value: object) -> bool:
    """Whether a greeting's random number has the form of one."""
    return isinstance(value, str) and len(value) == 2 * _NONCE_BYTES and value.isascii() and value.isalnum()


def _derive(token: str, purpose: str, server: str, client: str) -> bytes:
    return hmac.digest(token.encode(), f"quantune-device {purpose}|{server}|{client}".encode(), "sha256")


def _blocks(data: bytes | BinaryIO | None, size: int) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
    elif data is not None:
        left = size
        while left:
            block = data.read(min(left, BLOCK))
            if not block:
                raise Broken("a file became shorter while it was sent")
            yield block
            left -= len(block)


def _read(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise Broken("a message is not JSON") from None
    if not isinstance(header, dict):
        raise Broken("a message is not a JSON object")
    return header


def _keep_alive(connection: socket.socket) -> None:
    """Notice within two minutes that the other machine is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(error: OSError) -> str:
    return f"the connection was lost: {error.strerror or error}"
