"""A quadratic allocation is the best there is, or says by how much it may not be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax
from test_allocation import NETWORK, W2, W4, W8, Fake

from quantune.allocation.base import Budget, Interactions, Problem
from quantune.allocation.interactions import Clado, Gram
from quantune.allocation.quadratic import exchanged, positive
from quantune.allocation.solve import Feasible, optimal
from quantune.allocation.sqnr import Sqnr
from quantune.quantization.bits import BitWidths, LayerBits

CHOICES = (W2, W4, W8)
problems = st.tuples(st.integers(1, 4), st.integers(0, 10_000), st.floats(0, 1))


def _problem(layers: int, seed: int, share: float) -> Problem:
    rng = np.random.default_rng(seed)
    columns = tuple((f"l{i}", choice) for i in range(layers) for choice in CHOICES)
    root = rng.standard_normal((len(columns), 1 + len(columns) // 2))
    costs = {f"l{i}": {c: float(rng.integers(1, 20)) for c in CHOICES} for i in range(layers)}
    least, most = (sum(pick(row.values()) for row in costs.values()) for pick in (min, max))
    return Problem(Interactions(columns, root @ root.T), [Budget(costs, least + share * (most - least))])


def _all(problem: Problem) -> tuple[Feasible, list[NDArray]]:
    assert isinstance(problem.scores, Interactions)
    space = Feasible(problem.scores.columns, problem)
    points = itertools.product(np.eye(len(CHOICES)), repeat=len(space.layers))
    return space, [x for point in points if space.keeps(x := np.concatenate(point))]


@settings(max_examples=60, deadline=None)
@given(problems)
def test_the_gap_is_certified_and_exchanges_leave_little(shape: tuple[int, int, float]) -> None:
    problem = _problem(*shape)
    matrix = problem.scores.matrix  # type: ignore[union-attr]
    space, points = _all(problem)
    best = min(float(x @ matrix @ x) for x in points)
    found = optimal(problem)
    taken = space.taken(found.bits)
    assert found.score == pytest.approx(float(taken @ matrix @ taken))
    assert space.keeps(taken)
    assert found.costs["size"] == pytest.approx(float(space.prices["size"] @ taken))
    assert found.gap is not None
    assert found.score - found.gap <= best + 1e-6 * max(1.0, best)  # the bound is one
    for one, two in itertools.product(points, repeat=2):  # no exchange of two layers is better
        changed = {layer for (layer, _), a, b in zip(space.columns, one, two, strict=True) if a != b}
        if np.array_equal(one, taken) and len(changed) <= 2:
            assert found.score <= float(two @ matrix @ two) + 1e-9 * max(1.0, found.score)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_separable_interactions_are_solved_like_scores(shape: tuple[int, int, float]) -> None:
    problem = _problem(*shape)
    diagonal = np.diag(np.diag(problem.scores.matrix))  # type: ignore[union-attr]
    alone = Interactions(problem.scores.columns, diagonal)  # type: ignore[union-attr]
    expected = optimal(Problem(alone.separable, problem.budgets)).score
    found = optimal(Problem(alone, problem.budgets))
    assert found.score == pytest.approx(expected, rel=1e-6)


def test_exchanges_of_two_layers_reach_what_one_alone_cannot() -> None:
    columns = tuple((name, choice) for name in "ab" for choice in (W4, W8))
    costs = {name: {W4: 1.0, W8: 2.0} for name in "ab"}
    problem = Problem(Interactions(columns, np.diag([1.0, 0.0, 5.0, 0.0])), [Budget(costs, 3)])
    space = Feasible(columns, problem)
    start = np.array([0.0, 1.0, 1.0, 0.0])  # a wide, b narrow: the wrong way round, and no room for both
    np.testing.assert_array_equal(exchanged(problem.scores.matrix, space, start), [1, 0, 0, 1])  # type: ignore[union-attr]


def test_layers_that_read_one_tensor_agree_in_quadratic_allocations() -> None:
    narrow, wide = LayerBits(8, 4), LayerBits(8, 8)
    columns = tuple((name, choice) for name in "ab" for choice in (narrow, wide))
    scores = Interactions(columns, np.diag([0.0, 1.0, 3.0, 0.0]))
    costs = {name: {narrow: 1.0, wide: 1.0} for name in "ab"}
    assert optimal(Problem(scores, [Budget(costs, 9)])).bits == BitWidths(wide, (("a", narrow),))
    assert optimal(Problem(scores, [Budget(costs, 9)], [["a", "b"]])).bits == BitWidths(wide)


def test_negative_eigenvalues_become_nothing() -> None:
    matrix = np.array([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1
    np.testing.assert_allclose(positive(matrix), [[1.5, 1.5], [1.5, 1.5]])
    np.testing.assert_allclose(positive(np.eye(3)), np.eye(3))


def test_what_is_no_form_is_refused() -> None:
    columns = (("a", W4), ("a", W8))
    for matrix in (np.eye(3), np.array([[0.0, 1.0], [0.0, 0.0]])):
        with pytest.raises(ValueError, match="expected a symmetric matrix"):
            Interactions(columns, matrix)
    with pytest.raises(ValueError, match="metric is 'cross'; expected kl or power"):
        Gram(metric="cross")


# Scores


# Small outputs: their probabilities are far from 0 and 1.
FAKE = Fake(images=0.02 * Fake().images)


def _flip(*layers: tuple[str, LayerBits]) -> NDArray[np.float64]:
    _, found = FAKE.logits([BitWidths(W8, layers)], 4)
    return found.astype(np.float64)


def _kl(output: NDArray[np.float64]) -> float:
    exact = next(FAKE.logits([], 4)).astype(np.float64)
    p, q = log_softmax(exact, axis=1), log_softmax(output, axis=1)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_gram_s_diagonal_is_the_score_of_sqnr() -> None:
    found = Gram(images=4, metric="power")(Fake()).separable
    expected = Sqnr(images=4)(Fake())
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, rel=1e-5)


def test_gram_predicts_the_divergence_of_small_changes() -> None:
    """Second-order: of changes a hundredth as large it is the divergence itself."""
    gram = Gram(images=4)(FAKE)
    at = [gram.columns.index(column) for column in (("b", W4), ("c", W2))]
    base = _flip()
    together = sum((_flip(gram.columns[i]) - base for i in at), np.zeros_like(base))
    shape = len(base), -1
    exact = next(FAKE.logits([], 4)).astype(np.float64).reshape(shape)
    small = 0.01 * together.reshape(shape)
    p, q = log_softmax(exact, axis=1), log_softmax(exact + small, axis=1)
    expected = 1e4 * float((np.exp(p) * (p - q)).sum(axis=1).mean())
    assert gram.matrix[np.ix_(at, at)].sum() == pytest.approx(expected, rel=0.05)
    assert np.linalg.eigvalsh(gram.matrix).min() > -1e-9


def test_clado_measures_pairs() -> None:
    one, two = ("b", W2), ("c", W4)
    found = Clado(images=4, widths=(2, 4, 8))(FAKE)
    alone = [_kl(_flip(column)) - _kl(_flip()) for column in (one, two)]
    both = _kl(_flip(one, two)) - _kl(_flip())
    raw = np.zeros((len(found.columns),) * 2)
    for column in found.columns:
        if column[1] != W8:
            i = found.columns.index(column)
            raw[i, i] = 2 * (_kl(_flip(column)) - _kl(_flip()))
    for a, b in itertools.combinations(found.columns, 2):
        if a[0] != b[0] and W8 not in (a[1], b[1]):
            i, j = found.columns.index(a), found.columns.index(b)
            raw[i, j] = raw[j, i] = _kl(_flip(a, b)) - _kl(_flip(a)) - _kl(_flip(b)) + _kl(_flip())
    i, j = (found.columns.index(column) for column in (one, two))
    assert raw[i, j] == pytest.approx(both - sum(alone), abs=1e-9)
    np.testing.assert_allclose(found.matrix, positive(raw) / 2, atol=1e-9)
    assert {choice for _, choice in found.columns} == {W2, W4, W8}


def test_clado_offers_the_authors_widths_only() -> None:
    fake = Fake(choices=(W2, LayerBits(3), LayerBits(6), W8))
    assert {choice for _, choice in Clado(images=2)(fake).columns} == {W2, W8}
    assert {name for name, _ in Clado(images=2)(fake).columns} == {node.name for node in NETWORK.layers}
