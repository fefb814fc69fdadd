from __future__ import annotations

import importlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from quantune.errors import UsageError
from quantune.quantization.predictions import ARCHITECTURE

replay: Any = importlib.import_module("search_replay")
figures: Any = importlib.import_module("search_replay_lib.figures")
methods: Any = importlib.import_module("search_replay_lib.methods")
paper: Any = importlib.import_module("search_replay_lib.paper")
tables: Any = importlib.import_module("search_replay_lib.tables")
transfer_store: Any = importlib.import_module("transfer_store")

HEADER = "model,precision,calib_images,granularity,clipping,scheme,accuracy\n"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _rows(model: str, best: str, *, features: bool = True) -> list[dict[str, Any]]:
    """A table of eight points and the f32 row; the predicted noise and the screening tell the best."""
    rows: list[dict[str, Any]] = [{"model": model, "precision": "f32", "accuracy": 0.65, "images": 100}]
    for calib in (1, 1000):
        for scheme in ("asymmetric", "symmetric"):
            for clip in ("max", "kl"):
                row: dict[str, Any] = {"model": model, "calib": calib, "scheme": scheme, "clip": clip}
                row |= {"granularity": "tensor", "precision": "int8"}
                row["accuracy"] = 0.5 + 0.1 * (scheme == best) + 0.02 * (clip == "kl") + calib / 1e7
                if features:
                    row["features"] = [row["accuracy"], *[0.0] * (len(tables.KNOWN) - 2), row["accuracy"]]
                rows.append(row)
    return rows


def _table(tmp_path: Path, *rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps([r for part in rows for r in part]))
    return path


def _tasks(tmp_path: Path) -> list[Any]:
    path = _table(tmp_path, _rows("a", "symmetric"), _rows("b", "asymmetric"), _rows("c", "symmetric"))
    found, _ = tables.read_tables(path)
    return [methods.Task(t, [o for o in found.values() if o is not t]) for t in found.values()]


def test_follow_counts_the_first_hit_of_each_target_and_the_regret() -> None:
    trials, regret = figures.follow(iter([2, 1, 0, 3]), np.array([0.6995, 0.696, 0.5, 0.7]))
    assert trials == [4, 3, 2]
    np.testing.assert_allclose(regret, [20.0, 0.4, 0.05, 0.0])


def test_what_computes_the_same_takes_no_trial() -> None:
    assert list(figures.distinct(iter([3, 1, 0, 2]), ["a", "b", "a", "b"])) == [3, 0]


def test_screening_knows_the_best_predicted_and_puts_the_others_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "CONFIGURATIONS", 2)
    table = _tasks(tmp_path)[0].table
    features = table.features.copy()
    features[:, 0] = [5, 4, 3, 2, 1, 0, -1, -2]
    features[:, -1] = [7, 9, 99, 99, 99, 99, 99, 99]
    identity = ("a", "a", "c", "d", "e", "f", "g", "h")
    merits = methods._screened(replace(table, features=features, identity=identity))[:, -1]
    assert merits.tolist() == [7, 9, 99, 6, 5, 4, 3, 2]  # the screened are a and c; the next is one dB below c


def test_geometric_mean_and_its_intervals() -> None:
    sure = [figures.Replay(np.full((5, 3), n), np.zeros((5, 8))) for n in (2, 8)]
    found = figures.geometric_mean(sure, 0)
    assert found["mean"] == pytest.approx(4.0)
    assert found["seeds_95"] == pytest.approx([4.0, 4.0])  # every seed took as many
    assert found["models_95"] == pytest.approx([2.0, 8.0])  # both models alike, in either direction


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_measures_every_point_once_and_repeats_itself(name: str, tmp_path: Path) -> None:
    task = _tasks(tmp_path)[0]
    order = methods.METHODS[name](task)
    points = list(order(3))
    assert sorted(points) == list(range(8))
    assert list(order(3)) == points


def test_methods_do_not_see_what_they_search(tmp_path: Path) -> None:
    """The first point of every method is the same on a table whose own accuracies are turned around."""
    task = _tasks(tmp_path)[0]
    turned = replace(task.table, accuracy=1 - task.table.accuracy)
    for name, method in methods.METHODS.items():
        first = [next(method(methods.Task(t, task.others))(0)) for t in (task.table, turned)]
        assert first[0] == first[1], name


def test_methods_of_transfer_follow_the_others(tmp_path: Path) -> None:
    _, odd, _ = _tasks(tmp_path)
    for name in ("mean-rank", "mean-gap"):
        first = odd.table.points[next(methods.METHODS[name](odd)(0))]
        assert (first["scheme"], first["clip"], first["calib"]) == ("symmetric", "kl", 1000)


def test_grid_and_coordinate_descent_begin_as_in_the_paper(tmp_path: Path) -> None:
    task = _tasks(tmp_path)[0]
    grid = [task.table.points[i] for i in methods.grid(task)(0)]
    assert [p["scheme"] for p in grid[:4]] == ["asymmetric", "symmetric"] * 2
    assert [p["calib"] for p in grid] == [1] * 4 + [1000] * 4
    descent = [task.table.points[i] for i in methods.coordinate(task)(0)][:3]
    assert {k: descent[0][k] for k in ("calib", "scheme", "clip")} == {
        "calib": 1000,
        "scheme": "symmetric",
        "clip": "max",
    }
    assert [p["scheme"] for p in descent[:2]] == ["symmetric", "asymmetric"]
    assert (descent[2]["scheme"], descent[2]["clip"]) == ("symmetric", "kl")


