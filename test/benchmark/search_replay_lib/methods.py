"""Search methods that can be replayed: each yields the points of a table in the order in which it measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from scipy.stats import rankdata

from quantune.errors import UsageError
from quantune.quantization.space import PARAMETERS
from quantune.search.features import FeatureHook, key_of
from quantune.search.sampler import XGBoostSampler
from quantune.search.transfer import MERITS, PastStudy
from quantune.tuning.screening import CONFIGURATIONS
from search_replay_lib.paper import PaperSearch
from search_replay_lib.tables import KNOWN, ModelTable

Order = Callable[[int], Iterator[int]]
"""Seed to indices of points, in the order in which they are measured."""

PAPER_START = {"calib": 1000, "scheme": "symmetric", "clip": "max", "granularity": "tensor", "precision": "int8"}
_REPEATS = 20


@dataclass(frozen=True)
class Task:
    """The table to search, and the tables of all other models."""

    table: ModelTable
    others: list[ModelTable]


def random(task: Task) -> Order:
    """All points shuffled."""
    return lambda seed: iter(np.random.default_rng(seed).permutation(len(task.table.points)).tolist())


def grid(task: Task) -> Order:
    """The paper's order: scheme changes fastest, then clipping, granularity, calibration, precision."""
    names = ("precision", "calib", "granularity", "clip", "scheme")
    order = sorted(
        range(len(task.table.points)),
        key=lambda i: [PARAMETERS[n].index(task.table.points[i][n]) for n in names],
    )
    return lambda seed: iter(order)


def mean_rank(task: Task) -> Order:
    """By mean percentile rank on the other models that measured the point."""
    return _by_merit(task, lambda values: rankdata(values) / len(values))


def mean_gap(task: Task) -> Order:
    """By mean distance (accuracy) from the best of each other model."""
    return _by_merit(task, lambda values: values - values.max())


def _by_merit(task: Task, merits: Callable[[np.ndarray], np.ndarray]) -> Order:
    space = task.table.space
    found: dict[tuple[float, ...], list[float]] = {}
    wanted = task.table.index()
    for other in task.others:
        kept = [i for i, p in enumerate(other.points) if _key(p, space) in wanted]
        if not kept:
            continue
        for i, merit in zip(kept, merits(other.accuracy[kept]), strict=True):
            found.setdefault(key_of(other.points[i], space), []).append(float(merit))
    merit = np.asarray([np.mean(found.get(key_of(p, space), [-np.inf])) for p in task.table.points])

    def order(seed: int) -> Iterator[int]:
        ties = np.random.default_rng(seed).random(len(merit))
        return iter(np.lexsort((ties, -merit)).tolist())

    return order


def _key(params: Mapping[str, Any], space: Mapping[str, Any]) -> tuple[float, ...] | None:
    try:
        return key_of(params, space)
    except (KeyError, ValueError):
        return None


def coordinate(task: Task) -> Order:
    """One parameter after the other (scheme, clip, granularity, calib, precision) from `PAPER_START`, until none helps.

    From then on it starts again at a random point that was not measured.
    """
    table, index, space = task.table, task.table.index(), task.table.space
    names = ("scheme", "clip", "granularity", "calib", "precision")

    def order(seed: int) -> Iterator[int]:
        rng, seen = np.random.default_rng(seed), []
        start = {n: PAPER_START[n] if PAPER_START[n] in d.choices else d.choices[0] for n, d in space.items()}
        while len(seen) < len(table.points):
            here = index[key_of(start, space)]
            if here not in seen:
                seen.append(here)
                yield here
            improved = True
            while improved:
                improved = False
                for name in names:
                    for choice in space[name].choices:
                        there = index[key_of({**table.points[here], name: choice}, space)]
                        if there not in seen:
                            seen.append(there)
                            yield there
                    line = [index[key_of({**table.points[here], name: c}, space)] for c in space[name].choices]
                    best = max(line, key=lambda i: table.accuracy[i])
                    if table.accuracy[best] > table.accuracy[here]:
                        here, improved = best, True
            left = [p for i, p in enumerate(table.points) if i not in seen]
            start = left[int(rng.integers(len(left)))] if left else start

    return order


def paper_transfer(task: Task) -> Order:
    """XGB-T of the paper."""
    return PaperSearch(task.table, task.others, transfer=True).order


def paper_online(task: Task) -> Order:
    """XGB of the paper."""
    return PaperSearch(task.table, task.others, transfer=False).order


def tpe(task: Task) -> Order:
    """Optuna's TPE."""
    return _of_sampler(task, lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5))


def genetic(task: Task) -> Order:
    """Optuna's NSGA-II with eight individuals."""
    return _of_sampler(task, lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=8))


def xgboost(task: Task) -> Order:
    """Our sampler, with the predictions of the table as features if it has any, and nothing of other models."""
    features = _hook(task.table, _predicted(task.table))
    return _of_sampler(task, lambda seed: XGBoostSampler(seed=seed, space=task.table.space, features=features))


def xgboost_prior(task: Task) -> Order:
    """Our sampler, led by the predicted noise of the table's configurations."""
    return _guided(task, _predicted(task.table), (), "xgboost+prior")


