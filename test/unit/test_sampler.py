from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState

from quantune.search.cost_model import CostModelOptions
from quantune.search.sampler import XGBoostSampler
from quantune.search.transfer import MERITS, PastStudy

CHOICES = {"a": ("u", "v", "w"), "b": (1, 10, 100), "c": ("x", "y", "z"), "d": (False, True)}
SPACE: dict[str, BaseDistribution] = {name: CategoricalDistribution(choices) for name, choices in CHOICES.items()}
POINTS = [dict(zip(CHOICES, p, strict=True)) for p in itertools.product(*CHOICES.values())]
QUICK = CostModelOptions(members=4, rounds=15)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class TestOptunaContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: XGBoostSampler(seed=0, n_startup_trials=1, n_candidates=32, model=QUICK)


def table(params: dict[str, Any]) -> float:
    """A fixed objective with an interaction: one good corner, a collapse, small differences elsewhere."""
    value = {"u": 0.0, "v": 2.0, "w": 1.0}[params["a"]] + {1: -30.0, 10: 0.0, 100: 0.5}[params["b"]]
    value += 1.5 if (params["c"], params["d"]) == ("z", True) else 0.0
    return value + 0.01 * POINTS.index(params) % 0.07


def sampler(seed: int, **options: Any) -> XGBoostSampler:
    return XGBoostSampler(**{"seed": seed, "space": SPACE, "model": QUICK, **options})


def propose(
    sampler: BaseSampler, count: int, direction: str = "maximize", space=SPACE, value=table, until=None
) -> list[dict]:
    study = optuna.create_study(direction=StudyDirection[direction.upper()], sampler=sampler)
    for _ in range(count):
        trial = study.ask(space)
        study.tell(trial, value(trial.params))
        if trial.params == until:
            break
    return [t.params for t in study.trials]


def test_never_repeats_while_points_are_left() -> None:
    proposed = propose(sampler(1), len(POINTS))
    assert len({tuple(p.values()) for p in proposed}) == len(POINTS)


def test_goes_on_when_all_points_were_measured() -> None:
    small = {"d": SPACE["d"]}
    assert len(propose(sampler(1, space=small), 5, space=small, value=lambda p: float(p["d"]))) == 5


def test_same_seed_same_sequence() -> None:
    first, second, other = (propose(sampler(s), 15) for s in (5, 5, 6))
    assert first == second
    assert first != other


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_beats_random_on_a_table(direction: str) -> None:
    sign = 1.0 if direction == "maximize" else -1.0
    best = max(POINTS, key=lambda p: sign * table(p))
    mine = [len(propose(sampler(s), len(POINTS), direction, until=best)) for s in range(7)]
    orders = [np.random.default_rng(s).permutation(len(POINTS)).tolist() for s in range(100)]
    random = [order.index(POINTS.index(best)) + 1 for order in orders]
    assert statistics.median(mine) < 0.75 * statistics.median(random)


def test_resumed_study_continues_as_if_never_stopped() -> None:
    """The sampler keeps nothing in memory: a new object per trial changes nothing."""
    study = optuna.create_study(direction="maximize")
    for _ in range(15):
        study.sampler = sampler(5)
        trial = study.ask(SPACE)
        study.tell(trial, table(trial.params))
    assert [t.params for t in study.trials] == propose(sampler(5), 15)


def test_independent_draws_of_a_resumed_study_differ() -> None:
    study = optuna.create_study()
    drawn = []
    for _ in range(4):
        study.sampler = XGBoostSampler(seed=5, n_startup_trials=99)
        drawn.append(study.ask({"x": FloatDistribution(0, 1)}).params["x"])
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING])
def test_unfinished_points_are_not_proposed_again(state: TrialState) -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler(2))
    blocked = []
    for i in range(len(POINTS)):
        trial = study.ask(SPACE)
        if i % 3:
            study.tell(trial, table(trial.params))
            continue
        blocked.append(trial.params)
        if state != TrialState.RUNNING:
            study.tell(trial, state=state)
    assert len({tuple(t.params.values()) for t in study.trials}) == len(POINTS)


