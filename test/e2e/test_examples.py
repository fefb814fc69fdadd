"""What docs/deploy.md and model cards show: artifacts run where there is IREE's runtime and no quantune."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from card_data import recipe, report

import quantune
from quantune.api import ModelOptions
from quantune.report.card import render_card

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "run_artifact.py"
ALONE = """
import importlib.abc, runpy, sys

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("quantune", "mlir_passes", "torch", "torch_mlir") or name == "iree.compiler":
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refusing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    made = quantune.quantize(net, "precision=f32", options=ModelOptions(shape=(3, 8, 8), batch=2))
    return made.save(tmp_path_factory.mktemp("artifact") / "best.vmfb")


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, (3, 3, 8, 8)).astype(np.float32)


def alone(arguments: Sequence[str], code: str = ALONE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_example_runs_without_quantune(artifact: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images)
    done = alone([str(EXAMPLE), str(artifact), str(tmp_path / "images.npy")])
    assert done.returncode == 0, done.stderr
    model = quantune.load(artifact)
    logits = np.concatenate(
        [np.asarray(model(images[:2])), np.asarray(model(np.concatenate([images[2:], images[:1]])))]
    )
    expected = [f"image {i}: class {row.argmax()}, score {row.max():.4f}" for i, row in enumerate(logits[:3])]
    assert done.stdout.splitlines() == expected


def test_it_could_not_import_quantune(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import quantune\n", encoding="utf-8")
    assert "quantune is not here" in alone([str(script)]).stderr


def test_the_tool_of_the_runtime_runs_it_too(artifact: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    """As docs/deploy.md says."""
    tool = Path(sys.executable).parent / "iree-run-module"
    np.save(tmp_path / "images.npy", images[:2])
    command = [tool, f"--module={artifact}", "--device=local-sync", "--function=main",
               f"--input=@{tmp_path / 'images.npy'}", f"--output=@{tmp_path / 'logits.npy'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), np.asarray(quantune.load(artifact)(images[:2])))


def test_the_code_of_a_model_card_runs(artifact: Path, tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", render_card(recipe(), report()), re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(code.replace('"best.vmfb"', repr(str(artifact))), encoding="utf-8")
    done = alone([str(script)])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2  # one row for each image of a batch
