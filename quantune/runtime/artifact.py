"""The artifact a user holds: one .vmfb that can be called, saved and asked how it was made."""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property
from pathlib import Path

import numpy as np

from quantune.artifact.provenance import Provenance, split
from quantune.artifact.records import LayerExecution
from quantune.artifact.targets import device_of
from quantune.errors import EnvironmentFailure, RunFailed, UsageError, refused
from quantune.process.private import write_atomically
from quantune.quantization.config import QuantConfig
from quantune.runtime.devices import check_processor
from quantune.runtime.program import Program

logger = logging.getLogger(__name__)


class Artifact:
    """A compiled model with its provenance; every byte is checked when it is made.

    data: the file's bytes. path: where they were read from, used in messages. device: driver or URI, by default the one
    its target runs on. Raises RunFailed when the bytes are damaged, or made for a target that is not known here.
    """

    def __init__(self, data: bytes, *, path: Path | None = None, device: str | None = None, threads: int = 1) -> None:
        self._data = data
        self.path = path
        self._where = where = str(path or "artifact")
        self._threads = threads
        self._stamped = split(data, where)
        if self.provenance is None:
            logger.warning("%s: no provenance: a plain .vmfb, whose bytes and layers cannot be checked", where)
        self.device = device or _device_of(self.provenance, threads, where)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the model on one batch; UsageError names the expected and the given shape when they differ."""
        result = self.program(x)
        if isinstance(result, tuple):
            raise RunFailed(f"{self._where}: the model gives {len(result)} results; use .program for such models")
        return result

    @cached_property
    def program(self) -> Program:
        """The loaded program (loaded at the first use); EnvironmentFailure when this machine cannot run it."""
        if self.provenance and self.provenance.processor and self.device.startswith("local-"):
            check_processor(self.provenance.processor, self._where)
        try:
            return Program(self._stamped.program, device=self.device, threads=self._threads)
        except (RunFailed, EnvironmentFailure) as error:
            raise type(error)(str(error).replace("program:", f"{self._where}:", 1)) from error

    @property
    def provenance(self) -> Provenance | None:
        """How the artifact was made; None for a .vmfb of another origin."""
        return self._stamped.provenance

    @property
    def layers(self) -> tuple[LayerExecution, ...]:
        """What each layer runs in, read from the compiled program; empty without provenance."""
        return self.provenance.layers if self.provenance else ()

    @property
    def config(self) -> QuantConfig | None:
        """The quantization the artifact was made with, when it is known."""
        return (
            QuantConfig.parse(self.provenance.configuration)
            if self.provenance and self.provenance.configuration
            else None
        )

    @cached_property
    def sha256(self) -> str:
        """The digest of the whole file, as sha256sum prints it."""
        return hashlib.sha256(self._data).hexdigest()

    def has_function(self, name: str) -> bool:
        """Whether the program names a compiled function so."""
        return bool(name) and name.encode() in self._stamped.program

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return len(self._data)

    def save(self, path: Path | str) -> Path:
        """Write the artifact, whole or not at all, and return its path; UsageError when the place cannot be written."""
        path = Path(path)
        try:
            write_atomically(path, self._data)
        except OSError as error:
            raise refused(f"{path}: cannot be written", error) from error
        return path


def load(path: Path | str, *, device: str | None = None, threads: int = 1) -> Artifact:
    """Read an artifact and check every byte of it.

    Raises UsageError when the file cannot be read and RunFailed when it is damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    return Artifact(data, path=Path(path), device=device, threads=threads)


def _device_of(provenance: Provenance | None, threads: int, where: str) -> str:
    target = provenance.target if provenance else "cpu"
    device = device_of(target, threads)
    if device is None:
        raise RunFailed(
            f"{where}: made for target '{target:.60}', which this version does not know; name the device that runs it"
        )
    return device
