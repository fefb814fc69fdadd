"""The small installation: what runs, times, verifies and serves artifacts loads without anything that compiles."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_MODULES = {
    "torch-mlir": "torch_mlir",
    "iree-base-compiler": "iree.compiler",
    "xgboost-cpu": "xgboost",
    "pillow": "PIL",
}
_BLOCKED = """
import importlib, pkgutil, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in sys.argv[1:]):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Blocked())
"""
_LOADS = """
import quantune.device, quantune.runtime
names = ["verification", "cli.device", "cli.verify", "cli.benchmark", "cli.entry", "cluster.shards"]
for package in (quantune.device, quantune.runtime):
    names += [f"{package.__name__.partition('.')[2]}.{each.name}" for each in pkgutil.iter_modules(package.__path__)]
for name in names:
    importlib.import_module(f"quantune.{name}")
quantune.load, quantune.benchmark
print(len(names))
"""
_LACKS = """
import quantune
from quantune.errors import EnvironmentFailure
for name in ("compile", "quantize", "rebuild"):
    try:
        getattr(quantune, name)
    except EnvironmentFailure as error:
        print(error)
"""


def blocked() -> list[str]:
    """What the extra `compile` brings, as modules."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["compile"]
    names = [line.split(";")[0].strip().split("=")[0].split(">")[0].split("<")[0] for line in lines]
    return sorted({_MODULES.get(name, name) for name in names})


def run(text: str) -> str:
    done = subprocess.run([sys.executable, "-c", _BLOCKED + text, *blocked()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_loads_without_what_compiles() -> None:
    assert {"torch", "torch_mlir", "iree.compiler", "optuna", "scipy", "PIL"} <= set(blocked())
    assert int(run(_LOADS)) > 20


def test_what_compiles_names_the_extra() -> None:
    lines = run(_LACKS).splitlines()
    assert len(lines) == 3
    assert all("; pip install 'quantune[compile]' brings" in line for line in lines)
