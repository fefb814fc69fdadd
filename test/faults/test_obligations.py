"""The table of obligations itself: it counts what was tried, and what was broken fails the run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

PROBE = """
import pytest

def test_holds(obligation):
    promise = obligation("answers")
    promise.tried(True)
    with promise.trial("a second time"):
        pass

def test_goes_on_after_a_broken_one(obligation):
    obligation("answers").tried(False, "asked backwards")
    obligation("answers").tried(True)

def test_raises(obligation):
    with obligation("stands").trial("pushed"):
        raise ValueError("fell over\\nwith details")

def test_says_and_does_nothing(obligation):
    obligation("is there")
"""


def run(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    for name in ("conftest.py", "obligations.py"):
        shutil.copy(HERE / name, folder)
    (folder / "test_probe.py").write_text(PROBE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    wanted = [str(folder / f"test_probe.py::{name}") for name in names] or [str(folder)]
    return subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=120, check=False, cwd=folder)


def test_the_table_counts_tries_and_names_what_was_broken(tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.returncode == 1
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["answers", "4", "3"] in lines
    assert ["stands", "1", "0"] in lines
    assert ["is", "there", "0", "0"] in lines
    assert "broken: answers: asked backwards" in ran.stdout
    assert "broken: stands: pushed: fell over\n" in ran.stdout
    assert "is there: nothing was tried" in ran.stdout


def test_what_holds_passes(tmp_path: Path) -> None:
    ran = run(tmp_path, "test_holds")
    assert ran.returncode == 0
    assert ["answers", "2", "2"] in [line.split() for line in ran.stdout.splitlines()]
