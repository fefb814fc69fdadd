"""A search in the wide space, end to end: begun, refused in the paper's space, and continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from quantune import api
from quantune.data.base import ImageSource
from quantune.errors import UsageError
from quantune.quantization.config import QuantConfig
from quantune.quantization.space import configs

SHAPE = (3, 8, 8)


class Labelled(ImageSource):
    """Random images of four classes."""

    name, classes, shape = "noise", 4, SHAPE

    def __init__(self, count: int, seed: int) -> None:
        self.images = np.random.default_rng(seed).normal(0.5, 1, (count, *SHAPE)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        return self.images[index], index % 4


def _search(folder: Path, trials: int, space: str) -> api.Result:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 4))
    return api.compile(
        net.eval(), calib=Labelled(8, 0), eval=Labelled(12, 1), space=space, max_trials=trials, max_drop=None,
        out=folder, options=api.ModelOptions(shape=SHAPE),
    )  # fmt: skip


def test_a_wide_search_measures_corrected_biases_and_belongs_to_its_space(tmp_path: Path) -> None:
    first = _search(tmp_path, 3, "wide")
    tried = [trial.config for trial in first.tuning.trials]
    assert tried[0] == QuantConfig()  # what reports compare with
    assert {trial.state for trial in first.tuning.trials} == {"complete"}
    assert set(tried) <= set(configs("wide"))
    # What predictions put first has its biases corrected, and nothing is compiled for that.
    assert all(config.bias == "sequential" for config in tried[1:])
    rows = {row["config"]: row["params"] for row in first.report["trials"]}
    assert all(rows[str(config)] == config.options() for config in tried)

    with pytest.raises(UsageError, match="was made with space=") as refused:
        _search(tmp_path, 4, "paper")
    assert "\n" not in str(refused.value)

    more = _search(tmp_path, 4, "wide")
    assert [trial.config for trial in more.tuning.trials][:3] == tried
    assert len(more.tuning.trials) == 4
