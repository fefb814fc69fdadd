from __future__ import annotations

import pytest

from mlir_passes.cpu.isa import VARIANTS
from quantune.artifact.targets import DEVICES, device_of
from quantune.cli import compile
from quantune.compiler import pipelines, targets
from quantune.compiler.targets import Target
from quantune.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", Target("cpu")),
        ("llvm-cpu", Target("cpu")),
        ("cpu:znver4", Target("cpu", cpu="znver4")),
        ("vulkan-spirv", Target("vulkan")),
        ("vulkan:ada", Target("vulkan", vulkan_target="ada")),
        ("CUDA:sm_86", Target("cuda", cuda_arch="sm_86")),
    ],
)
def test_parse(text: str, expected: Target) -> None:
    assert targets.parse(text) == expected


@pytest.mark.parametrize("target", [Target("cpu", cpu="generic"), Target("vulkan"), Target("cuda", cuda_arch="sm_89")])
def test_text_round_trip(target: Target) -> None:
    assert targets.parse(str(target)) == target


def test_options_refine_the_target() -> None:
    assert targets.parse("cpu", cpu="generic", cuda_arch=None).cpu == "generic"


@pytest.mark.parametrize(
    ("text", "details", "message"),
    [
        ("vulcan", {}, r"target 'vulcan': expected one of cpu, vulkan, cuda \(did you mean vulkan\?\)"),
        ("cuda:sm_85", {}, r"unknown architecture 'sm_85'.*did you mean sm_8"),
        ("cuda:h100", {}, "compile for sm_80, sm_86 or sm_89"),
        ("cuda:sm_90", {}, "cannot compile for 'sm_90'"),
        ("vulkan:lavapipe", {}, "called llvmpipe"),
        ("cpu:", {}, "is not a name"),
        ("cpu:-x", {}, "is not a name"),
        ("cpu", {"cuda_arch": "sm_80"}, "cuda_arch=sm_80 is for another target"),
        ("cpu:host", {"cpu": "generic"}, "given twice"),
    ],
)
def test_bad_targets(text: str, details: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        targets.parse(text, **details)


class _Toy(targets.Backend):
    def flags(self, detail: str) -> tuple[str, ...]:
        return (f"--toy={detail}",)

    def passes(self, detail: str, precision: str) -> tuple[str, ...]:
        return ("canonicalize",)


def test_a_target_from_outside_is_parsed_lowered_for_and_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device_of("toy:x") is None
    toy = _Toy("toy", "cpu", "any name", "--toy-chip", "NAME", "chip of the toy target", aliases=("plaything",))
    monkeypatch.setattr(targets, "BACKENDS", {"toy": toy, "cuda": targets.BACKENDS["cuda"]})
    monkeypatch.setitem(DEVICES, "toy", ("toy", "toys"))
    target = targets.parse("plaything:x")
    assert (str(target), target.flags(), target.device(threads=2)) == ("toy:x", ("--toy=x",), "toys")
    assert (target.kernels(), target.on_processor, target.is_host) == (None, False, False)
    assert device_of("toy:x") == "toy"
    assert pipelines.target_passes(target, "int8") == "quantune-to-nhwc,canonicalize"
    with pytest.raises(SystemExit):
        compile.parser().parse_args(["--help"])
    told = capsys.readouterr().out
    assert "targets   toy (--toy-chip)  cuda (--cuda-arch)" in told
    assert "chip of the toy target" in told


def test_no_target_is_entered_twice() -> None:
    with pytest.raises(ValueError, match="target 'cuda' is there already"):
        targets.register(targets.BACKENDS["cuda"])


def test_devices() -> None:
    assert set(DEVICES) == set(targets.BACKENDS)
    cpu = Target("cpu")
    assert (cpu.driver, cpu.device(threads=1), cpu.device(threads=2)) == ("local-sync", "local-sync", "local-task")
    assert Target("vulkan").device(threads=4) == "vulkan"


def test_flags_name_the_detail() -> None:
    assert "--iree-llvmcpu-target-cpu=znver4" in Target("cpu", cpu="znver4").flags()
    assert "--iree-cuda-target=sm_80" in Target("cuda").flags()
    assert "--iree-vulkan-target=llvmpipe" in Target("vulkan").flags()


@pytest.mark.parametrize(
    ("cpu", "kernels"),
    [("neoverse-v1", "i8mm"), ("apple-m1", "dotprod"), ("cortex-a53", None)],
)
def test_arm_processors(cpu: str, kernels: str | None) -> None:
    target = Target("cpu", cpu=cpu)
    assert target.kernels() == kernels
    assert "--iree-llvmcpu-target-triple=aarch64-unknown-linux-gnu" in target.flags()


def test_other_processors_are_of_the_compilers_own_architecture() -> None:
    for cpu in ("host", "generic", "znver4", "haswell"):
        target = Target("cpu", cpu=cpu)
        assert not any("triple" in flag for flag in target.flags())


@pytest.mark.parametrize(("flags", "kernels"), [("fp asimd asimddp i8mm", "i8mm"), ("fp asimd asimddp", "dotprod")])
def test_an_arm_host_is_known_by_its_features(monkeypatch: pytest.MonkeyPatch, flags: str, kernels: str) -> None:
    targets._host_flags.cache_clear()
    monkeypatch.setattr(targets, "host_identity", lambda: f"Features\t: {flags}")
    assert Target("cpu").kernels() == kernels
    monkeypatch.undo()
    targets._host_flags.cache_clear()


def test_no_processor_is_in_two_instruction_sets() -> None:
    names = [cpu for isa in VARIANTS.values() for cpu in isa.cpus]
    assert len(names) == len(set(names))


def test_only_the_own_detail_changes_the_flags() -> None:
    assert Target("cpu", cuda_arch="sm_86").flags() == Target("cpu").flags()


@pytest.mark.parametrize(
    ("cpu", "flags", "kernels"),
    [
        ("x86-64-v3+avx512f+avx512bw+avx512vl+avx512vnni", "+avx512f,+avx512bw,+avx512vl,+avx512vnni", "avx512vnni"),
        ("x86-64-v3+avxvnni", "+avxvnni", "avxvnni"),
        ("x86-64-v2+avx2", "+avx2", None),
        ("arm64+dotprod+i8mm", "+dotprod,+i8mm", "i8mm"),
        ("arm64+dotprod", "+dotprod", "dotprod"),
        ("neoverse-n1+i8mm", "+i8mm", "i8mm"),
    ],
)
def test_features_come_on_top_of_a_name(cpu: str, flags: str, kernels: str | None) -> None:
    target = targets.parse(f"cpu:{cpu}")
    name = cpu.partition("+")[0]
    assert str(target) == f"cpu:{cpu}"
    assert target.kernels() == kernels
    assert f"--iree-llvmcpu-target-cpu-features={flags}" in target.flags()
    assert f"--iree-llvmcpu-target-cpu={'generic' if name == 'arm64' else name}" in target.flags()
    assert any("triple" in flag for flag in target.flags()) == (not name.startswith("x86"))
