"""The search spaces by name: what belongs to which, and how a point of one is a point of another."""

from __future__ import annotations

import optuna
import pytest

from quantune.errors import UsageError
from quantune.numerics.clipping import CLIPS
from quantune.quantization import space
from quantune.quantization.bits import UNIFORM_8, BitWidths
from quantune.quantization.config import QuantConfig
from quantune.search.features import Encoder, enumerate_space
from quantune.search.sampler import XGBoostSampler
from quantune.search.scores import complexity
from quantune.search.strategies import describe_space
from quantune.search.transfer import PastStudy, rows_in, shipped

PAPER, WIDE = space.distributions(), space.distributions(space="wide")

PAPER_TEXT = (
    'calib: {"name": "CategoricalDistribution", "attributes": {"choices": [1, 1000, 10000]}}; '
    'scheme: {"name": "CategoricalDistribution", "attributes": {"choices": '
    '["asymmetric", "symmetric", "symmetric_uint8", "symmetric_power2"]}}; '
    'clip: {"name": "CategoricalDistribution", "attributes": {"choices": ["max", "kl"]}}; '
    'granularity: {"name": "CategoricalDistribution", "attributes": {"choices": ["tensor", "channel"]}}; '
    'precision: {"name": "CategoricalDistribution", "attributes": {"choices": ["int8", "mixed"]}}'
)


def test_the_papers_space_is_the_default_and_its_studies_go_on() -> None:
    """A study is continued only in the space that this text names."""
    assert describe_space(PAPER) == describe_space(space.distributions(space="paper")) == PAPER_TEXT
    assert len(space.LEVEL1) == len(set(space.LEVEL1)) == 96
    assert all(c.weight_clip == "max" and c.bias == "none" for c in space.LEVEL1)


def test_the_wide_space_has_every_rule_and_holds_the_papers() -> None:
    points = enumerate_space(WIDE)
    assert points is not None
    assert [space.from_params(p) for p in points] == list(space.configs("wide"))
    assert len(set(space.configs("wide"))) == 96 // 2 * 5 * 3 * 3
    assert set(space.LEVEL1) < set(space.configs("wide"))
    values = {name: {p[name] for p in points} for name in WIDE}
    assert values["clip"] == set(CLIPS) == {"max", "kl", "percentile", "mse", "aciq"}
    assert values["weight_clip"] == {"max", "mse", "power"}
    assert values["bias"] == {"none", "fast", "sequential"}
    assert len({row.tobytes() for row in Encoder(WIDE)(points)}) == len(points)  # none looks like another
    assert describe_space(WIDE) != PAPER_TEXT


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wid", "space 'wid': expected one of paper, wide (did you mean wide?)"),
        ("level1", "space 'level1': expected one of paper, wide"),
        (None, "space 'None': expected one of paper, wide"),
        ([], "space '[]': expected one of paper, wide"),
    ],
)
def test_an_unknown_space_is_one_line(name: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        space.configs(name)
    assert str(caught.value) == line


@pytest.mark.parametrize("bits", ["w8a4", "w4/w4a4:features.0"])
@pytest.mark.parametrize("name", ["paper", "wide"])
def test_activations_of_four_bits_are_in_no_search(bits: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"bits={bits[:2]}.*: a search takes activations of eight bits") as caught:
        space.distributions([UNIFORM_8, BitWidths.parse(bits)], space=name)
    assert "\n" not in str(caught.value)
    assert "bits" in space.distributions([BitWidths.parse("w4")], space=name)


def test_a_row_of_the_papers_space_is_a_point_of_the_wide_one_with_defaults() -> None:
    params = space.to_params(QuantConfig(clip="kl"))
    found = rows_in(PastStudy("a", ((params, 0.5),), 0.6), WIDE)
    assert found == {0: {**params, "weight_clip": "max", "bias": "none"}}
    assert "weight_clip" not in params  # the study's own row is left as it is
    assert rows_in(PastStudy("a", ((params, 0.5),), 0.6), PAPER) == {0: params}
    for study in shipped():
        assert {space.from_params(p) for p in rows_in(study, WIDE).values()} == set(space.LEVEL1)


def test_a_row_of_the_wide_space_is_a_point_of_the_papers_only_with_defaults() -> None:
    rows = tuple((p, 0.5) for p in enumerate_space(WIDE) or ())
    study = PastStudy("a", rows, 0.6)
    assert rows_in(study, WIDE) == {i: p for i, (p, _) in enumerate(rows)}
    kept = rows_in(study, PAPER)
    assert len(kept) == 96
    assert {space.from_params(p) for p in kept.values()} == set(space.LEVEL1)
    assert all(set(p) == set(PAPER) for p in kept.values())
    assert all(rows[i][0]["bias"] == "none" and rows[i][0]["weight_clip"] == "max" for i in kept)


def test_the_sampler_hears_of_the_papers_rows_in_the_wide_space() -> None:
    """Without a prior the first proposal is what past studies foresee: the best row, with the defaults of the rest."""
    best = space.to_params(QuantConfig(scheme="symmetric", clip="kl", granularity="tensor"))
    rows = tuple((p, 0.9 if p == best else 0.3) for p in enumerate_space(PAPER) or ())
    study = optuna.create_study(
        direction="maximize",
        sampler=XGBoostSampler(seed=0, space=WIDE, past=[PastStudy("a", rows, 0.9)], reference=0.9),
    )
    assert study.ask(dict(WIDE)).params == {**best, "weight_clip": "max", "bias": "none"}


def test_a_row_of_other_bit_widths_stays_one() -> None:
    params = space.to_params(QuantConfig(bits=BitWidths.parse("w4")))
    study = PastStudy("a", ((params, 0.5),), 0.6)
    narrow = space.distributions([BitWidths.parse("w4")], space="wide")
    assert rows_in(study, narrow) == {0: {**params, "weight_clip": "max", "bias": "none"}}
    assert rows_in(study, WIDE) == {}
    assert "bits" not in (space.completed(space.to_params(QuantConfig()), narrow) or {})
    assert rows_in(PastStudy("a", ((space.to_params(QuantConfig()), 0.5),), 0.6), narrow) == {}


def test_of_equal_measurements_the_one_without_weight_ranges_and_bias_correction_is_simpler() -> None:
    given = [QuantConfig(weight_clip=clip, bias=bias) for clip, bias in
             [("max", "none"), ("max", "fast"), ("max", "sequential"), ("mse", "none"), ("power", "none")]]  # fmt: skip
    keys = [complexity(config) for config in given]
    assert keys == sorted(set(keys))
    assert complexity(QuantConfig(calib=1, bias="fast")) < keys[0]
