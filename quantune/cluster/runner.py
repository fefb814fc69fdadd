"""The asking side: images are cut into shards, a Dask cluster answers them, and what it loses is asked again."""

from __future__ import annotations

import contextlib
import logging
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantune import errors
from quantune.artifact.records import Processor
from quantune.cluster import shards
from quantune.cluster.shards import Part, Shard, make_part
from quantune.device.identity import runtime_version
from quantune.errors import EnvironmentFailure, QuantuneError, RunFailed, UsageError
from quantune.runtime.arrays import map_images
from quantune.runtime.devices import lacking

logger = logging.getLogger(__name__)

SCHEME = "dask"
_SHARD_BYTES = 8 << 20
_CONNECT_S = 20.0
_PATIENCE_S = 60.0
"""How long a cluster may be without a worker that fits."""
_AHEAD = 2
"""Shards a thread of a worker has in its queue: it need not wait for the next, and little is held in memory."""


class ClusterRunner:
    """A Runner on a Dask cluster, which somebody else started: ``dask://HOST:PORT`` of its scheduler.

    required: what the programs need of a processor; workers that lack it, or have another IREE runtime, get no work.
    device: driver that programs run on there. on_note hears, in one line, of workers that do not fit. Raises
    EnvironmentFailure without the package, the scheduler or any worker that fits. Killed workers are survived: their
    shards go to others.
    """

    peak_bytes = 0
    """Nothing of it is on this machine, as far as it counts."""

    def __init__(
        self,
        uri: str,
        *,
        required: Processor | None = None,
        device: str = "local-sync",
        timeout_s: float = 1200.0,
        on_note: Callable[[str], None] = logger.warning,
    ) -> None:
        self.uri, self._required, self._device, self._timeout_s = uri, required, device, timeout_s
        self._on_note = on_note
        self._client: Any = _connect(uri)
        self._fit: dict[str, str] = {}  # address of a worker -> why it gets no work; empty where it does
        self._machines: dict[str, str] = {}  # address of a worker -> its processor
        self._parts: dict[tuple[Path, int, int, int, int | None], Part] = {}
        try:
            self._workers()
        except BaseException:
            self.close()
            raise

    @property
    def place(self) -> str:
        """Where it is, and what its workers run on, in one line, for reports."""
        fitting = Counter(self._machines[address] for address, reason in self._fit.items() if not reason)
        return f"cluster {self.uri}: " + ", ".join(f"{count} on {name}" for name, count in sorted(fitting.items()))

    def start(self) -> None:
        """Nothing to do ahead: workers start their children with the first shard."""

    def run(self, program: Path, numbers: Path | None, images: Path, first: int, end: int) -> NDArray[np.floating]:
        """The program's results on images [first, end) of an .npy file, one row an image: the same as anywhere."""
        array = map_images(images)
        if not 0 <= first < end <= len(array):
            raise UsageError(f"{images}: no images [{first}, {end}); the file holds {len(array)}")
        size = max(1, _SHARD_BYTES // max(1, array[:1].nbytes))
        files = self._part(program), None if numbers is None else self._part(numbers)
        asked = []
        for start in range(first - first % size, end, size):
            stop = min(start + size, len(array))
            part = self._part(images, start, stop)
            inside = max(first - start, 0), min(end, stop) - start
            asked.append(Shard(*files, part, *inside, self._device, self._timeout_s))
        return np.concatenate(self._answers(asked))

    def renew(self) -> None:
        """Have every worker end its children."""
        with self._told():
            self._client.run(shards.renew)

    def close(self) -> None:
        """Leave the cluster, and nothing of this running there."""
        with contextlib.suppress(Exception):
            self._client.run(shards.renew)
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    def _answers(self, asked: list[Shard]) -> list[NDArray[np.floating]]:
        rows: dict[int, NDArray[np.floating]] = {}
        todo: deque[tuple[int, dict[str, bytes]]] = deque((index, {}) for index in range(len(asked)))
        running: dict[Any, tuple[int, dict[str, bytes], Mapping[str, int]]] = {}
        try:
            while todo or running:
                workers = self._workers()
                for future, (index, sent, given) in [*running.items()]:
                    if not workers.keys() & given.keys() and future.status == "pending":
                        del running[future]  # nobody is left of those that it was given to
                        self._client.cancel([future], force=True)
                        todo.appendleft((index, sent))
                while todo and len(running) < _AHEAD * sum(workers.values()):
                    index, sent = todo.popleft()
                    with self._told():
                        future = self._client.submit(shards.answer, asked[index], sent, workers=[*workers], pure=False)
                    running[future] = index, sent, workers
                for future in self._finished(running):
                    index, _, _ = running.pop(future)
                    told = self._result(future)
                    if "missing" in told:
                        wanted = {part.digest: part for part in asked[index].parts()}
                        todo.appendleft((index, {digest: wanted[digest].data() for digest in told["missing"]}))
                    else:
                        rows[index] = self._rows(told["rows"], asked[index])
        finally:
            if running:
                with contextlib.suppress(Exception):
                    self._client.cancel([*running], force=True)
        return [rows[index] for index in range(len(asked))]

    def _rows(self, rows: NDArray[np.floating], shard: Shard) -> NDArray[np.floating]:
        if len(rows) != shard.end - shard.first:
            raise RunFailed(f"cluster {self.uri}: {len(rows)} results for {shard.end - shard.first} images")
        return rows

    def _finished(self, running: Mapping[Any, object]) -> list[Any]:
        """Those shards that have ended; waits a moment where none has, so that lost workers are noticed."""
        from distributed import wait

        with contextlib.suppress(TimeoutError), self._told(), self._client.as_current():
            wait([*running], timeout=1.0, return_when="FIRST_COMPLETED")
        return [future for future in running if future.status != "pending"]

    def _result(self, future: Any) -> dict[str, Any]:
        # One that was lost with its worker may have been given to another meanwhile, and be finished.
        patience = _PATIENCE_S if future.status == "finished" else _CONNECT_S
        with self._told():
            told = future.result(timeout=patience)
        if "error" in told:
            kind = getattr(errors, str(told["error"]), None)
            known = kind if isinstance(kind, type) and issubclass(kind, QuantuneError) else RunFailed
            raise known(f"cluster {self.uri}: {told['message']}", transient=bool(told.get("transient")))
        return told

    def _workers(self) -> dict[str, int]:
        """The workers that get work, with their threads. Waits a while where there are none."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with self._told():
                found = {address: each["nthreads"] for address, each in self._present().items()}
                new = [address for address in found if address not in self._fit]
                if new:
                    told = self._client.run(shards.fitness, workers=new, on_error="return")
                    self._fit.update({address: self._unfit(told.get(address)) for address in new})
                    self._machines.update({each: told[each]["name"] for each in new if not self._fit[each]})
            for address in new:
                if self._fit[address]:
                    self._on_note(f"cluster {self.uri}: {address} gets no work: {self._fit[address]}")
            fitting = {address: threads for address, threads in found.items() if not self._fit[address]}
            if fitting:
                return fitting
            if found or time.monotonic() > deadline:
                reason = next((self._fit[address] for address in found), "there is none")
                raise EnvironmentFailure(f"cluster {self.uri}: no worker that fits: {reason}")
            time.sleep(0.5)

    def _present(self) -> Mapping[str, Any]:
        return self._client.scheduler_info(n_workers=-1)["workers"]

    def _unfit(self, told: object) -> str:
        """Why a worker gets no work, or nothing."""
        if not isinstance(told, Mapping):
            reason = f"{type(told).__name__}: {told}" if isinstance(told, BaseException) else "it does not answer"
            return f"{reason}; is the same version of quantune installed there?"
        if str(told["iree"]).split(".")[:2] != (here := runtime_version()).split(".")[:2]:
            return f"IREE's runtime {told['iree']}, programs are made for {here}"
        if self._required is None:
            return ""
        return lacking(self._required, told["architecture"], told["features"], "it") or ""

    def _part(self, path: Path, first: int = 0, stop: int | None = None) -> Part:
        try:
            stat = path.stat()
            key = (path, stat.st_mtime_ns, stat.st_size, first, stop)
            if key not in self._parts:
                self._parts[key] = make_part(path.resolve(), first, stop)
            return self._parts[key]
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from error

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Make one line of whatever the cluster's library fails with; a time that ran out stays what it is."""
        try:
            yield
        except (QuantuneError, TimeoutError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise EnvironmentFailure(f"cluster {self.uri}: {type(error).__name__}: {text}") from error


def _connect(uri: str) -> Any:
    example = "expected dask://HOST:PORT of a scheduler, or dask+tls://HOST:PORT"
    try:
        parts = urllib.parse.urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"cluster '{uri}': {error}; {example}") from error
    schemes = {SCHEME: "tcp", f"{SCHEME}+tls": "tls"}
    if (
        parts.scheme not in schemes
        or not parts.hostname
        or not port
        or parts.path
        or parts.query
        or "@" in parts.netloc
    ):
        raise UsageError(f"cluster '{uri}': {example}")
    try:
        from distributed import Client
        from distributed.security import Security
    except ImportError:
        raise EnvironmentFailure("a Dask cluster needs the package distributed; pip install 'quantune[dask]'") from None
    try:
        security = Security() if parts.scheme != SCHEME else None  # certificates: where Dask's own settings say
        address = f"{schemes[parts.scheme]}://{parts.netloc}"
        return Client(address, timeout=_CONNECT_S, security=security, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise EnvironmentFailure(f"cluster {uri} cannot be reached: {' '.join(str(error).split())[:200]}") from error
