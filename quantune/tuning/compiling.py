"""Programs of a model: modules compiled for its target, each once, and what a configuration is when it is compiled."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from quantune.cache import ArtifactCache, content_key
from quantune.compiler.iree import CompiledModule, compile_module
from quantune.compiler.pipelines import Debugging
from quantune.compiler.targets import Target
from quantune.process import memory, scratch
from quantune.runtime.devices import processors

AHEAD = 2
"""Programs that are built in the background at a time."""


@dataclass(frozen=True)
class Built:
    """One configuration, compiled, and all others that compute the same.

    numbers: parameters to load beside the program, None when they are inside. number_bytes: what they take in an
    artifact, where weights of fewer than eight bits are packed.
    """

    program: CompiledModule
    numbers: dict[str, np.ndarray] | None
    number_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The same for configurations that compute the same: sha256 of program and numbers."""
        digest = hashlib.sha256(self.program.sha256.encode())
        for name, array in sorted((self.numbers or {}).items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Program and numbers together: within a few per cent of the artifact that has them inside."""
        return self.program.path.stat().st_size + self.number_bytes


class Programs:
    """Compiles modules within limits of time and memory; what failed is left where ``debugging`` says."""

    def __init__(
        self,
        target: Target,
        cache: ArtifactCache,
        *,
        timeout_s: float = 600.0,
        memory_limit: str | int | None = None,
        peaks: memory.Peaks | None = None,
        debugging: Debugging | None = None,
    ) -> None:
        self.target, self.cache = target, cache
        self.timeout_s = timeout_s
        self.peaks = peaks or memory.Peaks()
        self.memory_limit = memory.chosen(memory_limit, compilers=AHEAD + 1, workers=processors() + 1)
        self.debugging = debugging or Debugging()
        self._compiling: dict[str, threading.Lock] = {}

    def compile(self, module: bytes, target: Target | None = None, *, explain: bool = False) -> CompiledModule:
        """Compile a module, for the model's target unless another one is named; known ones come from the cache."""
        # What is being compiled in the background is waited for, and then found in the cache.
        with self._compiling.setdefault(content_key(module), threading.Lock()):
            program = compile_module(
                module, target or self.target, timeout_s=self.timeout_s, memory_limit=self.memory_limit,
                cache=self.cache, failure_dir=self.debugging.reproducer_dir, explain=explain,
            )  # fmt: skip
        self.peaks.child("compilation", program.peak_bytes)
        return program


@contextlib.contextmanager
def beside(numbers: Mapping[str, np.ndarray] | None) -> Iterator[Path | None]:
    """Numbers as a file to run a program with, while it is needed; its path is its own: workers keep what they load.

    None where a program has its numbers inside.
    """
    if numbers is None:
        yield None
        return
    with scratch.folder("numbers") as folder:
        path = folder / "numbers.npz"
        with scratch.told():
            np.savez(path, **numbers)  # type: ignore[arg-type]
        yield path