def test_queued_points_are_left_to_the_queue() -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler(2))
    queue, rest = POINTS[:-1], POINTS[-1]
    trial = study.ask(SPACE)
    for params in queue:
        study.enqueue_trial(params)
    if trial.params == rest:
        pytest.skip("the seed drew the point the test wants to be left")
    study.tell(trial, 0.0)
    fresh = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    assert study.sampler.sample_relative(study, fresh, dict(SPACE)) == rest


def test_avoids_a_region_in_which_trials_fail() -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler(0))
    for _ in range(30):
        trial = study.ask(SPACE)
        if trial.params["a"] == "u":
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, 1.0 - 0.001 * POINTS.index(trial.params))
    assert sum(t.state == TrialState.FAIL for t in study.trials) <= 6


def test_keeps_constraints() -> None:
    """The best value lies where the constraint is broken; after a while the sampler proposes on the right side."""
    study = optuna.create_study(direction="maximize", sampler=sampler(0))
    for _ in range(24):
        trial = study.ask(SPACE)
        trial.set_constraint("drop", 1.0 if trial.params["a"] == "v" else -1.0)
        study.tell(trial, table(trial.params))
    assert sum(t.params["a"] == "v" for t in study.trials) <= 6
    assert study.best_trial.params == max((p for p in POINTS if p["a"] != "v"), key=table)


def test_first_proposals_follow_the_prior() -> None:
    merit = {tuple(p.values()): float(i) for i, p in enumerate(POINTS)}
    first = sampler(0, prior=lambda p: merit[tuple(p.values())], n_startup_trials=4)
    assert propose(first, 4) == POINTS[::-1][:4]


def test_good_prior_finds_the_best_sooner_and_a_wrong_one_is_overcome() -> None:
    best = max(POINTS, key=table)

    def rank(prior) -> float:
        runs = [propose(sampler(s, prior=prior), len(POINTS), until=best) for s in range(3)]
        return statistics.median(len(r) for r in runs)

    noisy = dict(zip((tuple(p.values()) for p in POINTS), np.random.default_rng(0).normal(0, 1, 54), strict=True))
    assert rank(lambda p: table(p) + noisy[tuple(p.values())]) <= 8
    assert rank(lambda p: -table(p)) < 40


def past_study(model: str, noise: float) -> PastStudy:
    """A study of another model: accuracies in the table's order, more or less."""
    draws = np.random.default_rng(len(model)).normal(0, noise, len(POINTS))
    return PastStudy(model, tuple((p, accuracy(p, float(d))) for p, d in zip(POINTS, draws, strict=True)), 0.75)


def accuracy(params: dict[str, Any], noise: float = 0.0) -> float:
    return float(np.clip(0.7 + (table(params) + noise) / 100, 0.0, 1.0))


def test_past_studies_find_the_best_sooner() -> None:
    best = max(POINTS, key=table)
    past = [past_study("m", 0.3), past_study("mm", 0.3)]
    transfer = {"past": past, "reference": 0.75, "model": CostModelOptions()}
    mine = [len(propose(sampler(s, **transfer), 54, value=accuracy, until=best)) for s in range(3)]
    alone = [len(propose(sampler(s), 54, value=accuracy, until=best)) for s in range(3)]
    assert statistics.median(mine) <= 3 < statistics.median(alone)


def test_misleading_past_studies_are_overcome() -> None:
    best = max(POINTS, key=table)
    wrong = PastStudy("m", tuple((p, 1.0 - accuracy(p)) for p in POINTS), 0.75)
    order = propose(sampler(0, past=[wrong], reference=0.75), 54, value=accuracy, until=best)
    assert len(order) < 40


def test_past_studies_of_other_parameters_change_nothing() -> None:
    past = [PastStudy("m", (({"bits": 4}, 0.5),), 0.7)]
    assert propose(sampler(1, past=past, reference=0.7), 8) == propose(sampler(1), 8)


def test_a_prior_is_followed_before_past_studies() -> None:
    """What is predicted for this model goes first; past studies guide from then on."""
    merit = {tuple(p.values()): float(i) for i, p in enumerate(POINTS)}
    known = PastStudy("m", past_study("m", 0.3).rows, 0.75, (MERITS[1],), tuple((0.0,) for _ in POINTS))
    options = {"prior": lambda p: merit[tuple(p.values())], "past": [known], "reference": 0.75}
    both = propose(sampler(0, n_startup_trials=None, **options), 12, value=accuracy)
    assert both[:8] == POINTS[::-1][:8]
    alone = propose(sampler(0, prior=options["prior"]), 12, value=accuracy)
    assert alone[:8] == both[:8]
    assert alone[8:] != both[8:]