def test_papers_search_breaks_ties_by_seed_and_not_by_row(tmp_path: Path) -> None:
    task = _tasks(tmp_path)[0]
    alone = methods.Task(task.table, [])
    assert len({next(methods.paper_transfer(alone)(seed)) for seed in range(20)}) > 3
    assert paper.encode(task.table).shape[1] == 13 + len(ARCHITECTURE)


def test_run_prints_and_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _table(tmp_path, _rows("a", "symmetric"), _rows("b", "asymmetric"))
    assert replay.main([str(path), "--seeds", "2", "--json", str(tmp_path / "out.json")]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    for name in methods.METHODS:
        assert output.count(f"\n{name} ") == 3  # two models and the mean
        curve = report["methods"][name]["models"]["a"]["regret_mean"]
        assert curve[-1] == 0.0
        assert curve == sorted(curve, reverse=True)


def test_one_model_without_f32_is_replayed_by_what_needs_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _table(tmp_path, _rows("a", "symmetric", features=False)[1:])
    assert replay.main([str(path), "--seeds", "1"]) == 0
    output = capsys.readouterr().out
    assert "\nxgboost " in output
    assert "transfer" not in output
    assert replay.main([str(path), "--seeds", "1", "--methods", "xgboost+transfer"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column model is missing"),
        ("model,accuracy\na,1\n", "column precision is missing"),
        (HEADER, "the table is empty"),
        (HEADER + "a,int8,1,tensor,max,asymmetric,lots\n", "line 2: accuracy is 'lots'"),
        (HEADER + "a,int8,1,tensor,max,asymmetric,101\n", "line 2: accuracy"),
        (HEADER + "a,int8,one,tensor,max,asymmetric,50\n", "line 2: calib_images"),
        (HEADER + "a,int8,1,tensor,max,symetric,50\n", "line 2: scheme is 'symetric', expected one of asymmetric"),
        (HEADER + "a,int8,1,tensor,max,asymmetric\n", "line 2: accuracy is ''"),
        (HEADER + 2 * "a,int8,1,tensor,max,asymmetric,50\n", "line 3: the same configuration of a as in line 2"),
        (HEADER + "a,int8,1,tensor,max,asymmetric,5\na,int8,1000,channel,max,asymmetric,5\n", "2 rows for 4 points"),
    ],
)
def test_bad_csv_is_one_line(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert replay.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert str(path) in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"model": "a"}]', '[{"model": "a", "precision": "int8", "accuracy": 2}]']
)
def test_bad_json_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.json"):
        tables.read_tables(path)


def test_csv_and_json_of_one_table_are_equal(tmp_path: Path) -> None:
    rows = _rows("a", "symmetric", features=False)
    lines = [
        f"a,{r['precision']},{r.get('calib', '')},{r.get('granularity', '')},{r.get('clip', '')},"
        f"{r.get('scheme', '')},{100 * r['accuracy']}"
        for r in rows
    ]
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    (one, _), (two, _) = tables.read_tables(path), tables.read_tables(_table(tmp_path, rows))
    assert one["a"].points == two["a"].points
    assert one["a"].reference == two["a"].reference == 0.65
    np.testing.assert_allclose(one["a"].accuracy, two["a"].accuracy)


def test_store_takes_tables_replaces_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "data" / "studies.json"
    path = _table(tmp_path, _rows("a", "symmetric"), _rows("b", "asymmetric"))
    assert transfer_store.main([str(path), "--store", str(store), "--note", "by hand"]) == 0
    assert transfer_store.main([str(path), "--store", str(store)]) == 0
    assert transfer_store.main(["--store", str(store), "--remove", "a"]) == 0
    kept = transfer_store.load_studies(store)
    assert [s.model for s in kept] == ["b"]
    assert len(kept[0].rows) == 8
    assert kept[0].reference == 0.65
    assert kept[0].merits[0] == pytest.approx(kept[0].rows[0][1], abs=1e-4)
    assert transfer_store.main(["--store", str(store), "--remove", "a"]) == 2
    assert transfer_store.main([str(_table(tmp_path, _rows("a", "symmetric")[1:])), "--store", str(store)]) == 2
    assert "no row of precision f32" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("QUANTUNE_IMAGENET_TABLE" not in os.environ, reason="QUANTUNE_IMAGENET_TABLE names no table")
def test_transfer_beats_what_it_is_compared_with_on_the_published_table() -> None:
    found, _ = tables.read_tables(Path(os.environ["QUANTUNE_IMAGENET_TABLE"]))
    means = {}
    for name in ("random", "mean-rank", "xgboost+transfer"):
        runs = []
        for table in found.values():
            order = methods.METHODS[name](methods.Task(table, [t for t in found.values() if t is not table]))
            runs.append(replay.replay(order, table, range(10)))
        means[name] = [figures.geometric_mean(runs, i)["mean"] for i in range(3)]
    for i in range(3):
        assert means["xgboost+transfer"][i] < means["mean-rank"][i] < means["random"][i]
