"""What is installed on a device: the wheel, numpy and IREE's runtime serve; nothing that compiles is needed."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target
from quantune.device.address import Address
from quantune.device.client import Device
from quantune.runtime.engines import LocalRunner

ROOT = Path(__file__).resolve().parent.parent.parent
ABSENT = ("torch", "torchvision", "torch_mlir", "iree.compiler", "optuna", "xgboost", "scipy", "matplotlib", "pydantic")
SOURCE = b"""
func.func @main(%x: tensor<1x2x3x3xf32>) -> tensor<1x18xf32> {
  %y = tensor.collapse_shape %x [[0], [1, 2, 3]] : tensor<1x2x3x3xf32> into tensor<1x18xf32>
  %z = arith.mulf %y, %y : tensor<1x18xf32>
  return %z : tensor<1x18xf32>
}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sources, built from a copy: a build writes beside what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("quantune", "mlir_passes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), str(source)], check=True)
    (built,) = out.glob("quantune-*.whl")
    return built


@pytest.fixture(scope="module")
def machine(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, numpy and IREE's runtime alone; its folder of programs."""
    folder = tmp_path_factory.mktemp("machine")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for name in ("numpy", "iree-base-runtime", "ml_dtypes"):  # the runtime needs the last
        installed = importlib.metadata.distribution(name)
        files = [file.parts for file in installed.files or () if file.parts[0] != ".."]
        # Of the folder iree only what is the runtime's: the compiler is in it too.
        for part in {parts[:2] if parts[0] == "iree" else parts[:1] for parts in files}:
            target = site.joinpath(*part)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(str(installed.locate_file(Path(*part))))
    options = ["--no-deps", "--no-index", "-q", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", *options]
    subprocess.run([*pip, str(wheel)], check=True)
    return folder / "bin"


def run(machine: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([machine / command[0], *command[1:]], capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.slow
def test_what_a_device_installs_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    always = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist", []) if "extra" not in line}
    assert {each.split("=")[0].split(">")[0].split("<")[0] for each in always} == {"iree-base-runtime", "numpy", "rich"}
    device = [line for line in metadata.get_all("Requires-Dist", []) if "'device'" in line or '"device"' in line]
    assert "device" in metadata.get_all("Provides-Extra", [])
    assert device == []


@pytest.mark.slow
def test_it_serves_without_a_compiler(machine: Path, tmp_path: Path) -> None:
    look = f"import importlib.util as u; print([name for name in {ABSENT!r} if u.find_spec(name)])"
    assert run(machine, "python", "-c", look).stdout.strip() == "[]"
    loaded = run(
        machine, "python", "-c",
        "import sys, quantune.cli.device, quantune.device.server, quantune.runtime.worker, quantune.device.client;"
        "from quantune.device.identity import describe; describe();"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))",
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert {"numpy", "quantune"} <= set(ast.literal_eval(loaded.stdout))
    assert not set(ast.literal_eval(loaded.stdout)) & {"rich", *ABSENT}
    program = compile_module(SOURCE, Target("cpu"), output_dir=tmp_path, explain=False).path
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).standard_normal((5, 2, 3, 3)).astype(np.float32))
    serve = [machine / "quantune-device", "serve", "--port", "0", "--store", str(tmp_path / "store")]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rpartition(":")[2])
            local = LocalRunner()
            with contextlib.closing(local), contextlib.closing(Device(Address("127.0.0.1", port))) as device:
                given = device.run(program, None, images, 0, 5)
                np.testing.assert_array_equal(given, local.run(program, None, images, 0, 5))
        finally:
            server.terminate()
        assert server.wait(30) == 143


@pytest.mark.slow
def test_what_compiles_says_what_it_lacks(machine: Path) -> None:
    done = run(machine, "quantune-compile", "builtin:squeezenet1_1_digits", "--emit=linalg")
    [line] = done.stderr.splitlines()
    assert done.returncode == 4
    assert "; pip install 'quantune[compile]' brings what compiles and searches" in line
