"""Where a search lives: one folder with one lock and one Optuna study, or a study in a storage that workers share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study

from quantune.errors import EnvironmentFailure, QuantuneError, UsageError, refused
from quantune.search.storage import (
    HURRY_S,
    LOCK_WAIT_S,
    PATIENCE_S,
    Direction,
    Patient,
    line_of,
    make_study,
    open_storage,
    release,
)
from quantune.search.urls import scrub, shown

logger = logging.getLogger(__name__)

DATABASE = "study.db"
LOCK = "study.lock"
SEARCH, BASELINES = "quantune", "quantune-baselines"
NAMED_BY = ("model", "calibration images", "evaluation images", "target", "objective", "space")
"""What makes another search of it: a shared storage holds a study for each. All else has to agree within a study."""
_FINGERPRINT, _FORMAT = "fingerprint", "format"
_MAKING_S = 20
_LACKING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM)
_FORBIDDEN = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH)


class Store:
    """The two studies of a search (configurations and float baselines).

    In `folder`, held by this process alone; or with `url` in any Optuna storage, shared with other workers. Opening
    refuses a folder that another process uses, a study made under another `fingerprint` (the first differing field is
    named) and a damaged database (which is moved aside; one that a full or read-only disk keeps from being used stays).
    notice: hears what is waited for.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, str],
        direction: Direction,
        *,
        url: str | None = None,
        notice: Callable[[str], None] = logger.warning,
    ) -> None:
        self.folder, self.url, self.shared = folder, url, url is not None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(f"output folder {folder}", error, "choose another folder") from error
        self._lock = _acquire(folder / LOCK)
        self.storage: Patient | None = None
        try:
            self._open(dict(fingerprint), direction, notice)
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """What to call it in messages; never with a password."""
        return str(self.folder / DATABASE) if self.url is None else f"storage {shown(self.url)}"

    def _open(self, fingerprint: dict[str, str], direction: Direction, notice: Callable[[str], None]) -> None:
        if self.url is not None:
            self._open_shared(self.url, fingerprint, direction, notice)
        else:
            self._open_own(fingerprint, direction, notice)
        found = self.search.user_attrs.get(_FINGERPRINT)
        if not isinstance(found, dict):
            raise UsageError(f"{self.where}: holds a study that quantune did not make; {self._elsewhere}")
        self._compare(found, fingerprint)
        logger.debug("study %s in %s", self.search.study_name, self.where)

    def _open_own(self, fingerprint: dict[str, str], direction: Direction, notice: Callable[[str], None]) -> None:
        path = self.folder / DATABASE
        url = f"sqlite:///{path.absolute()}"
        try:
            created = not path.exists()
            if created:
                _create(path, fingerprint, direction)
            _check(path)
            storage = open_storage(url, known=created)
            self.storage = Patient(storage, url, str(path), patience_s=0.0, notice=notice)
            self._load(SEARCH, BASELINES)
        except (QuantuneError, OSError):
            raise
        except Exception as error:  # Optuna and SQLAlchemy have no common base for "this is not what I wrote"
            raise _refusal(path, error) or quarantine(path, line_of(error, url)) from error

    def _open_shared(
        self, url: str, fingerprint: dict[str, str], direction: Direction, notice: Callable[[str], None]
    ) -> None:
        name = study_name(fingerprint)
        try:
            storage = open_storage(url)
            self.storage = Patient(storage, url, self.where, patience_s=PATIENCE_S, notice=notice)
            make_study(storage, f"{name} baselines", direction)
            created = make_study(storage, name, direction)
            self._load(name, f"{name} baselines")
            if created:  # the storage lets one worker alone create it
                self.search.set_user_attr(_FINGERPRINT, fingerprint)
            self._await_fingerprint(fingerprint)
        except QuantuneError:
            raise
        except Exception as error:
            raise UsageError(
                f"{self.where}: cannot be opened ({line_of(error, url)}); check the address and that the server runs"
            ) from scrub(error, url)

    def _await_fingerprint(self, fingerprint: dict[str, str]) -> None:
        """Wait for the worker that creates the study; if it ends before it says what the study is of, say it."""
        deadline = time.monotonic() + _MAKING_S
        while _FINGERPRINT not in self.search.user_attrs:
            if time.monotonic() > deadline:
                self.search.set_user_attr(_FINGERPRINT, fingerprint)
            time.sleep(0.05)

    def _load(self, search: str, baselines: str) -> None:
        assert self.storage is not None
        for name in (search, baselines):  # asked directly, so that what cannot be read is noticed here and at once
            optuna.load_study(study_name=name, storage=self.storage.backend).get_trials(deepcopy=False)
        self.search: Study = optuna.load_study(study_name=search, storage=self.storage)
        self.baselines: Study = optuna.load_study(study_name=baselines, storage=self.storage)

    @property
    def _elsewhere(self) -> str:
        """How to start anew, in words."""
        return "choose another output folder" if self.url is None else "choose another database"

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
        if found.get(_FORMAT) != wanted.get(_FORMAT):
            raise UsageError(
                f"{self.where}: was written by another version of quantune (format {found.get(_FORMAT)}, this one "
                f"writes {wanted.get(_FORMAT)}); {self._elsewhere} to start anew"
            )
        for name in dict.fromkeys([*wanted, *found]):
            if found.get(name) != wanted.get(name):
                before, now = _apart(found.get(name), wanted.get(name))
                raise UsageError(
                    f"{self.where}: was made with {name}={before}, now {name}={now}; "
                    f"use the same {name} to continue it, or {self._elsewhere} to start anew"
                )

    @property
    def study_ids(self) -> tuple[int, int]:
        """The storage's names for the two studies."""
        return self.search._study_id, self.baselines._study_id

    def hurry(self) -> None:
        """Wait no longer than a few seconds for a database that is away."""
        if self.storage is not None:
            self.storage.patience_s = min(self.storage.patience_s, HURRY_S)

    def close(self) -> None:
        """Release the database and the lock."""
        if self.storage is not None:
            release(self.storage.backend)
            self.storage = None
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def study_name(fingerprint: Mapping[str, str]) -> str:
    """The name under which a shared storage holds the study of a search: its model, and a hash of what it is of."""
    told = json.dumps({name: fingerprint.get(name, "") for name in NAMED_BY}, sort_keys=True)
    words = ("quantune", fingerprint.get("model", "").partition(" ")[0][:80], hashlib.sha256(told.encode()).hexdigest())
    return " ".join(word for word in (*words[:2], words[2][:12]) if word)


