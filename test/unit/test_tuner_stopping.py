"""What a search does with trials that were stopped early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from quantune.quantization.config import QuantConfig
from quantune.quantization.space import LEVEL1, PARAMETERS
from quantune.search.scores import Objective, Score, pack_correct
from quantune.search.stopping import Floor, looks
from quantune.search.tuner import tune

IMAGES = 1000
SPACE = {name: CategoricalDistribution(values[:2]) for name, values in PARAMETERS.items()}
F32 = QuantConfig(precision="f32")


class Bench:
    """Measures in steps, as the evaluator does: a configuration answers a fixed share of the images right."""

    def __init__(self) -> None:
        self.floor: Floor | None = None
        self.floors: list[Floor | None] = []
        ranks = np.random.default_rng(0).permutation(len(LEVEL1))
        self.share = {config: 0.3 + 0.5 * rank / len(LEVEL1) for config, rank in zip(LEVEL1, ranks, strict=True)}

    def right(self, config: QuantConfig) -> np.ndarray:
        share = self.share.get(config, 0.85)
        return np.random.default_rng(7).random(IMAGES) < share

    def set_floor(self, floor: Floor | None) -> None:
        self.floor = floor
        self.floors.append(floor)

    def __call__(self, config: QuantConfig) -> Score:
        right = self.right(config)
        for count in looks(IMAGES) if self.floor is not None else ():
            if self.floor is not None and self.floor.stops(right[:count]):
                estimate = self.floor.estimate(right[:count])
                return Score(estimate, 1.0, 100, count, pack_correct(right[:count]))
        return Score(float(right.mean()), 1.0, 100, IMAGES, pack_correct(right))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_answer_is_measured_in_full_and_is_the_same_without_stopping(tmp_path: Path, bench: Bench) -> None:
    objective = Objective("accuracy", 0.1)
    options = {"objective": objective, "sampler": "random", "first": (), "space": SPACE}
    stopping = tune(bench, tmp_path / "a", set_floor=bench.set_floor, **options)
    bench.floor = None
    whole = tune(bench, tmp_path / "b", **options)
    assert stopping.best is not None
    assert whole.best is not None
    assert stopping.best.config == whole.best.config
    assert stopping.best.score == whole.best.score
    short = [t for t in stopping.trials if t.score is not None and t.score.images < IMAGES]
    assert len(short) > 8
    assert all(t.score is None or t.score.images == IMAGES for t in (*stopping.pareto, *whole.trials))
    for trial in short:
        assert trial.score is not None
        assert trial.score.accuracy == pytest.approx(bench.share[trial.config], abs=0.15)


def test_the_floor_is_the_best_so_far_or_the_bound(tmp_path: Path, bench: Bench) -> None:
    tune(bench, tmp_path / "a", objective=Objective("accuracy", 0.1), sampler="random", first=(), max_trials=12,
         set_floor=bench.set_floor)  # fmt: skip
    assert bench.floors[0] is None  # nothing to compare with yet
    sums = [int(floor.reference.sum()) for floor in bench.floors[1:] if floor is not None]
    assert len(sums) == 11
    assert sums == sorted(sums)
    other = Bench()
    tune(other, tmp_path / "b", objective=Objective("size", 0.1), sampler="random", first=(), max_trials=3,
         set_floor=other.set_floor)  # fmt: skip
    for floor in other.floors:
        assert floor is not None
        assert floor.allowed == 100
        np.testing.assert_array_equal(floor.reference, other.right(F32))


def test_what_comes_first_is_measured_in_full(tmp_path: Path, bench: Bench) -> None:
    default = min(LEVEL1, key=lambda config: bench.share[config])
    result = tune(bench, tmp_path, objective=Objective("size", 0.1), sampler="random", first=(default,), max_trials=6,
                  set_floor=bench.set_floor)  # fmt: skip
    images = {t.config: t.score.images for t in result.trials if t.score is not None}
    assert images[default] == IMAGES
    assert min(images.values()) < IMAGES


def test_optuna_is_quiet_and_keeps_its_verbosity(
    tmp_path: Path, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        tune(bench, tmp_path, sampler="random", max_trials=1)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert "study created" not in capfd.readouterr().err
    finally:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
