from __future__ import annotations

import importlib.util
import json
import os
import statistics
from pathlib import Path

import optuna
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmark" / "search_replay.py"
_spec = importlib.util.spec_from_file_location("search_replay", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
replay = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(replay)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _rows(model: str, best: str) -> list[dict]:
    return [
        {"model": model, "calib": calib, "scheme": scheme, "clip": clip, "granularity": "tensor", "precision": "int8"}
        | {"accuracy": 0.5 + 0.1 * (scheme == best) + 0.02 * (clip == "kl") + calib / 1e7}
        for calib in (1, 1000)
        for scheme in ("asymmetric", "symmetric")
        for clip in ("max", "kl")
    ]


def test_trials_to_counts_the_first_hit_of_each_target() -> None:
    assert replay.trials_to(iter([0.5, 0.696, 0.6995, 0.7, 0.1]), 0.7) == [4, 3, 2]


def test_table_of_our_own_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(_rows("a", "symmetric") + _rows("b", "asymmetric")))
    assert replay.main([str(path), "--seeds", "2", "--transfer"]) == 0
    output = capsys.readouterr().out
    for name in replay.SAMPLERS:
        assert output.count(f"\n{name} ") == 3  # two models and the mean


@pytest.mark.skipif("QUANTUNE_IMAGENET_TABLE" not in os.environ, reason="QUANTUNE_IMAGENET_TABLE names no table")
def test_transfer_beats_random_on_the_published_table() -> None:
    table = replay.read_table(Path(os.environ["QUANTUNE_IMAGENET_TABLE"]))
    ratios = []
    for model, rows in table.items():
        space = replay.space_of(rows)
        lookup = {replay.key_of(p, space): v for p, v in rows}
        others = [replay.PastStudy(m, tuple(r)) for m, r in table.items() if m != model]
        prior = replay.TransferPrior(others, space)
        best = max(lookup.values())
        mine = replay.trials_to(replay.proposals("xgboost", space, 0, lookup, prior), best)[1]
        random = [replay.trials_to(replay.proposals("random", space, s, lookup, None), best)[1] for s in range(50)]
        ratios.append(statistics.fmean(random) / mine)
    assert statistics.geometric_mean(ratios) > 1.5
