"""The demo in a network namespace without any network, as the container runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from obligations import Obligation

ROOT = Path(__file__).resolve().parent.parent.parent
SMALLER = {"builtin:shapes?count=2000": "builtin:shapes?count=64", "16": "2", "0.01": "0.5"}
CONNECT = "import socket; socket.create_connection(('127.0.0.1', 9), 5)"


def without_network() -> list[str]:
    """The words before a command that take the network away from it; skips where nobody may."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
                return words
        except FileNotFoundError:
            break
    pytest.skip("unshare is not allowed here")


@pytest.mark.slow
def test_the_demo_needs_no_network(obligation: Callable[[str], Obligation], tmp_path: Path) -> None:
    away = without_network()
    probe = subprocess.run([*away, sys.executable, "-c", CONNECT], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in probe.stderr
    file = (ROOT / "Containerfile").read_text(encoding="utf-8")
    words = json.loads(file.partition("\nCMD ")[2])
    words = [SMALLER.get(word, word).replace("/out", str(tmp_path / "out")) for word in words]
    tool = Path(sys.executable).parent / "quantune-compile"
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    with obligation("the demo needs no network").trial("unshare -n"):
        ran = subprocess.run(
            [*away, str(tool), *words], env={"PATH": os.environ["PATH"], **places}, cwd=tmp_path,
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert {"best.vmfb", "best.json", "report.html"} <= {path.name for path in (tmp_path / "out").iterdir()}
