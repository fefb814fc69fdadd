"""Where a search lives on disk: one folder, one lock, one Optuna study that survives being killed at any moment."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from quantune.errors import UsageError
from quantune.process.owner import lease_is_dead

logger = logging.getLogger(__name__)

Direction = Literal["minimize", "maximize"]

DATABASE = "study.db"
LOCK = "study.lock"
SEARCH, BASELINES = "quantune", "quantune-baselines"
_FINGERPRINT = "fingerprint"
_LOCK_WAIT_S = 60


class Store:
    """The two studies of a search (configurations and float baselines) in `folder`, held by this process alone.

    Opening refuses a folder that another process uses, a study made under another `fingerprint` (the first differing
    field is named) and a damaged database (which is moved aside). `url` puts the studies into any Optuna storage
    instead of the folder.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, str], direction: Direction, *, url: str | None = None
    ) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"output folder {folder}: {error.strerror}; choose another folder") from error
        self._lock = _acquire(folder / LOCK)
        self._storage: RDBStorage | None = None
        self._shared = url is not None
        try:
            self._open(dict(fingerprint), direction, url)
        except BaseException:
            self.close()
            raise

    def _open(self, fingerprint: dict[str, str], direction: Direction, url: str | None) -> None:
        path = self.folder / DATABASE
        created = url is None and not path.exists()
        if created:
            self._create(path, fingerprint, direction)
        if url is None:
            _check(path)
        try:
            self._storage = _rdb(url or f"sqlite:///{path.resolve()}", known=created)
            if url is not None:
                _create_studies(self._storage, fingerprint, direction)
            self.search = optuna.load_study(study_name=SEARCH, storage=self._storage)
            self.baselines = optuna.load_study(study_name=BASELINES, storage=self._storage)
            found = self.search.user_attrs.get(_FINGERPRINT)
            trials = [*self.search.get_trials(deepcopy=False), *self.baselines.get_trials(deepcopy=False)]
        except UsageError:
            raise
        except Exception as error:  # Optuna and SQLAlchemy have no common base for "this is not what I wrote"
            if url is not None:
                raise UsageError(f"storage {url}: cannot be opened ({_line(error)})") from error
            raise quarantine(path, _line(error)) from error
        if not isinstance(found, dict):
            raise UsageError(f"{url or path}: holds a study that quantune did not make; choose another output folder")
        _compare(found, fingerprint, url or str(path))
        logger.debug("study %s: %d trials", url or path, len(trials))

    def _create(self, path: Path, fingerprint: dict[str, str], direction: Direction) -> None:
        # Under another name until it is whole: a kill in between must not leave a half-made study.
        fresh = path.with_name(path.name + ".new")
        for leftover in (fresh, fresh.with_name(fresh.name + "-journal")):
            leftover.unlink(missing_ok=True)
        # Nothing is at stake until the rename, so the hundreds of small commits need not reach the disk one by one.
        storage = RDBStorage(f"sqlite:///{fresh.resolve()}", engine_kwargs={"creator": lambda: _unsynced(fresh)})
        try:
            _create_studies(storage, fingerprint, direction)
        finally:
            storage.engine.dispose()
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)

    def abandoned(self) -> list[tuple[Study, FrozenTrial]]:
        """Trials that no living process is measuring although they are marked as running."""
        return [
            (study, trial)
            for study in (self.search, self.baselines)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            # The folder's lock is ours, so in our own database nobody else can be measuring.
            if not self._shared or lease_is_dead(trial.user_attrs.get("lease"))
        ]

    def handle(self, study: Study, trial: FrozenTrial) -> Trial:
        """The writable form of a trial."""
        return Trial(study, trial._trial_id)

    def close(self) -> None:
        """Release the database and the lock."""
        if self._storage is not None:
            self._storage.engine.dispose()
            self._storage = None
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def quarantine(path: Path, why: str) -> UsageError:
    """Move a damaged database (and its journal) aside; the error to raise says where it went and what to do."""
    moved = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    path.replace(moved)
    for suffix in ("-journal", "-wal", "-shm"):
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.replace(moved.with_name(moved.name + suffix))
    return UsageError(
        f"{path} is damaged ({why}); moved to {moved.name}. Run the same command again to start over, "
        f"or bring the trials back first with: sqlite3 {moved.name} .recover | sqlite3 {path.name}"
    )


def _acquire(path: Path) -> IO[str]:
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read(100).strip()
        file.close()
        who = f"process {owner}" if owner.isdigit() else "another process"
        raise UsageError(
            f"output folder {path.parent}: {who} is searching there; wait for it, stop it, or choose another folder"
        ) from error
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _check(path: Path) -> None:
    """Raise, with the file moved aside, unless the file is a whole SQLite database."""
    if path.stat().st_size == 0:
        raise quarantine(path, "it is empty")
    try:
        connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S)
        try:
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UsageError(f"{path}: another program keeps it locked; close it (a dashboard?)") from error
        verdict = str(error)
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise quarantine(path, " ".join(verdict.split()))


def _unsynced(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _rdb(url: str, *, known: bool = False) -> RDBStorage:
    # SQLite answers "database is locked" at once by default, and a dashboard that reads is enough to get it.
    options = {"connect_args": {"timeout": _LOCK_WAIT_S}} if url.startswith("sqlite") else {}
    # Finding out which schema a database has takes longer than all else; one made a moment ago has today's.
    return RDBStorage(url, engine_kwargs=options, skip_compatibility_check=known, skip_table_creation=known)


def _create_studies(storage: BaseStorage, fingerprint: Mapping[str, str], direction: Direction) -> None:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))  # it tells of each study that it creates
    try:
        study = optuna.create_study(study_name=SEARCH, storage=storage, direction=direction, load_if_exists=True)
        optuna.create_study(study_name=BASELINES, storage=storage, direction=direction, load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if _FINGERPRINT not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr(_FINGERPRINT, dict(fingerprint))


def _compare(found: Mapping[str, Any], wanted: Mapping[str, str], where: str) -> None:
    for name in dict.fromkeys([*wanted, *found]):
        if found.get(name) != wanted.get(name):
            raise UsageError(
                f"{where}: was made with {name}={_short(found.get(name))}, now {name}={_short(wanted.get(name))}; "
                f"use the same {name} to continue it, or another output folder to start anew"
            )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
