"""What a machine says it is, and what a compiler elsewhere makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantune.artifact.records import Processor
from quantune.compiler.inspect import required_processor
from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target
from quantune.errors import EnvironmentFailure
from quantune.process import children
from quantune.runtime import host
from quantune.runtime.devices import lacking

V3 = "sse3 ssse3 sse4.1 sse4.2 cx16 sahf popcnt avx avx2 fma f16c bmi bmi2 lzcnt movbe xsave"
N1 = "processor\t: {}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n"


def has(names: str) -> dict[str, bool]:
    return dict.fromkeys(names.split(), True)


@pytest.mark.parametrize(
    ("machine", "features", "cpuinfo", "expected"),
    [
        ("x86_64", V3 + " avx512f avx512vnni avxvnni", "", "x86-64-v3+avxvnni+avx512f+avx512vnni"),
        ("x86_64", V3, "", "x86-64-v3"),
        ("x86_64", V3.replace(" bmi2", ""), "", "x86-64-v2+avx+avx2+fma+f16c+bmi+lzcnt+movbe+xsave"),
        ("x86_64", "sse3", "", "x86-64+sse3"),
        ("aarch64", "neon dotprod i8mm", "", "arm64+dotprod+i8mm"),
        ("aarch64", "neon dotprod", N1.format(0, "0xd0c") + "\n" + N1.format(1, "0xd0c"), "neoverse-n1"),
        ("aarch64", "neon dotprod", N1.format(0, "0xd05") + "\n" + N1.format(1, "0xd0b"), "arm64+dotprod"),
        ("riscv64", "", "", "generic"),
    ],
    ids=["avx512", "v3", "no-bmi2", "old", "arm", "n1", "big-little", "riscv"],
)
def test_target_cpu(machine: str, features: str, cpuinfo: str, expected: str) -> None:
    assert host.target_cpu(machine, has(features), cpuinfo) == expected


def test_what_it_says_is_what_a_target_takes(tmp_path: Path) -> None:
    """What is compiled for this machine's description needs nothing that it lacks, and gets its kernels."""
    here = host.this_host()
    target = Target("cpu", cpu=here.cpu)
    assert target.kernels() == Target("cpu").kernels()
    source = b"func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {\n return %x : tensor<4xf32>\n}"
    needed = required_processor(compile_module(source, target, output_dir=tmp_path).dispatches)
    assert needed is not None
    assert needed.architecture == here.architecture
    assert set(here.cpu.split("+")[1:]) <= set(needed.features)
    assert lacking(needed, here.architecture, here.features, "this machine") is None


def test_features_of_the_system_where_the_tool_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EnvironmentFailure("iree-cpuinfo cannot be started: Exec format error")

    told = host.host_features()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: avx2 fma\n\nflags\t\t: avx2\n")  # what one processor lacks, the machine lacks
    monkeypatch.setattr(host, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(children, "run", refuse)
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    host.host_features.cache_clear()
    try:
        found = host.host_features()
        assert (found["avx2"], found["fma"], found["avx512f"]) == (True, False, False)
        monkeypatch.setattr(host, "_CPUINFO", tmp_path / "none")
        host.host_features.cache_clear()
        assert host.host_features() == {}
    finally:
        monkeypatch.undo()
        host.host_features.cache_clear()
        assert host.host_features() == told


def test_an_emulated_processor_is_another_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Emulators may show the file of the machine below: it says nothing of the emulated processor."""
    (tmp_path / "cpuinfo").write_text("flags\t\t: avx2 fma\n")
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host, "_told_by_iree", dict)
    digests = set()
    for machine, features in (("x86_64", {"avx2": True, "neon": None}), ("aarch64", {"avx2": None, "neon": None})):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        host.host_features.cache_clear()
        found = host.this_host.__wrapped__()
        assert {name: found.features.get(name) for name in features} == features
        digests.add(found.digest)
    monkeypatch.undo()
    host.host_features.cache_clear()
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("required", "reason"),
    [
        (Processor("x86_64", "znver4", ("avx2", "not-known")), None),
        (Processor("arm_64", "generic", ()), "compiled for aarch64, the board is x86_64"),
        (
            Processor("x86_64", "znver4", ("avx2", "avx9")),
            "compiled for a processor (znver4) with avx9, which the board lacks",
        ),
    ],
)
def test_lacking(required: Processor, reason: str | None) -> None:
    assert lacking(required, "x86_64", {"avx2": True, "avx9": False}, "the board") == reason
