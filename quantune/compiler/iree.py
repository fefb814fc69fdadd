"""IREE's compiler as a child process: an abort, a hang or exhausted memory costs one compilation and no more."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quantune.compiler.cache import ArtifactCache, content_key, default_root, write_atomically
from quantune.compiler.targets import Target, host_identity
from quantune.errors import CompileFailed, EnvironmentFailure, UsageError

logger = logging.getLogger(__name__)

_FACTS = ".facts.gz"
_DISPATCHES = ".dispatches.gz"
_FAILURES_KEPT = 20
_LOG_LIMIT = 1 << 20
_BYTECODE_MAGIC = b"ML\xefR"
_ARTIFACT_MAGIC = b"PK\x03\x04"  # a .vmfb is laid out as a zip archive
_ERROR_LINE = re.compile(r"^ERROR\b|(?:^|[\s:])(?:error|fatal error): |^LLVM ERROR")
_NOISE = re.compile(r"remark: |: warning: .*(?:deprecated|defaulted to)|^Please report issues |^ *#\d+ 0x|^Stack dump")
# The same compilation, stopped where the dispatches are formed and printed with locations.
_EVIDENCE_FLAGS = (
    "--compile-to=flow",
    "--mlir-print-debuginfo",
    "--mlir-elide-elementsattrs-if-larger=16",
    "--mlir-elide-resource-strings-if-larger=16",
)
# Verifying the IR after each of IREE's passes takes 40 % of the time. Its input is verified all the same, and a
# compilation that fails is run again with these checks, for the sake of its message.
_FAST_FLAGS = ("--verify=false",)
_starting = threading.Lock()
_running: set[int] = set()  # process groups of the compilers at work


@dataclass(frozen=True)
class CompiledModule:
    """A compiled program.

    path: the .vmfb. sha256: of its bytes. seconds: wall time of iree-compile (of the first time, when ``cached``).
    log: what the compiler printed, without noise. dispatches: MLIR text of this compilation at the stage where the
    dispatches are formed, with locations (see quantune.compiler.inspect); empty where it was not asked for.
    """

    path: Path
    sha256: str
    seconds: float
    cached: bool
    log: str
    dispatches: str


def find_compiler() -> Path:
    """Return iree-compile of the installed wheel, never one that happens to be on PATH; or raise EnvironmentFailure."""
    spec = importlib.util.find_spec("iree.compiler")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "_mlir_libs" / "iree-compile"
        if os.access(binary, os.X_OK):
            return binary
    raise EnvironmentFailure("iree-compile is missing; install the package iree-base-compiler")


def compiler_version() -> str:
    """Return the version of the installed IREE compiler, or raise EnvironmentFailure."""
    try:
        return importlib.metadata.version("iree-base-compiler")
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentFailure("the package iree-base-compiler is not installed") from None


def program_key(module: bytes, target: Target, flags: Sequence[str] = ()) -> str:
    """Return the cache key of a compilation: equal keys give byte-equal artifacts."""
    host = host_identity() if target.name == "cpu" and target.cpu == "host" else ""
    return content_key(module, *target.flags(), "--", *flags, compiler_version(), host)


def compile_module(
    module: bytes,
    target: Target,
    *,
    flags: Sequence[str] = (),
    timeout_s: float = 600.0,
    memory_limit_gib: float | None = None,
    cache: ArtifactCache | None = None,
    output_dir: Path | None = None,
    dump_executables: Path | None = None,
    failure_dir: Path | None = None,
    compiler: Path | None = None,
    explain: bool = True,
) -> CompiledModule:
    """Compile MLIR (text or bytecode) to a .vmfb.

    explain: give the dispatches too, by a second process beside the first.

    The artifact lies in ``cache``; without one in ``output_dir`` (default: a new temporary folder, left to the caller).
    dump_executables: folder for IREE's kernels, sources and binaries; the cache never answers such a call.
    failure_dir: where input, command and log of the newest 20 failures are kept (default: the user's cache folder).
    Raises CompileFailed (an error, a crash, the time or memory limit), UsageError (a processor or GPU name that IREE
    does not know) or EnvironmentFailure (no compiler).
    """
    if timeout_s <= 0:
        raise UsageError(f"compile timeout {timeout_s}: expected seconds, more than 0")
    key = program_key(module, target, flags)
    if cache and not dump_executables and (hit := _read_cached(cache, key, explain=explain)):
        return hit
    binary = compiler or find_compiler()
    try:
        with tempfile.TemporaryDirectory(prefix="quantune-compile-") as scratch, ThreadPoolExecutor(1) as beside:
            options = (*target.flags(), *flags)
            job = _Job(Path(scratch), binary, module, options, dump_executables)
            told = beside.submit(_dispatches, binary, module, options, timeout_s, memory_limit_gib) if explain else None
            for checks in (False, True):
                status = job.run(timeout_s, memory_limit_gib, checks=checks)
                log = job.log()
                reason = _failure(status, log, timeout_s, memory_limit_gib, job.output)
                if reason is None or status is None:
                    break
            if reason:
                if unknown := _unknown_name(log, target):
                    raise UsageError(unknown)
                kept = _keep_failure(failure_dir or default_root() / "failures", key, job, log)
                raise CompileFailed(f"iree-compile for {target} {reason}; reproduce with: sh {kept / 'command.sh'}")
            dispatches = told.result() if told else ""
            path, digest = _store(job, dispatches, key, cache, output_dir)
    except OSError as error:
        raise CompileFailed(f"compiling for {target}: a file could not be written: {error}") from error
    logger.info("compiled %s for %s in %.1f s", key[:12], target, job.seconds)
    return CompiledModule(path, digest, job.seconds, False, _quiet(log), dispatches)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Hold all compilations of this process inside the block: a measurement of time wants the machine to itself."""
    with _starting:
        _signal(signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(signal.SIGCONT)


def _signal(number: signal.Signals) -> None:
    for group in tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


class _Job:
    """One run of iree-compile in a folder of its own."""

    def __init__(self, folder: Path, binary: Path, module: bytes, flags: Sequence[str], dump: Path | None) -> None:
        # A fixed name and a relative path: the input's name is part of a text module's locations.
        self.source = folder / ("module.mlirbc" if module.startswith(_BYTECODE_MAGIC) else "module.mlir")
        self.source.write_bytes(module)
        self.folder = folder
        self.seconds = 0.0
        self.output = folder / "module.vmfb"
        self.command = [str(binary), self.source.name, "-o", self.output.name, *flags]
        if dump:
            self.command.append(f"--iree-hal-dump-executable-files-to={dump.resolve()}")

    def run(self, timeout_s: float, memory_limit_gib: float | None, *, checks: bool) -> int | None:
        """Return the exit status (negative: the signal that ended it), or None when it ran out of time.

        checks: verify the IR after each pass.
        """
        command = self.command if checks else [*self.command, *_FAST_FLAGS]
        if memory_limit_gib is not None:
            command = ["/bin/sh", "-c", f'ulimit -v {int(memory_limit_gib * 2**20)} && exec "$@"', "sh", *command]
        with (self.folder / "log").open("wb") as log:
            try:
                with _starting:
                    child = subprocess.Popen(
                        command,
                        cwd=self.folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                    _running.add(child.pid)
            except OSError as error:
                raise EnvironmentFailure(f"{self.command[0]} cannot be started: {error.strerror or error}") from error
            started = time.monotonic()
            with _killed_at_exit(child):
                try:
                    return child.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    return None
                finally:
                    self.seconds = time.monotonic() - started

    def log(self) -> str:
        """Return what the compiler printed (its first MiB), whatever bytes it was."""
        with (self.folder / "log").open("rb") as stream:
            return stream.read(_LOG_LIMIT).decode("utf-8", "replace")


def _dispatches(
    binary: Path, module: bytes, flags: Sequence[str], timeout_s: float, memory_limit_gib: float | None
) -> str:
    """Return the program as text with its dispatches formed, or nothing where the compilation fails before."""
    with tempfile.TemporaryDirectory(prefix="quantune-compile-") as scratch:
        job = _Job(Path(scratch), binary, module, (*flags, *_EVIDENCE_FLAGS), None)
        status = job.run(timeout_s, memory_limit_gib, checks=True)
        return job.output.read_text(errors="replace") if status == 0 and job.output.is_file() else ""


@contextlib.contextmanager
def _killed_at_exit(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the child's process group when the block is left early; Ctrl-C reaches this process only."""
    try:
        yield
    finally:
        _running.discard(child.pid)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _failure(status: int | None, log: str, timeout_s: float, limit_gib: float | None, output: Path) -> str | None:
    """Return why a compilation did not succeed, or None."""
    first = _first_error(log)
    told = f": {first}" if first else ""
    if status is None:
        return f"took longer than {timeout_s:g} s and was stopped"
    if status < 0:
        limit = f" under a memory limit of {limit_gib:g} GiB" if limit_gib is not None else ""
        return f"crashed with {_signal_name(-status)}{limit}{told}"
    if status > 0:
        return f"failed with exit status {status}{told}"
    if any(_ERROR_LINE.search(line) for line in log.splitlines()):
        return f"printed an error and went on{told}"  # it returns 0 on an unknown pass name
    if not output.is_file() or not output.stat().st_size:
        return "wrote no artifact"
    with output.open("rb") as stream:
        if stream.read(4) != _ARTIFACT_MAGIC:
            return "wrote something that is not a .vmfb"
    return None


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.search(line)]
    line = next((line for line in lines if _ERROR_LINE.search(line)), lines[0] if lines else "")
    return line if len(line) <= 300 else f"{line[:300]}…"


def _unknown_name(log: str, target: Target) -> str | None:
    """Return the message for a processor or GPU name the compiler rejected, which is the caller's mistake."""
    if target.name == "cpu" and "Unknown CPU for target architecture" in log:
        return f"target {target}: IREE knows no such processor; expected host, generic or an LLVM name such as znver4"
    if target.name == "vulkan" and f"Unknown Vulkan target '{target.vulkan_target}'" in log:
        return f"target {target}: IREE knows no such GPU; expected a name such as llvmpipe, ada, rdna3"
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _quiet(log: str) -> str:
    return "\n".join(line for line in log.splitlines() if line.strip() and not _NOISE.search(line))


def _keep_failure(root: Path, key: str, job: _Job, log: str) -> Path:
    """Keep what reproduces a failed compilation in ``root`` and return its folder."""
    folder = root / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.source, folder / job.source.name)
    (folder / "log").write_text(log)
    (folder / "command.sh").write_text(f'#!/bin/sh\ncd "$(dirname "$0")" && exec {shlex.join(job.command)}\n')
    os.utime(folder)
    older = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for stale in older[:-_FAILURES_KEPT]:
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def _store(job: _Job, dispatches: str, key: str, cache: ArtifactCache | None, folder: Path | None) -> tuple[Path, str]:
    data = job.output.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if cache:
        facts = json.dumps({"seconds": job.seconds, "log": _quiet(job.log())})
        # The facts go first: a reader that finds the artifact then finds them too.
        cache.put(key, gzip.compress(facts.encode(), mtime=0), _FACTS)
        if dispatches:
            cache.put(key, gzip.compress(dispatches.encode(), mtime=0), _DISPATCHES)
        return cache.put(key, data, ".vmfb"), digest
    folder = folder or Path(tempfile.mkdtemp(prefix="quantune-artifact-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key[:16]}.vmfb"
    write_atomically(path, data)
    return path, digest


def _read_cached(cache: ArtifactCache, key: str, *, explain: bool) -> CompiledModule | None:
    packed = cache.get_bytes(key, _FACTS)
    path = cache.get(key, ".vmfb") if packed else None
    dispatches = cache.get_bytes(key, _DISPATCHES) if path else None
    if not packed or not path or (explain and not dispatches):
        return None
    facts = json.loads(gzip.decompress(packed))
    digest = path.name.split(".")[1]
    told = gzip.decompress(dispatches).decode() if dispatches else ""
    return CompiledModule(path, digest, facts["seconds"], True, facts["log"], told)
