"""IREE's compiler as a child process: an abort, a hang or exhausted memory costs one compilation and no more."""

from __future__ import annotations

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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quantune.artifact.targets import host_identity
from quantune.cache import ArtifactCache, content_key, default_root
from quantune.compiler import checker
from quantune.compiler.targets import Target
from quantune.errors import CompileFailed, EnvironmentFailure, UsageError, machine_lacks
from quantune.process import children, memory, private, scratch
from quantune.process.job import Job, form_dispatches, stop_all
from quantune.process.private import write_atomically

logger = logging.getLogger(__name__)

_FACTS = ".facts.gz"
_DISPATCHES = ".dispatches.gz"
_FAILURES_KEPT = 20
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
_SPARE_BYTES = 1 << 20
_CHECKED = "loaded"  # part of the key: entries of versions that believed every compiler are not found
_ERROR_LINE = re.compile(r"^ERROR\b|(?:^|[\s:])(?:error|fatal error): |^LLVM ERROR")
_NOISE = re.compile(r"remark: |: warning: .*(?:deprecated|defaulted to)|^Please report issues |^ *#\d+ 0x|^Stack dump")


@dataclass(frozen=True)
class CompiledModule:
    """A compiled program.

    path: the .vmfb. sha256: of its bytes. seconds: wall time of iree-compile (of the first time, when ``cached``).
    log: what the compiler printed, without noise. dispatches: MLIR text of this compilation at the stage where the
    dispatches are formed, with locations (see quantune.compiler.inspect); empty where it was not asked for. peak_bytes:
    the most that the compiler had resident, 0 when ``cached``.
    """

    path: Path
    sha256: str
    seconds: float
    cached: bool
    log: str
    dispatches: str
    peak_bytes: int = 0


def find_compiler() -> Path:
    """The iree-compile of the installed wheel, never one that happens to be on PATH; or raise EnvironmentFailure."""
    spec = importlib.util.find_spec("iree.compiler")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "_mlir_libs" / "iree-compile"
        if os.access(binary, os.X_OK):
            return binary
    raise EnvironmentFailure("iree-compile is missing; install the package iree-base-compiler")


def compiler_version() -> str:
    """The version of the installed IREE compiler, or raise EnvironmentFailure."""
    try:
        return importlib.metadata.version("iree-base-compiler")
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentFailure("the package iree-base-compiler is not installed") from None


def program_key(module: bytes, target: Target, flags: Sequence[str] = ()) -> str:
    """The cache key of a compilation: equal keys give byte-equal artifacts."""
    host = host_identity() if target.is_host else ""
    return content_key(module, *target.flags(), "--", *flags, compiler_version(), host, _CHECKED)


def compile_module(
    module: bytes,
    target: Target,
    *,
    flags: Sequence[str] = (),
    timeout_s: float = 600.0,
    memory_limit: int | None = None,
    cache: ArtifactCache | None = None,
    output_dir: Path | None = None,
    dump_executables: Path | None = None,
    failure_dir: Path | None = None,
    compiler: Path | None = None,
    explain: bool = True,
) -> CompiledModule:
    """Compile MLIR (text or bytecode) to a .vmfb.

    explain: give the dispatches too, by a second process beside the first.
    memory_limit: bytes of data that the compiler may have (quantune.process.memory).

    The artifact lies in ``cache``; without one in ``output_dir`` (default: a folder that goes when this process ends).
    dump_executables: folder for IREE's kernels, sources and binaries; the cache never answers such a call.
    failure_dir: where input, command and log of the newest 20 failures are kept (default: the user's cache folder).
    What the compiler wrote is loaded once, in a child, before anything keeps it (quantune.compiler.checker).
    Raises CompileFailed (an error, a crash, damaged output, the time or memory limit), UsageError (a processor or GPU
    name that IREE does not know) or EnvironmentFailure (no compiler, no space).
    """
    if timeout_s <= 0:
        raise UsageError(f"compile timeout {timeout_s}: expected seconds, more than 0")
    key = program_key(module, target, flags)
    if cache and not dump_executables and (hit := _read_cached(cache, key, explain=explain)):
        return hit
    binary = compiler or find_compiler()
    limits = timeout_s, memory_limit
    try:
        with scratch.folder("compile") as folder, ThreadPoolExecutor(1) as beside:
            options = (*target.flags(), *flags)
            with scratch.told():
                job = Job(folder, binary, module, options, dump_executables)
                told = beside.submit(form_dispatches, binary, module, options, *limits) if explain else None
                checker.prepare()
                log = _run(job, target, key, limits, failure_dir or default_root() / "failures")
            dispatches = told.result() if told else ""
            if told and not dispatches:
                raise CompileFailed(f"iree-compile for {target} formed no dispatches although it made an artifact")
            path, digest = _store(job, dispatches, key, cache, output_dir)
    except KeyboardInterrupt:
        stop_all()
        raise
    except OSError as error:
        kind = EnvironmentFailure if machine_lacks(error) else CompileFailed
        raise kind(f"compiling for {target}: a file could not be written: {error}") from error
    logger.info("compiled %s for %s in %.1f s", key[:12], target, job.seconds)
    return CompiledModule(path, digest, job.seconds, False, _quiet(log), dispatches, job.peak_bytes)


