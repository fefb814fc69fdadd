"""Runs the FileCheck tests of test/lit, so that pytest alone runs everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIT_TESTS = Path(__file__).resolve().parent.parent / "lit"


def test_lit(tmp_path: Path) -> None:
    # The module lit.main does nothing when run with -m: its function has to be called.
    command = [
        sys.executable,
        "-c",
        "import lit.main; lit.main.main()",
        "-v",
        f"-Dexec_root={tmp_path}",
        str(LIT_TESTS),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LIT_OPTS": ""})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Passed" in result.stdout
