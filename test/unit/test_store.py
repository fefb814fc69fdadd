"""A study's database that the system refuses something stays as it is, and only a damaged one is moved aside."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import NoReturn

import optuna
import pytest
import sqlalchemy.exc
from tuner_bench import ONE_AXIS, measure
from tuner_bench import quick_disk as quick_disk

from quantune.errors import EnvironmentFailure, QuantuneError, UsageError
from quantune.search.tuner import tune

pytestmark = pytest.mark.usefixtures("quick_disk")

KINDS: dict[str, type[QuantuneError]] = {"full": EnvironmentFailure, "ro": UsageError, "missing": UsageError}


def _refusal(kind: str, folder: Path) -> sqlite3.Error:
    """What SQLite really says where it is refused something."""
    path = folder / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (x)")
    where = {"full": f"file:{path}", "ro": f"file:{path}?mode=ro", "missing": f"file:{folder}/none/x.db"}[kind]
    with pytest.raises(sqlite3.OperationalError) as raised:
        _fill(where)
    return raised.value


def _fill(where: str) -> None:
    with contextlib.closing(sqlite3.connect(where, uri=True)) as other:
        other.execute("PRAGMA max_page_count = 3")
        other.execute("INSERT INTO t VALUES (zeroblob(100000))")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "step", ["sqlite3.connect", "quantune.search.store.open_storage", "quantune.search.store._fill"]
)
def test_what_the_system_refuses_leaves_the_database_alone(
    kind: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", _refusal(kind, tmp_path)
    before = not step.endswith("_fill")
    if before:
        tune(measure, out, space=ONE_AXIS, max_trials=1)

    def refuse(*_: object, **__: object) -> NoReturn:
        if step == "sqlite3.connect":
            raise said
        raise optuna.exceptions.StorageInternalError from sqlalchemy.exc.OperationalError("INSERT", {}, said)

    with monkeypatch.context() as patch:
        patch.setattr(step, refuse)
        with pytest.raises(KINDS[kind], match=rf"study\.db: {said}; it stays as it is") as told:
            tune(measure, out, space=ONE_AXIS, max_trials=1)
    assert "\n" not in str(told.value)
    assert {file.name for file in out.iterdir()} == {"study.lock", *(["study.db"] if before else [])}
    measured: list[object] = []
    result = tune(lambda config: measured.append(config) or measure(config), out, space=ONE_AXIS, max_trials=1)
    assert len(result.trials) == 1
    assert bool(measured) is not before


def test_a_database_that_is_locked_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)
    monkeypatch.setattr("quantune.search.store.LOCK_WAIT_S", 0.01)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as dashboard:
        dashboard.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match=r"study\.db: another program keeps it locked"):
            tune(measure, tmp_path, space=ONE_AXIS, max_trials=1)
    assert not list(tmp_path.glob("*damaged*"))


def test_a_link_to_itself_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "study.db").symlink_to("study.db")
    assert len(tune(measure, tmp_path, space=ONE_AXIS, max_trials=1).trials) == 1