def _create(path: Path, fingerprint: dict[str, str], direction: Direction) -> None:
    # Under another name until it is whole: a kill in between must not leave a half-made study.
    fresh = path.with_name(path.name + ".new")
    _discard(fresh)
    try:
        _fill(fresh, fingerprint, direction)
        fresh.replace(path)
    finally:
        _discard(fresh)


def _discard(fresh: Path) -> None:
    for leftover in (fresh, fresh.with_name(fresh.name + "-journal")):
        leftover.unlink(missing_ok=True)


def _fill(fresh: Path, fingerprint: dict[str, str], direction: Direction) -> None:
    # Nothing is at stake until it has its name, so the hundreds of small commits need not reach the disk one by one.
    storage = RDBStorage(f"sqlite:///{fresh.resolve()}", engine_kwargs={"creator": lambda: _unsynced(fresh)})
    try:
        for name in (SEARCH, BASELINES):
            make_study(storage, name, direction)
        optuna.load_study(study_name=SEARCH, storage=storage).set_user_attr(_FINGERPRINT, fingerprint)
    finally:
        storage.engine.dispose()
    with fresh.open("rb") as file:
        os.fsync(file.fileno())


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
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise refused(f"output folder {path.parent}", error, "choose another folder") from error
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
        connection = sqlite3.connect(path, timeout=LOCK_WAIT_S)
        try:
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if refusal := _refusal(path, error):
            raise refusal from error
        verdict = str(error)
    if verdict != "ok":
        raise quarantine(path, " ".join(verdict.split()))


def _refusal(path: Path, error: BaseException) -> QuantuneError | None:
    """What to raise where the system refuses SQLite something, and None where the file is what is wrong."""
    found = _of_sqlite(error)
    code = 0 if found is None else found.sqlite_errorcode & 0xFF  # the rest says where in SQLite it came up
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UsageError(f"{path}: another program keeps it locked; close it (a dashboard?)")
    if code in _LACKING:
        return EnvironmentFailure(f"{path}: {found}; it stays as it is: make room and run the same command again")
    if code in _FORBIDDEN:
        return UsageError(f"{path}: {found}; it stays as it is: expected a database and a folder that can be written")
    return None


def _of_sqlite(error: BaseException | None) -> sqlite3.Error | None:
    """What SQLite said, under what SQLAlchemy and Optuna made of it."""
    while error is not None and not isinstance(error, sqlite3.Error):
        error = getattr(error, "orig", None) or error.__cause__
    return error if error is not None and hasattr(error, "sqlite_errorcode") else None


def _unsynced(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _apart(found: object, wanted: object) -> tuple[str, str]:
    """Two values as texts of at most some 60 characters that show where they begin to differ."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (found, wanted)]
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = texts[0].rfind(" ", 0, same) + 1 if max(map(len, texts)) > 60 else 0
    cut = [("…" if start else "") + text[start:] for text in texts]
    first, second = (text if len(text) <= 60 else text[:57] + "..." for text in cut)
    return first, second
