"""A device server: one process, one port, one client at a time. It runs artifacts; it compiles nothing.

A connection that is not understood ends with one line in the log. A program that crashes, hangs or eats memory does so
in a child process and is an answer to whoever sent it.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quantune.device.identity import describe
from quantune.device.jobs import LOCAL, Answer, Jobs
from quantune.device.protocol import MOST_DIGESTS, PROTOCOL, Broken, Channel, Closed, is_nonce, nonce, proof, same
from quantune.device.store import Store
from quantune.errors import EnvironmentFailure, QuantuneError, RunFailed, UsageError

logger = logging.getLogger(__name__)

FEWEST_TOKEN_LETTERS = 16
_GREETING_S = 10.0
_MOST_CONNECTIONS = 16
_WRONG_ALLOWED, _WRONG_WINDOW_S, _MOST_ADDRESSES = 5, 60.0, 1024
_WATCH_S = 0.2


@dataclass(frozen=True)
class Limits:
    """What a client may ask for: bytes of one message and of all files kept, seconds of a job and of silence."""

    message_bytes: int = 256 << 20
    store_bytes: int = 4 << 30
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.message_bytes <= self.store_bytes:
            raise UsageError(
                f"messages of {self.message_bytes} bytes and a store of {self.store_bytes}: "
                "expected a store that holds the largest message"
            )
        if not 0 < self.timeout_s <= 86400:
            raise UsageError(f"a time limit of {self.timeout_s:g} s: expected more than 0, at most a day")


class Server:
    """Listens on a port and serves one client after the other; made, then `serve`, then `close`.

    token: what a client must know; None only where nobody from outside can connect. Raises UsageError for a token that
    is missing or too short, EnvironmentFailure when the port cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: str | None,
        store: Path,
        limits: Limits | None = None,
        device: str = LOCAL,
        memory_limit: str | None = None,
    ) -> None:
        self.limits = limits or Limits()
        if device.startswith("local-"):
            raise UsageError(f"device {device}: without one, programs run on the processor")
        if token is not None and len(token) < FEWEST_TOKEN_LETTERS:
            raise UsageError(f"the token has {len(token)} letters; expected {FEWEST_TOKEN_LETTERS} or more")
        self._token = token
        self._listener = _listen(host, port, anyone=token is None)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.has_token = token is not None
        with contextlib.ExitStack() as given_back:
            given_back.callback(self._listener.close)
            self._store = Store(store, self.limits.store_bytes)
            given_back.callback(self._store.close)
            self.description = describe(device)
            timeout_s = self.limits.timeout_s
            self._jobs = Jobs(self._store, device=device, timeout_s=timeout_s, memory_limit=memory_limit)
            given_back.pop_all()
        self._serving = threading.Lock()
        self._client = ""
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._wrong: dict[str, list[float]] = {}
        self._channels: set[Channel] = set()
        self._closing = False

    def serve(self) -> None:
        """Serve until `close`, from any thread, or an exception such as KeyboardInterrupt."""
        while not self._closing:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                logger.warning("no connection could be taken: %s", error.strerror or error)
                time.sleep(0.1)  # such as too many open files: it passes, or it does not
                continue
            threading.Thread(target=self._connection, args=(connection, address[0]), daemon=True).start()

    def close(self) -> None:
        """End the children and give back port and store."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for a connection
        self._listener.close()
        for channel in tuple(self._channels):
            channel.cut()
        with self._serving:  # the one that served has ended
            self._jobs.close()
            self._store.close()

    def _connection(self, connection: socket.socket, address: str) -> None:
        """Greet, and serve until the client goes; nothing that happens here ends the server."""
        with contextlib.closing(connection):
            if not self._places.acquire(blocking=False):
                logger.warning("%s: too many connections; this one was closed", address)
                return
            channel = Channel(connection)
            self._channels.add(channel)
            try:
                self._greet_and_serve(channel, address)
            except Closed:
                logger.info("%s: the client left", address)
            except Broken as error:
                logger.warning("%s: %s", address, error)
            except Exception:
                logger.exception("%s: the connection failed", address)
            finally:
                self._channels.discard(channel)
                self._places.release()

    def _greet_and_serve(self, channel: Channel, address: str) -> None:
        if self._is_blocked(address):
            channel.send(_failure(EnvironmentFailure("too many wrong tokens; try again in a minute")))
            return
        try:
            greeted = self._greet(channel)
        except Broken:
            self._note_wrong(address)
            raise
        if not greeted:
            self._note_wrong(address)
            logger.warning("%s: a wrong token", address)
            return
        with self._alone(channel, address) as alone:
            if alone:
                logger.info("%s: a client is here", address)
                channel.send({"type": "welcome", "device": self.description, "limits": asdict(self.limits)})
                self._serve(channel)

    def _greet(self, channel: Channel) -> bool:
        """Exchange greetings and proofs; whether the client knows the token."""
        own, token = nonce(), self._token or ""
        channel.send({"type": "hello", "protocol": PROTOCOL, "nonce": own, "token": bool(token)})
        hello, _ = channel.receive(wait_s=_GREETING_S)
        other = hello.get("nonce")
        if hello.get("protocol") != PROTOCOL or not isinstance(other, str) or not is_nonce(other):
            raise Broken(f"a greeting of protocol {hello.get('protocol')!r:.20}; this server speaks {PROTOCOL}")
        if not same(hello.get("proof"), proof(token, "client", own, other)):
            channel.send(_failure(UsageError("the token is wrong")))
            return False
        channel.send({"type": "proof", "proof": proof(token, "server", own, other)})
        channel.authenticate(token, own, other, is_server=True)
        return True

    @contextlib.contextmanager
    def _alone(self, channel: Channel, address: str) -> Iterator[bool]:
        """Give the block the device to itself; False, and the client is told, while another has it."""
        if not self._serving.acquire(blocking=False):
            channel.send({"type": "busy", "message": f"it serves a client at {self._client}"})
            yield False
            return
        self._client = address
        try:
            yield not self._closing
        finally:
            try:
                self._jobs.stop()
            finally:
                self._serving.release()

    def _serve(self, channel: Channel) -> None:
        while True:
            request, size = channel.receive(wait_s=self.limits.timeout_s, most_bytes=self.limits.message_bytes)
            kind = request.get("type")
            try:
                if kind == "put":
                    self._put(channel, request, size)
                elif size:
                    raise Broken(f"a message {kind!r:.40} with {size} bytes behind it")
                elif kind == "missing":
                    channel.send({"missing": self._missing(request)})
                elif kind == "renew":
                    self._jobs.stop()
                    channel.send({})
                else:
                    self._answer(channel, request)
            except Broken:
                raise
            except QuantuneError as error:
                channel.send(_failure(error, self._store.folder))
            except Exception as error:  # a mistake of ours costs one job
                logger.exception("a job failed")
                channel.send(_failure(RunFailed(f"the device failed: {type(error).__name__}")))

    def _put(self, channel: Channel, request: dict[str, Any], size: int) -> None:
        """Store what follows the message. All of it is read, whatever becomes of it: the next message is behind it."""
        taken = False

        def write(stream: BinaryIO) -> str:
            nonlocal taken
            taken = True
            return channel.read(size, stream)

        try:
            self._store.add(str(request.get("sha256")), str(request.get("kind")), size, write)
        except QuantuneError as error:
            if not taken and not isinstance(error, Broken):
                channel.read(size, None)
            raise
        channel.send({})

    def _missing(self, request: dict[str, Any]) -> list[str]:
        files = request.get("files")
        if not isinstance(files, list) or len(files) > MOST_DIGESTS:
            raise UsageError(f"a question for more than {MOST_DIGESTS} files, or for none")
        if not all(isinstance(each, list) and len(each) == 2 for each in files):
            raise UsageError("a question for what are no pairs of a digest and a kind")
        return [digest for digest, kind in files if self._store.find(digest, kind) is None]

    def _answer(self, channel: Channel, request: dict[str, Any]) -> None:
        """Do a job while watching the connection: a client that goes away takes its job with it."""
        outcome: list[Answer | Exception] = []

        def work() -> None:
            try:
                outcome.append(self._jobs(request))
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_WATCH_S)
            if thread.is_alive() and channel.gone():
                self._jobs.stop()
                thread.join()
                raise Broken("the client went away during a job")
        result = outcome[0]
        if isinstance(result, Exception):
            raise result
        answer, data = result
        header = {"result": answer} if data is None else {"result": answer, "sha256": hashlib.sha256(data).hexdigest()}
        channel.send(header, data)

    def _is_blocked(self, address: str) -> bool:
        recent = [at for at in self._wrong.get(address, ()) if time.monotonic() - at < _WRONG_WINDOW_S]
        return len(recent) >= _WRONG_ALLOWED

    def _note_wrong(self, address: str) -> None:
        now = time.monotonic()
        recent = [at for at in self._wrong.pop(address, ()) if now - at < _WRONG_WINDOW_S]
        self._wrong[address] = [*recent[-_WRONG_ALLOWED:], now]
        while len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.pop(next(iter(self._wrong)))


def _listen(host: str, port: int, *, anyone: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(f"address {host}:{port}: {error}") from error
    family, _, _, _, address = found[0]
    if anyone and not _is_loopback(str(address[0])):
        raise UsageError(
            f"listening on {host} without a token would let anybody run programs here; "
            "give one by --token-file or QUANTUNE_DEVICE_TOKEN"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=_MOST_CONNECTIONS)
    except OSError as error:
        raise EnvironmentFailure(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _failure(error: QuantuneError, folder: Path | None = None) -> dict[str, Any]:
    message = " ".join(str(error).split())
    if folder is not None:
        message = message.replace(f"{folder}/", "")
    return {"error": type(error).__name__, "message": message[:1000], "transient": error.transient}
