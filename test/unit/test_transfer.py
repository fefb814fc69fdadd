from __future__ import annotations

from pathlib import Path

import pytest

from quantune import space
from quantune.errors import UsageError
from quantune.search.features import enumerate_space
from quantune.search.transfer import PastStudy, TransferPrior, load_studies, save_studies

SPACE = space.distributions()
POINTS = enumerate_space(SPACE) or []


def _study(name: str, best: int, scale: float) -> PastStudy:
    return PastStudy(name, tuple((p, scale * -abs(i - best)) for i, p in enumerate(POINTS)))


def test_merit_is_the_mean_rank_whatever_the_scale() -> None:
    prior = TransferPrior([_study("a", 10, 1.0), _study("b", 10, 1e-6)], SPACE)
    assert max(POINTS, key=prior) == POINTS[10]
    assert prior(POINTS[10]) == 1.0


def test_unmeasured_points_are_predicted() -> None:
    rows = tuple((p, float(p["clip"] == "kl")) for p in POINTS if p["scheme"] != "symmetric")
    prior = TransferPrior([PastStudy("a", rows)], SPACE)
    unseen = [p for p in POINTS if p["scheme"] == "symmetric"]
    assert min(prior(p) for p in unseen if p["clip"] == "kl") > max(prior(p) for p in unseen if p["clip"] == "max")


def test_rows_of_another_space_are_left_out() -> None:
    assert (
        TransferPrior([PastStudy("a", (({"bits": 4}, 1.0), ({**POINTS[0], "calib": 7}, 1.0)))], SPACE)(POINTS[0]) == 0.5
    )


def test_file_round_trip(tmp_path: Path) -> None:
    save_studies(tmp_path / "s.json", [_study("a", 3, 1.0)])
    assert load_studies(tmp_path / "s.json") == (_study("a", 3, 1.0),)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "quantune-transfer-1"}', '{"format": "quantune-transfer-1", "studies": [1]}']
)
def test_reader_refuses(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UsageError, match=r"s\.json"):
        load_studies(tmp_path / "s.json")
