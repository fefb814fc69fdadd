"""Which of the CPU kernels a target gets, and that every variant it may name exists."""

from __future__ import annotations

import pytest

from mlir_passes.cpu import isa
from quantune.compiler import pipelines, targets
from quantune.compiler.targets import Target


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [("znver4", "avx512vnni"), ("cascadelake", "avx512vnni"), ("alderlake", "avxvnni"), ("haswell", "avx2")],
)
def test_named_processors(cpu: str, variant: str) -> None:
    assert Target("cpu", cpu=cpu).kernels() == variant
    assert f"quantune-lower-to-cpu-kernels{{features={variant}}}" in pipelines.target_passes(
        Target("cpu", cpu=cpu), "int8"
    )


@pytest.mark.parametrize(
    "target", [Target("cpu", cpu="generic"), Target("cpu", cpu="k8"), Target("vulkan"), Target("cuda")]
)
def test_everything_else_takes_the_generic_path(target: Target) -> None:
    assert target.kernels() is None
    assert "kernels" not in pipelines.target_passes(target, "int8")


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        ("avx2 fma avx512f avx512bw avx512vl avx512_vnni avx_vnni", "avx512vnni"),
        ("avx2 fma avx512f avx512bw avx512vl", "avx2"),
        ("avx2 fma avx_vnni", "avxvnni"),
        ("sse4_2 avx", None),
    ],
)
def test_the_host_by_its_flags(monkeypatch: pytest.MonkeyPatch, flags: str, variant: str | None) -> None:
    monkeypatch.setattr(targets, "_host_flags", lambda: frozenset(flags.split()))
    assert Target("cpu").kernels() == variant


def test_f16_has_no_kernels() -> None:
    assert "kernels" not in pipelines.target_passes(Target("cpu", cpu="znver4"), "f16")


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="'avx2' is there already"):
        isa.register(isa.VARIANTS["avx2"])