def _run(job: Job, target: Target, key: str, limits: tuple[float, int | None], failures: Path) -> str:
    """Run the compiler until its output is known to be whole, twice at most; returns its log, or raises."""
    before = ""
    for checks in (False, True):
        job.output.unlink(missing_ok=True)
        status = job.run(*limits, checks=checks)
        if job.stopped:
            raise CompileFailed(f"iree-compile for {target} was stopped", transient=True)
        log = job.log()
        reason = _failure(status, log, *limits, job.output)
        if reason is None:
            if before:
                logger.warning("iree-compile for %s; compiled once more, and that is whole", before)
            return log
        if _NO_SPACE.search(log) or scratch.free_bytes(job.folder) < _SPARE_BYTES:
            raise scratch.full()
        if unknown := _unknown_name(log, target):
            raise UsageError(unknown)
        kept = _keep_failure(failures, key, job, log)
        before = f"{target} {reason}; what it wrote was set aside: {kept}"
        if status is None:
            break
    raise CompileFailed(
        f"iree-compile for {target} {reason}; {kept}",
        transient=status is None or status <= 0,  # stopped, killed, crashed, or told a lie: it refused nothing
    )


def _failure(status: int | None, log: str, timeout_s: float, limit: int | None, output: Path) -> str | None:
    """Why a compilation did not succeed, or None."""
    first = _first_error(log)
    told = f": {first}" if first else ""
    if status is None:
        return f"took longer than {timeout_s:g} s and was stopped"
    if status and limit is not None and memory.is_exhaustion(log):
        return f"needs more than the memory limit of {memory.text(limit)} (--memory-limit changes it){told}"
    if status == -signal.SIGKILL:
        return "was killed, most likely by the system for want of memory"
    if status < 0:
        return f"crashed with {children.ending(status)}{told}"
    if status > 0:
        return f"failed with exit status {status}{told}"
    if any(_ERROR_LINE.search(line) for line in log.splitlines()):
        return f"printed an error and went on{told}"  # it returns 0 on an unknown pass name
    damage = checker.damage(output)
    return damage and f"wrote {damage}"


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.search(line)]
    line = next((line for line in lines if _ERROR_LINE.search(line)), lines[0] if lines else "")
    return line if len(line) <= 300 else f"{line[:300]}…"


def _unknown_name(log: str, target: Target) -> str | None:
    """The message for a processor or GPU name the compiler rejected, which is the caller's mistake."""
    told = target.backend.unknown(target.detail, log)
    return None if told is None else f"target {target}: {told}"


def _quiet(log: str) -> str:
    return "\n".join(line for line in log.splitlines() if line.strip() and not _NOISE.search(line))


def _keep_failure(root: Path, key: str, job: Job, log: str) -> str:
    """Keep what reproduces a failed compilation in ``root`` and say where; the failure matters more than that."""
    try:
        return f"reproduce with: sh {_reproducer(root, key, job, log) / 'command.sh'}"
    except OSError as error:
        return f"nothing that reproduces it could be kept in {root}: {error.strerror or error}"


def _reproducer(root: Path, key: str, job: Job, log: str) -> Path:
    folder = private.folder(root / key[:16])
    shutil.copyfile(job.source, folder / job.source.name)
    (folder / "log").write_text(log)
    (folder / job.output.name).unlink(missing_ok=True)
    if job.output.is_file():
        shutil.copyfile(job.output, folder / job.output.name)
    (folder / "command.sh").write_text(f'#!/bin/sh\ncd "$(dirname "$0")" && exec {shlex.join(job.command)}\n')
    os.utime(folder)
    older = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for stale in older[:-_FAILURES_KEPT]:
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def _store(job: Job, dispatches: str, key: str, cache: ArtifactCache | None, folder: Path | None) -> tuple[Path, str]:
    data = job.output.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if cache:
        facts = json.dumps({"seconds": job.seconds, "log": _quiet(job.log())})
        with scratch.told(cache.root, "XDG_CACHE_HOME"):
            # The facts go first: a reader that finds the artifact then finds them too.
            cache.put(key, gzip.compress(facts.encode(), mtime=0), _FACTS)
            if dispatches:
                cache.put(key, gzip.compress(dispatches.encode(), mtime=0), _DISPATCHES)
            return cache.put(key, data, ".vmfb"), digest
    folder = folder or scratch.kept("artifact")
    path = folder / f"{key[:16]}.vmfb"
    with scratch.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
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
