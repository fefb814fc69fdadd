from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantune.errors import UsageError
from quantune.quantization import space
from quantune.quantization.predictions import ARCHITECTURE, FEATURES
from quantune.search.features import enumerate_space
from quantune.search.transfer import MERITS, PastStudy, load_studies, rows_in, save_studies, score, shipped, usable
from quantune.tuning.screening import SCREENED

SPACE = space.distributions()
POINTS = enumerate_space(SPACE) or []
STUDY = PastStudy(
    "a",
    tuple((p, 0.5 + i / 1000) for i, p in enumerate(POINTS)),
    0.7,
    ("x", "y"),
    tuple((float(i), -1.5) for i in range(len(POINTS))),
    "abc",
    {"note": "by hand"},
)


def test_score_keeps_the_order_and_compresses_large_drops() -> None:
    values = score(np.array([0.71, 0.70, 0.699, 0.69, 0.60, 0.10]), 0.7)
    assert values[1] == 0.0
    steps = -np.diff(values)
    assert np.all(steps > 0)
    assert steps[3] == pytest.approx(np.log(10), abs=0.02)  # ten times the drop
    assert steps[4] < np.log(10)


def test_own_study_and_foreign_features_are_left_out() -> None:
    same_weights = replace(STUDY, model="renamed")
    other = replace(STUDY, model="b", fingerprint="def")
    kept = usable([STUDY, same_weights, other], model="a", fingerprint="abc", feature_names=("x", "y"))
    assert kept == (other,)
    column = usable([other], model="a", feature_names=("y",))[0]
    assert column.features == tuple((row[1],) for row in other.features)
    assert usable([other], model="a", feature_names=("x", "z"))[0].features == ()
    assert usable([replace(STUDY, fingerprint="")], model="b", fingerprint="")


def test_rows_of_another_space_are_left_out() -> None:
    rows = (({"bits": 4}, 0.1), ({**POINTS[0], "calib": 7}, 0.1), (POINTS[1], 0.1))
    assert rows_in(PastStudy("a", rows, 0.5), SPACE) == {2: POINTS[1]}


def test_file_round_trip(tmp_path: Path) -> None:
    bare = PastStudy("b", ((POINTS[0], 0.25),), 0.5)
    save_studies(tmp_path / "s.json", [STUDY, bare])
    assert load_studies(tmp_path / "s.json") == (STUDY, bare)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "quantune-transfer-2"}', '{"format": "quantune-transfer-2", "studies": [1]}',
     '{"format": "quantune-transfer-2", "studies": [{"model": "a", "fingerprint": "", "provenance": {}, '
     '"reference": 2, "feature_names": [], "rows": []}]}'],
)  # fmt: skip
def test_reader_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UsageError, match=r"s\.json"):
        load_studies(tmp_path / "s.json")


def test_merits_are_one_of_the_features_of_a_search() -> None:
    assert (SCREENED, FEATURES[0]) == MERITS
    assert STUDY.merits == ()
    assert replace(STUDY, feature_names=("x", MERITS[1])).merits == (-1.5,) * len(POINTS)
    assert replace(STUDY, feature_names=(MERITS[1], MERITS[0])).merits == (-1.5,) * len(POINTS)


def test_features_need_a_row_each() -> None:
    with pytest.raises(ValueError, match="2 numbers for each row"):
        replace(STUDY, features=STUDY.features[1:])


def test_shipped_studies_cover_the_space_with_the_features_of_a_search() -> None:
    studies = shipped()
    assert studies
    for study in studies:
        assert len(rows_in(study, SPACE)) == 96
        assert study.feature_names == (*FEATURES, *ARCHITECTURE, SCREENED)
        assert len(study.features) == 96
        assert study.provenance["note"]
