"""Functions of one value in steps: what they compute, what they become of each other, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlir_passes.functions import COMPARE, COMPUTED, IDENTITY, NUMBER, VALUE, Function, Step, Steps, clamp

X = np.array([-np.inf, -3.0, -0.5, 0.0, 0.25, 2.0, np.inf], np.float32)


def _one_step(name: str, *numbers: float, number: float = 0.0) -> Function:
    """A step of the value and of further numbers."""
    steps = Steps()
    operands = tuple(steps.add(NUMBER, number=each) for each in numbers)
    return Function(steps.end(steps.add(name, (0, *operands), number)))


def test_the_value_itself() -> None:
    np.testing.assert_array_equal(IDENTITY(X), X)
    assert IDENTITY(X).dtype == np.float32


def test_results_are_rounded_once() -> None:
    """(x + 2**20) - 2**20 loses x in f32, and not in f64."""
    shifted = _one_step("arith.subf", 2.0**20).of(_one_step("arith.addf", 2.0**20))
    assert shifted(np.float32(0.3)) == np.float32(0.3)


def test_one_function_of_another() -> None:
    double, more = _one_step("arith.mulf", 2.0), _one_step("arith.addf", 1.0)
    assert double.of(more)(3.0) == 8
    assert more.of(double)(3.0) == 7
    assert double.of(more).of(double)(3.0) == 14


@pytest.mark.parametrize(("lo", "hi"), [(0.0, math.inf), (-math.inf, 0.2), (-1.0, 1.5)])
def test_clamps(lo: float, hi: float) -> None:
    np.testing.assert_array_equal(clamp(lo, hi)(X), np.clip(X, np.float32(lo), np.float32(hi)))


def test_compares_as_ordered_and_unordered_ones() -> None:
    """Predicates as MLIR counts them; a number without order is less, greater and equal for the unordered ones."""
    expected = {1: "==", 2: ">", 3: ">=", 4: "<", 5: "<=", 6: "!="}
    for predicate, relation in expected.items():
        values = [bool(eval(f"x {relation} 0.25")) for x in X]
        for offset, missing in ((0, False), (7, True)):
            found = _one_step(COMPARE, 0.25, number=predicate + offset)(np.append(X, np.nan))
            assert found.astype(bool).tolist() == [*values, missing]


def test_every_step_is_computed() -> None:
    arguments = {"arith.select": 3}
    for name, computed in COMPUTED.items():
        for count in (arguments.get(name, 1), 2):
            try:
                value = computed(*[np.asarray(0.5)] * count)
            except TypeError:
                continue
            assert np.isfinite(float(value)), name
            break
        else:
            pytest.fail(f"{name} takes neither one nor two operands")


def test_erf_is_that_of_the_standard_library() -> None:
    found = _one_step("math.erf")(X)
    np.testing.assert_array_equal(found, np.array([math.erf(x) for x in X], np.float32))


@pytest.mark.parametrize("step", [("arith.nonsense", 0.0), (COMPARE, 0.0), (COMPARE, 7.0), (COMPARE, 15.0)])
def test_unknown_steps_are_refused(step: tuple[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Step(step[0], (0, 0), step[1])
    assert Step(VALUE) == IDENTITY.steps[0]
