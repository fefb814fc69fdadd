"""Whatever a study's database holds, it is moved aside and told, or the search goes on with scores that are scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sizes
from fuzz import hold, variants
from obligations import Obligation
from optuna.distributions import CategoricalDistribution
from tuner_bench import quick_disk as quick_disk

from quantune.search.scores import Score
from quantune.search.tuner import tune


@pytest.mark.parametrize("count", [10, pytest.param(sizes.EXPENSIVE, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quick_disk")
def test_studies(count: int, obligation: Callable[[str], Obligation], tmp_path: Path) -> None:
    space = {"scheme": CategoricalDistribution(("symmetric", "asymmetric", "symmetric_uint8"))}

    def search(trials: int) -> None:
        tune(lambda config: Score(0.5, 1.0, 1, 1), tmp_path / "out", space=space, max_trials=trials, first=())

    search(2)
    study = tmp_path / "out" / "study.db"

    def read(data: bytes) -> None:
        for each in study.parent.glob("study.db*"):
            each.unlink()
        study.write_bytes(data)
        search(3)

    hold(obligation("reader: study.db"), variants([study.read_bytes()], count), read)
