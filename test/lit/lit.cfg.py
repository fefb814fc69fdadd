"""lit configuration: `lit test/lit` from anywhere, with the interpreter that runs lit."""
# ruff: noqa: F821
# pyright: reportUndefinedVariable=false
# lit defines `config` and `lit_config`.

import os
import subprocess
import sys
from pathlib import Path

import lit.formats

_SOURCE = Path(__file__).resolve().parent
_ROOT = _SOURCE.parent.parent
_VULKAN_PROBE = "import iree.runtime as rt, sys; sys.exit(not rt.get_driver('vulkan').query_available_devices())"

config.name = "quantune"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["Inputs", "Output"]
config.test_source_root = str(_SOURCE)
config.test_exec_root = lit_config.params.get("exec_root", str(_SOURCE / "Output"))


def _tool(name: str, command: str) -> None:
    """Substitute a tool's name where it stands alone, and not where it is part of a path or of a longer name."""
    config.substitutions.append((rf"(?<![\w/.-]){name}(?![\w/.-])", command))


_tool("quantune-opt", f"{sys.executable} -m quantune.cli.opt")
_tool("quantune-compile", f"{sys.executable} -m quantune.cli.compile")
_tool("FileCheck", str(Path(sys.executable).parent / "filecheck"))

config.environment["PYTHONPATH"] = str(_ROOT)
for variable in ("HOME", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"):
    if variable in os.environ:
        config.environment[variable] = os.environ[variable]


def _has_vulkan() -> bool:
    try:
        return subprocess.run([sys.executable, "-c", _VULKAN_PROBE], capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if _has_vulkan():
    config.available_features.add("vulkan")
