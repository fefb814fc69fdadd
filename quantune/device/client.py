"""The client's side: a device elsewhere that answers and times programs as this machine's workers do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quantune.artifact.records import Processor
from quantune.compiler.targets import Target
from quantune.device.address import Address
from quantune.device.connection import Connection, Known, logger
from quantune.device.jobs import LOCAL
from quantune.device.store import KINDS
from quantune.errors import EnvironmentFailure, QuantuneError, RunFailed, UsageError
from quantune.runtime.arrays import map_images, read_results
from quantune.runtime.child import read_samples
from quantune.runtime.devices import lacking
from quantune.runtime.engines import Files
from quantune.runtime.host import this_host
from quantune.runtime.measure import Effort, Samples

_CHUNK_BYTES = 16 << 20
"""Images are sent in files of about this size: what the device has of them is not sent again."""
_FILE_OVERHEAD = 4096
T = TypeVar("T")


class Device:
    """A device server as a Runner and a Timer.

    address: tcp://HOST:PORT, see Address. threads: for timing. on_note hears, in one line, when it waits for it.
    Raises UsageError for a wrong token, EnvironmentFailure for a device that cannot be reached, is busy, is of another
    version or went away for good; a connection that is lost is made again.
    """

    def __init__(
        self, address: Address | str, *, threads: int = 1, on_note: Callable[[str], None] = logger.warning
    ) -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        self.threads = threads
        self._link = Connection(self.address, on_note)
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._chunks: dict[tuple[Path, int, int, int, int], str] = {}
        self._names: dict[str, str] = {}

    # What it is

    @property
    def known(self) -> Known:
        """What the device said of itself."""
        return self._link.known

    @property
    def identity(self) -> str:
        """One line that differs between devices whose times cannot be compared."""
        known = self.known
        where = "" if known.device == LOCAL else f" {known.device},"
        return f"{known.name},{where} {known.processors} processors, {known.digest}, IREE {known.iree}"

    @property
    def place(self) -> str:
        """Where and what it is, in one line, for reports."""
        return f"device {self.address}: {self.identity}"

    def target(self, wanted: Target) -> Target:
        """The target to compile for: what was asked for, where ``host`` means the device's processor."""
        if not wanted.is_host or self.known.digest == this_host().digest:
            return wanted
        return dataclasses.replace(wanted, cpu=self.known.cpu)

    @property
    def name(self) -> str:
        """Where it is, for a timing."""
        return str(self.address)

    def check(self, required: Processor | None, where: str) -> None:
        """Raise EnvironmentFailure, with ``where`` in the message, when it cannot run what was compiled for that."""
        known = self.known
        reason = required and lacking(required, known.architecture, known.features, f"device {self.address}")
        if reason:
            raise EnvironmentFailure(f"{where}: {reason}; compile for --target-cpu {known.cpu}")

    def check_target(self, target: Target, required: Processor | None) -> None:
        """Raise EnvironmentFailure when it cannot run what is compiled for a target."""
        device = self.known.device
        runs = target.on_processor if device == LOCAL else target.device() == device.partition("://")[0]
        if not runs:
            raise EnvironmentFailure(f"target {target}: device {self.address} runs programs on {device}")
        self.check(required, f"target {target}")

    # Runner and Timer

    peak_bytes = 0
    """Nothing of it is on this machine."""

    def start(self) -> None:
        """Nothing to do ahead: the device starts its workers with the first job."""

    def run(self, program: Path, numbers: Path | None, images: Path, first: int, end: int) -> NDArray[np.floating]:
        """The program's results on images [first, end) of an .npy file; images that the device has are not sent."""
        array = map_images(images)
        if not 0 <= first < end <= len(array):
            raise UsageError(f"{images}: no images [{first}, {end}); the file holds {len(array)}")
        room = min(_CHUNK_BYTES, self.known.message_bytes - _FILE_OVERHEAD)
        size = max(1, room // max(1, array[:1].nbytes))

        def part(start: int) -> NDArray[np.floating]:
            stop = min(start + size, len(array))
            inside = max(first - start, 0), min(end, stop) - start
            request = {
                "type": "run",
                "program": self._offer(program),
                "numbers": self._offer(numbers),
                "images": self._offer_images(images, array, start, stop),
                "first": inside[0],
                "end": inside[1],
            }
            rows = read_results(io.BytesIO(self._link.ask(request).get("data", b"")), f"device {self.address}")
            if len(rows) != inside[1] - inside[0]:
                raise RunFailed(f"device {self.address}: {len(rows)} results for {inside[1] - inside[0]} images")
            return rows

        starts = range(first - first % size, end, size)
        parts = [self._persistently(lambda start=start: part(start)) for start in starts]
        with self._of_form():
            return np.concatenate(parts)

    def time(self, programs: Sequence[Files], images: Path, effort: Effort) -> list[Samples]:
        """Time programs against each other on the first images of an .npy file."""
        return self.compare(programs, images, effort, threads=self.threads)[0]

    def renew(self) -> None:
        """Have the device forget its processes."""
        self._persistently(lambda: self._link.ask({"type": "renew"}))

    def close(self) -> None:
        """End the connection; the device is free for others."""
        self._link.close()

    # What benchmarks ask besides

    def compare(
        self, programs: Sequence[Files], images: Path | None, effort: Effort, *, threads: int
    ) -> tuple[list[Samples], int | None]:
        """Like `time`, and the processor that programs were pinned to; without images the input is noise."""

        def job() -> tuple[list[Samples], int | None]:
            pairs = [(self._offer(program), self._offer(numbers)) for program, numbers in programs]
            shown = self._offer_first(*pairs[0], images)
            request = {"type": "time", "programs": pairs, "images": shown, "threads": threads}
            told = self._link.ask({**request, "effort": dataclasses.asdict(effort)})
            with self._of_form():
                samples, processor = told["result"]["samples"], told["result"]["processor"]
                found = [read_samples(sample) for sample in samples]
                if len(found) != len(pairs):
                    raise ValueError(f"{len(found)} samples of {len(pairs)} programs")
                return found, None if processor is None else int(processor)

        return self._persistently(job)

    def memory(self, program: Path, images: Path | None, *, threads: int) -> dict[str, int]:
        """What loading and running a program adds to a fresh process there: bytes, resident and on the device."""

        def job() -> dict[str, int]:
            digest = self._offer(program)
            shown = self._offer_first(digest, None, images)
            told = self._link.ask({"type": "memory", "program": digest, "images": shown, "threads": threads})
            with self._of_form():
                return {name: int(told["result"][name]) for name in ("resident", "device")}

        return self._persistently(job)

    def dispatch_times(self, program: Path, *, min_seconds: float) -> dict[str, float]:
        """Dispatch name -> milliseconds a call of the program spends in it; see quantune.runtime.benchmark."""

        def job() -> dict[str, float]:
            request = {"type": "dispatches", "program": self._offer(program), "seconds": min_seconds}
            told = self._link.ask(request)
            with self._of_form():
                return {str(name): float(time) for name, time in told["result"]["times"].items()}

        return self._persistently(job)

    def signature(self, program: Path, numbers: Path | None = None) -> list[str]:
        """Load a program there; the shapes of its inputs in the form IREE's tools take: 1x3x32x32xf32=1."""
        return self._persistently(lambda: self._takes(self._offer(program), self._offer(numbers)))

    # Files

    def _takes(self, program: str | None, numbers: str | None) -> list[str]:
        told = self._link.ask({"type": "signature", "program": program, "numbers": numbers})
        with self._of_form():
            return [str(each) for each in told["result"]["inputs"]]

    @contextlib.contextmanager
    def _of_form(self) -> Iterator[None]:
        """Turn what reading an answer that is not what was agreed upon raises into a RunFailed."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            text = f"{type(error).__name__}: {error}"
            raise RunFailed(f"device {self.address} answered something of another form ({text:.100})") from error

    def _offer(self, path: Path | None) -> str | None:
        """Have the device hold a file; its digest."""
        if path is None:
            return None
        try:
            stat = path.stat()
            key = (path, stat.st_mtime_ns, stat.st_size)
            if key not in self._digests:
                self._digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            digest = self._digests[key]
            self._names[digest] = str(path)
            if self._lacks(digest, path.suffix):
                self._put(digest, path.suffix, path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
        return digest

    def _offer_first(self, program: str | None, numbers: str | None, images: Path | None) -> str | None:
        """Have the device hold the images that one call of a program takes; their digest."""
        if images is None:
            return None
        inputs, array = self._takes(program, numbers), map_images(images)
        with self._of_form():
            batch = int(inputs[0].split("x")[0])
        return self._offer_images(images, array, 0, max(0, min(batch, len(array))))

    def _offer_images(self, path: Path, array: NDArray, start: int, stop: int) -> str:
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size, start, stop)
        known = self._chunks.get(key)
        if known is not None and not self._lacks(known, ".npy"):
            return known
        file = io.BytesIO()
        np.save(file, array[start:stop], allow_pickle=False)
        data = file.getvalue()
        digest = self._chunks[key] = hashlib.sha256(data).hexdigest()
        self._names[digest] = str(path)
        if known is not None or self._lacks(digest, ".npy"):
            self._put(digest, ".npy", data)
        return digest

    def _lacks(self, digest: str, kind: str) -> bool:
        told = self._link.ask({"type": "missing", "files": [[digest, kind]]})
        with self._of_form():
            return bool(told["missing"])

    def _put(self, digest: str, kind: str, data: bytes) -> None:
        most = self.known.message_bytes
        if len(data) > most:
            raise UsageError(
                f"{self._names[digest]}: {len(data)} bytes; device {self.address} takes {most} (--max-size there)"
            )
        self._link.ask({"type": "put", "sha256": digest, "kind": kind}, data)

    def _persistently(self, job: Callable[[], T]) -> T:
        """Do a job, again where the connection is lost; what the device says of its files names those that are here."""
        try:
            return self._link.persistently(job)
        except QuantuneError as error:
            text = str(error)
            for digest, name in self._names.items():
                for kind in KINDS:
                    text = text.replace(f"{digest}{kind}", name)
            raise type(error)(text, transient=error.transient) from error
