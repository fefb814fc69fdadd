"""How much memory there is, how much a child may take, and how much was taken in each phase of the work.

What a child is limited in is its data (RLIMIT_DATA): memory of its own that it may write to. That follows what it
really uses: compiling a ResNet50 it has 155 MB of data and 350 MB resident (which counts the shared compiler library),
where the address space that it reserves (RLIMIT_AS) has 670 MB, and tens of gigabytes with a driver or a memory map.
"""

from __future__ import annotations

import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from quantune.errors import UsageError

LEAST_BYTES = 512 << 20
"""A limit of its own choice is never below: less would not compile a small network."""
_SHARE = 0.9
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.ASCII)
_UNITS = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|MemoryError|[Cc]annot allocate memory|RESOURCE_EXHAUSTED|Allocation failed"
)


def parse(size: str | int) -> int | None:
    """Bytes of a size such as ``2GB`` or of a number of bytes; None for ``none``, which stands for no limit.

    Raises UsageError for anything else, and for less than 1 MB.
    """
    if size == "none":
        return None
    found = _SIZE.fullmatch(f"{size}B" if type(size) is int else str(size))
    value = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if value < 10**6:
        raise UsageError(f"memory limit '{size!s:.60}': expected a size such as 2GB or 800MiB, or none")
    return value


def check(size: str | int | None) -> None:
    """Raise UsageError for what `parse` refuses; None is fine."""
    if size is not None:
        parse(size)


def text(size: int) -> str:
    """A number of bytes for people: 1.5 GB, 80 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def available(root: Path = Path("/")) -> int | None:
    """How many bytes processes here can still take, container limits considered; None where the system does not tell.

    What a container uses for files that it can drop counts as available.
    """
    known = [free for free in (_free_in_machine(root), *_free_in_groups(root)) if free is not None]
    return max(0, min(known)) if known else None


def default_limit(compilers: int, workers: int) -> int | None:
    """What one child may take so that all fit, where a worker takes an eighth of what a compiler does.

    One that goes astray is stopped long before the machine is out of memory. None where the system tells nothing.
    """
    free = available()
    return None if free is None else max(LEAST_BYTES, int(_SHARE * free / (compilers + workers / 8)))


def chosen(size: str | int | None, *, compilers: int, workers: int) -> int | None:
    """The limit for one child: what was asked for, or, for None, what the machine suggests; raises like `parse`."""
    return default_limit(compilers, workers) if size is None else parse(size)


def is_exhaustion(words: str) -> bool:
    """Whether a message is about memory that could not be had."""
    return bool(_OUT_OF_MEMORY.search(words))


def limit(pid: int, size: int) -> None:
    """Limit the memory that a running process, and what it starts, may have for itself.

    From outside and right after the start: nothing runs between fork and exec, so threads are no matter.
    """
    if hasattr(resource, "prlimit"):
        try:
            resource.prlimit(pid, resource.RLIMIT_DATA, (size, size))
        except (ProcessLookupError, PermissionError, ValueError):
            return  # it has ended, or has a stricter limit already


def peak(pid: int | None = None) -> int:
    """The most that a process had resident so far, in bytes; 0 when it has ended or the system does not tell."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class Peaks:
    """The most memory in each phase of the work: of this process, and of its largest child of a kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = ""
        self._own: dict[str, int] = {}
        self._children: dict[str, int] = {}

    def begin(self, phase: str) -> None:
        """Measure this process anew, for a phase that lasts until the next one begins."""
        self._close()
        self._phase = phase
        _reset()

    def child(self, kind: str, size: int) -> None:
        """Note the peak of a child, by the phase that it is for; from any thread."""
        with self._lock:
            self._children[kind] = max(size, self._children.get(kind, 0))

    def rows(self) -> dict[str, str]:
        """What each phase took, in words: this process in its phases, then the largest child of each kind."""
        self._close()
        with self._lock:
            return {name: text(size) for name, size in (*self._own.items(), *self._children.items()) if size}

    def _close(self) -> None:
        if self._phase:
            self._own[self._phase] = max(peak(), self._own.get(self._phase, 0))


def _reset() -> None:
    """Let the system count this process's peak anew; where it does not, phases tell the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _free_in_machine(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_in_groups(root: Path) -> Iterator[int | None]:
    """What each control group that this process is in still allows: version 2 and version 1, up to the top."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            yield from _free_in(root / "sys/fs/cgroup", path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _free_in(root / "sys/fs/cgroup/memory", path, names)


def _free_in(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[int | None]:
    maximum, usage, droppable = names
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):  # in a container the path may be the host's: then only the top is there
        group = mount.joinpath(*parts[:depth])
        limit_text, used_text = _read(group / maximum).strip(), _read(group / usage).strip()
        if not limit_text.isdecimal() or not used_text.isdecimal():
            continue
        found = re.search(rf"^{droppable} (\d+)", _read(group / "memory.stat"), re.MULTILINE)
        yield int(limit_text) - int(used_text) + (int(found[1]) if found else 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
