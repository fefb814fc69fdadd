"""Convolutions as kernels for CPUs compute what numpy computes, bit for bit, whatever the shape and the numbers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_layers import (
    BODIES,
    IMAGES,
    KINDS,
    RUNNABLE,
    SEEDS,
    Case,
    cases,
    check,
    module,
    numbers,
    sum_numbers,
)
from torch_mlir import ir

from mlir_passes.pipeline import Pipeline

FEW = settings(max_examples=3, deadline=None, derandomize=True)
MANY = settings(FEW, max_examples=150, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@FEW
def test_layers_equal_numpy(variant: str, kind: str, data: st.DataObject) -> None:
    check(data.draw(cases(kind)), variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@MANY
def test_many_layers_equal_numpy(variant: str, kind: str, data: st.DataObject) -> None:
    check(data.draw(cases(kind)), variant, data.draw(st.sampled_from(sorted(BODIES))))


@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize(
    ("c", "co", "groups", "form"),
    [
        (64, 64, 16, "multiplier"), (40, 40, 5, "shift"), (24, 24, 6, "real"), (96, 96, 2, "multiplier"),
        (21, 14, 7, "multiplier"), (10, 30, 10, "shift"), (48, 48, 3, "real"),
    ],
)  # fmt: skip
def test_groups_of_any_size(variant: str, c: int, co: int, groups: int, form: str) -> None:
    check(Case("grouped", 6, 9, c, co, (3, 3), pads=(1, 1, 1, 1), seed=c, n=2, groups=groups), variant, form)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", BODIES)
def test_the_program_depends_on_no_number(kind: str, form: str) -> None:
    programs = []
    for seed in (1, 2):
        case = Case(kind, 7, 9, 24, 24, (3, 3), pads=(1, 1, 1, 1), seed=seed, groups=3 if kind == "grouped" else 1)
        text = module(case, form, numbers(case, form), None if form == "real" else sum_numbers(seed))
        parsed = ir.Module.parse(text, context=ir.Context())
        passes = "quantune-lower-to-cpu-kernels{features=avx512vnni},quantune-outline-parameters"
        Pipeline.parse(passes).run(parsed)
        programs.append(str(parsed))
    assert programs[0] == programs[1]


@pytest.mark.parametrize("variant", RUNNABLE)
@pytest.mark.parametrize("form", ["multiplier", "shift"])
@given(seed=SEEDS, c=st.sampled_from([3, 16, 24, 58]), size=st.tuples(st.integers(1, 9), st.integers(1, 17)), n=IMAGES)
@settings(FEW, max_examples=2)
def test_residual_equals_numpy(variant: str, form: str, seed: int, c: int, size: tuple[int, int], n: int) -> None:
    check(Case("conv", *size, c, c, (3, 3), pads=(1, 1, 1, 1), seed=seed, n=n), variant, form, residual=True)


@pytest.mark.parametrize("variant", RUNNABLE)
@given(seed=SEEDS, groups=st.sampled_from([2, 4, 12]), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), n=IMAGES)
@settings(FEW, max_examples=2)
def test_residual_of_groups_equals_numpy(variant: str, seed: int, groups: int, size: tuple[int, int], n: int) -> None:
    case = Case("grouped", *size, 48, 48, (1, 3), pads=(0, 1, 0, 1), seed=seed, n=n, groups=groups)
    check(case, variant, residual=True)
