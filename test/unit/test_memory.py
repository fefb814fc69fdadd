"""How much memory there is and how much a child may have: read from the system's files, set from outside."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from quantune.errors import UsageError
from quantune.process import children, memory

GB, MB = 10**9, 10**6


@pytest.mark.parametrize(
    ("size", "value"),
    [
        ("2GB", 2 * GB),
        ("1.5GB", 1500 * MB),
        ("800MiB", 800 << 20),
        ("512 MB", 512 * MB),
        (5 * MB, 5 * MB),
        ("none", None),
    ],
)
def test_sizes(size: str | int, value: int | None) -> None:
    assert memory.parse(size) == value


@pytest.mark.parametrize("size", ["", "2", "2gb", "-1GB", "0GB", "1kB", "GB", 0, -5, True, "1e3GB", "2GB "])
def test_bad_sizes(size: str | int) -> None:
    with pytest.raises(UsageError, match=r"memory limit .*: expected a size such as 2GB or 800MiB, or none"):
        memory.parse(size)


def _system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8000000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "5:cpu:/x\n4:memory,hugetlb:/a\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8192 * MB),
        (V2, 8192 * MB),
        ({**V2, "sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/b/memory.current": "5"}, 8192 * MB),
        ({**V2, "sys/fs/cgroup/a/memory.max": "1000", "sys/fs/cgroup/a/memory.current": "400"}, 600),
        ({**V2, "sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "400",
          "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 100\n"}, 700),
        ({**V2, "sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "1400"}, 0),
        ({**V1, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2000",
          "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "5",
          "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 7\ntotal_inactive_file 3\n"}, 1998),
        ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": "5"}, 1995),
        ({"proc/meminfo": ""}, None),
    ],
    ids=["no-group", "no-files", "max", "parent", "namespace", "over", "v1", "v1-namespace", "silent"],
)  # fmt: skip
def test_what_is_available(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    if free == 8192 * MB:
        free = 8_000_000 * 1024
    assert memory.available(_system(tmp_path, files)) == free


def test_default_limits_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 20 * GB)
    limit = memory.default_limit(compilers=3, workers=8)
    assert limit is not None
    assert 3 * limit + 8 * limit / 8 == pytest.approx(18 * GB, rel=1e-6)
    assert memory.chosen(None, compilers=3, workers=8) == limit
    assert memory.chosen("1GB", compilers=3, workers=8) == GB
    monkeypatch.setattr(memory, "available", lambda: 100 * MB)
    assert memory.default_limit(compilers=3, workers=8) == memory.LEAST_BYTES
    monkeypatch.setattr(memory, "available", lambda: None)
    assert memory.default_limit(compilers=3, workers=8) is None


def test_a_child_is_limited_from_outside() -> None:
    pipe = subprocess.PIPE
    with children.start(["cat"], stdin=pipe, stdout=pipe, memory_limit=300 * MB) as child:
        assert resource.prlimit(child.pid, resource.RLIMIT_DATA) == (300 * MB, 300 * MB)
        child.communicate(b"")
    with children.start(["cat"], stdin=pipe, stdout=pipe) as child:
        assert resource.prlimit(child.pid, resource.RLIMIT_DATA) == resource.getrlimit(resource.RLIMIT_DATA)
        child.communicate(b"")
    memory.limit(child.pid, 300 * MB)  # gone: nothing to limit


def test_peaks_are_told_by_phase() -> None:
    peaks = memory.Peaks()
    assert peaks.rows() == {}
    peaks.begin("import")
    held = bytearray(b"x" * 300 * MB)
    peaks.begin("search")
    peaks.child("compilation", 2 * GB)
    peaks.child("compilation", 3)
    peaks.child("evaluation", 80 * MB)
    peaks.child("measurement", 0)
    rows = peaks.rows()
    assert list(rows) == ["import", "search", "compilation", "evaluation"]
    assert (rows["compilation"], rows["evaluation"]) == ("2.0 GB", "80 MB")
    number, unit = rows["import"].split()
    assert float(number) * {"MB": MB, "GB": GB}[unit] > len(held)