def test_past_studies_with_features() -> None:
    """The configuration of a shuffled table says nothing; a feature that says all is learned from another model."""
    shuffled = np.random.default_rng(1).random(len(POINTS))
    hidden = dict(zip((tuple(p.values()) for p in POINTS), shuffled, strict=True))
    other = np.random.default_rng(2).random(len(POINTS))
    past = PastStudy(
        "m",
        tuple((p, 0.5 + 0.2 * v) for p, v in zip(POINTS, other, strict=True)),
        0.75,
        ("hint",),
        tuple((float(v),) for v in other),
    )

    def value(params: dict[str, Any]) -> float:
        return 0.5 + 0.2 * hidden[tuple(params.values())]

    best = max(POINTS, key=value)
    hint = sampler(0, past=[past], reference=0.75, features=lambda p: [hidden[tuple(p.values())]])
    assert len(propose(hint, 54, value=value, until=best)) <= 5


def test_features_hook_sees_whole_configurations() -> None:
    seen = []
    space = {**SPACE, "fixed": CategoricalDistribution(("only",))}

    def hook(params) -> list[float]:
        seen.append(dict(params))
        return [1.0]

    propose(sampler(0, space=space, features=hook), 6, space=space, value=lambda p: float(p["b"]))
    assert {frozenset(p) for p in seen} == {frozenset(space)}


def test_a_telling_feature_is_used() -> None:
    """Of a shuffled table nothing can be learned from the configuration, all from a feature that equals the value."""
    values = dict(zip((tuple(p.values()) for p in POINTS), np.random.default_rng(1).random(len(POINTS)), strict=True))
    best = max(POINTS, key=lambda p: values[tuple(p.values())])

    def rank(features) -> float:
        def value(p) -> float:
            return values[tuple(p.values())]

        runs = [propose(sampler(s, features=features), len(POINTS), value=value, until=best) for s in range(5)]
        return statistics.median(len(r) for r in runs)

    assert rank(lambda p: [values[tuple(p.values())]]) <= 12 < rank(None)


def test_continuous_space_is_searched() -> None:
    space = {"x": FloatDistribution(-5.0, 5.0), "n": IntDistribution(1, 1_000_000, log=True)}

    def value(params) -> float:
        return (params["x"] - 1.0) ** 2 + (np.log10(params["n"]) - 3) ** 2

    order = propose(sampler(0, space=space, n_candidates=128), 40, "minimize", space, value)
    assert min(map(value, order)) < 0.15


def test_infinite_values_do_no_harm() -> None:
    values = itertools.cycle([float("inf"), 1.0, float("-inf"), 2.0])
    assert len(propose(sampler(0), 12, value=lambda p: next(values))) == 12


def test_parallel_workers_measure_different_points() -> None:
    """A worker sees the others' whole points, although Optuna stores parameters one by one."""
    study = optuna.create_study(direction="maximize", sampler=sampler(0))
    trials = [study.ask() for _ in range(10)]
    for trial in trials:
        trial.suggest_categorical("a", CHOICES["a"])
    points = {tuple(t.suggest_categorical(n, c) for n, c in CHOICES.items()) for t in trials}
    assert len(points) == 10


def test_same_sequence_in_another_process() -> None:
    code = (
        "import optuna; optuna.logging.set_verbosity(40)\n"
        "from optuna.distributions import CategoricalDistribution as C\n"
        "from quantune.search.sampler import XGBoostSampler\n"
        "space = {'a': C(('u','v','w')), 'b': C((1,10,100)), 'c': C(('x','y'))}\n"
        "study = optuna.create_study(sampler=XGBoostSampler(seed=3, space=space))\n"
        "for _ in range(10):\n"
        "    t = study.ask(space); study.tell(t, t.params['b'] + (t.params['a'] == 'v') - (t.params['c'] == 'x'))\n"
        "print([t.params for t in study.trials])\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("'a'") == 10


def test_past_studies_need_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        sampler(0, past=[past_study("m", 0.1)])


@pytest.mark.parametrize("options", [{"n_startup_trials": -1}, {"n_candidates": 0}])
def test_refuses(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        XGBoostSampler(**options)  # type: ignore[arg-type]