def xgboost_transfer(task: Task) -> Order:
    """Our sampler as a search for few images uses it: the other models' tables, and predicted noise where known."""
    return _guided(task, _predicted(task.table), _past(task, "xgboost+transfer", KNOWN[:-1]), "")


def xgboost_screening(task: Task) -> Order:
    """Our sampler as a search for many images uses it: the other models' tables, predicted noise and screening."""
    return _guided(task, _screened(task.table), _past(task, "xgboost+screening", KNOWN), "xgboost+screening")


METHODS: dict[str, Callable[[Task], Order]] = {
    "random": random,
    "grid": grid,
    "genetic": genetic,
    "tpe": tpe,
    "coordinate": coordinate,
    "mean-rank": mean_rank,
    "mean-gap": mean_gap,
    "paper-xgb": paper_online,
    "paper-xgb-t": paper_transfer,
    "xgboost": xgboost,
    "xgboost+prior": xgboost_prior,
    "xgboost+transfer": xgboost_transfer,
    "xgboost+screening": xgboost_screening,
}


def applicable(tables: list[ModelTable]) -> list[str]:
    """The methods for which the tables tell enough: other models, f32 accuracies, features."""
    left_out = set()
    if len(tables) < 2:
        left_out |= {"mean-rank", "mean-gap", "paper-xgb-t", "xgboost+transfer", "xgboost+screening"}
    if any(t.reference is None for t in tables):
        left_out |= {"xgboost+transfer", "xgboost+screening"}
    if any(t.features is None for t in tables):
        left_out |= {"xgboost+prior", "xgboost+screening"}
    return [name for name in METHODS if name not in left_out]


def _guided(task: Task, known: np.ndarray | None, past: Sequence[PastStudy], needs: str) -> Order:
    """Our sampler with features, of which the best of `MERITS` is the prior; needs: the method that asks for them."""
    table = task.table
    if known is None and needs:
        raise UsageError(f"{needs}: the table of {table.name} has no features")
    prior = None if known is None else _merit(table, known)
    features = _hook(table, known)

    def sampler(seed: int) -> XGBoostSampler:
        reference = table.reference if past else None
        return XGBoostSampler(
            seed=seed, space=table.space, features=features, prior=prior, past=past, reference=reference
        )

    return _of_sampler(task, sampler)


def _past(task: Task, method: str, names: Sequence[str]) -> list[PastStudy]:
    unknown = [t.name for t in (task.table, *task.others) if t.reference is None]
    if unknown or not task.others:
        reason = f"{unknown[0]} has no row of precision f32" if unknown else "the table has one model only"
        raise UsageError(f"{method}: {reason}")
    return [other.study().with_features(names) for other in task.others]


def _hook(table: ModelTable, known: np.ndarray | None) -> FeatureHook | None:
    if known is None:
        return None
    rows = {key_of(p, table.space): f.tolist() for p, f in zip(table.points, known, strict=True)}
    return lambda params: rows[key_of(params, table.space)]


def _merit(table: ModelTable, known: np.ndarray) -> Callable[[Mapping[str, Any]], float]:
    names = KNOWN[: known.shape[1]]
    column = known[:, names.index(next(name for name in MERITS if name in names))]
    merits = {key_of(p, table.space): float(m) for p, m in zip(table.points, column, strict=True)}
    return lambda params: merits[key_of(params, table.space)]


def _predicted(table: ModelTable) -> np.ndarray | None:
    """What is known without a screening."""
    return None if table.features is None else table.features[:, :-1]


def _screened(table: ModelTable) -> np.ndarray | None:
    """What a search knows after screening: the merits of the best predicted configurations, and those of the others.

    As `quantune.tuning.screening.Screening.merit` has it; a table has the merits of all.
    """
    if table.features is None:
        return None
    predicted, merits = (table.features[:, KNOWN.index(name)] for name in reversed(MERITS))
    chosen: dict[str, int] = {}
    for i in np.argsort(-predicted, kind="stable"):
        chosen.setdefault(table.identity[i], int(i))
    best = list(chosen.values())[:CONFIGURATIONS]
    screened = np.isin(table.identity, [table.identity[i] for i in best])
    below = merits[screened].min() - np.maximum(predicted[best].min() - predicted, 0.0)
    return np.column_stack([table.features[:, :-1], np.where(screened, merits, below)])


def _of_sampler(task: Task, sampler: Callable[[int], BaseSampler]) -> Order:
    """New points in the order of an Optuna study; a repeated point costs nothing, and after `_REPEATS` one is drawn."""
    table, space, index = task.table, task.table.space, task.table.index()

    def order(seed: int) -> Iterator[int]:
        study = optuna.create_study(direction="maximize", sampler=sampler(seed))
        rng, seen, repeats = np.random.default_rng(seed), set(), 0
        while len(seen) < len(table.points):
            if repeats >= _REPEATS:
                left = [p for i, p in enumerate(table.points) if i not in seen]
                study.enqueue_trial(left[int(rng.integers(len(left)))])
            trial = study.ask(dict(space))
            point = index[key_of(trial.params, space)]
            study.tell(trial, float(table.accuracy[point]))
            repeats = repeats + 1 if point in seen else 0
            if point not in seen:
                seen.add(point)
                yield point

    return order
