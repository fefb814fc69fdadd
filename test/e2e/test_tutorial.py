"""Runs docs/tutorial.md: every file and command in it, and each line of output it shows has to be printed, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOOLS = ("quantune-compile", "quantune-opt", "quantune-benchmark")


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    printed, shown = "", 0
    for kind, title, text in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif kind == "sh":
            printed = _run(text, tmp_path, environment)
        else:
            assert _missing(text, printed) is None, f"not printed: {_missing(text, printed)}\n{printed}"
            shown += 1
    assert shown >= 5


def test_missing_lines_are_found() -> None:
    assert _missing("a … c\n… z\n", "x\n  a b c d\n y z") is None
    assert _missing("a … d\n", "x\n a b c\n d") == "a … d"
    assert _missing("b\na\n", "a\nb\n") == "a"


def _run(commands: str, folder: Path, environment: dict[str, str]) -> str:
    command = ["bash", "-eu", "-o", "pipefail", "-c", commands]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{commands}\n{result.stdout}{result.stderr}"
    return result.stdout


def _environment(folder: Path) -> dict[str, str]:
    """The tools and `python` of this interpreter and this checkout, whether the package is installed or not."""
    tools = folder / "bin"
    tools.mkdir()
    for name in (*TOOLS, "python"):
        module = f"-m quantune.cli.{name.removeprefix('quantune-')} " if name in TOOLS else ""
        script = f'#!/bin/sh\nPYTHONPATH="{ROOT}:${{PYTHONPATH-}}" exec "{sys.executable}" {module}"$@"\n'
        (tools / name).write_text(script, encoding="utf-8")
        (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), os.environ.get("PATH", os.defpath)))
    return {**os.environ, "PATH": path, "PYTHONPATH": ".", "XDG_CACHE_HOME": str(folder / "cache")}


def _missing(expected: str, printed: str) -> str | None:
    """The first expected line that does not follow the ones before it; `…` stands for anything within a line."""
    lines = iter(printed.splitlines())
    for line in filter(None, map(str.strip, expected.splitlines())):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in line.split("…")))
        if not any(pattern.search(candidate) for candidate in lines):
            return line
    return None
