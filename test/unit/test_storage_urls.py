"""Passwords of storages are never shown, wherever a message, a log or a traceback comes from."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from quantune.errors import EnvironmentFailure, UsageError
from quantune.search import storage
from quantune.search.scores import Score
from quantune.search.tuner import tune
from quantune.search.urls import MASK, scrub, scrubbed, shown

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("postgresql+psycopg://me:s3cr3t@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:s3%40cr@et@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=s3cr3t&sslmode=on", "postgresql://host/db?user=me&password=***&sslmode=on"),
        ("postgresql://host/db?sslpassword=s3cr3t", "postgresql://host/db?sslpassword=***"),
        ("postgresql://me:s3cr3t@host:port/db", "postgresql://me:***@host:port/db"),
        ("postgres//me:s3cr3t@host", "postgres//me:***@host"),
        ("mysql://me:a/b?c@host/db", "mysql://me:***@host/db"),
        ("mysql://me:{}@host/db", "mysql://me:***@host/db"),
        ("redis://:s3cr3t@host", "redis://:***@host"),
    ],
)  # fmt: skip
def test_shown(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_texts_that_repeat_a_password_in_another_spelling() -> None:
    url = "postgresql://me:p%40ss%2Fw%C3%B6rd@host/db"
    for spelling in ("p%40ss%2Fw%C3%B6rd", "p@ss/wörd", "p%40ss/w%C3%B6rd"):
        assert scrubbed(f"no login with {spelling}!", url) == f"no login with {MASK}!"


def test_errors_are_scrubbed_with_all_that_led_to_them() -> None:
    try:
        try:
            raise ValueError(f"dsn me:{SECRET}@host")
        except ValueError as error:
            raise RuntimeError("cannot connect", SECRET) from error
    except RuntimeError as error:
        text = "".join(traceback.format_exception(scrub(error, f"x://me:{SECRET}@host")))
    assert SECRET not in text.replace('raise ValueError(f"dsn me:{SECRET}', "")
    assert f"dsn me:{MASK}@host" in text


URLS = [
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:port/db",
    f"postgresql+psycopg://127.0.0.1:1/db?user=me&password={SECRET}",
    f"nosuch://me:{SECRET}@host/db",
    f"postgresql+nosuch://me:{SECRET}@host/db",
    f"postgres//me:{SECRET}@host",
    f"sqlite:///nowhere/{{x}}?password={SECRET}",
    f"grpc://me:{SECRET}@127.0.0.1:1",
]


@pytest.mark.parametrize("url", URLS)
def test_a_storage_that_cannot_be_opened_is_told_in_one_line_without_its_password(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(storage, "_RACES", 0)
    with pytest.raises((UsageError, EnvironmentFailure)) as caught:
        tune(lambda config: Score(0.5, 1.0, 1, 10), tmp_path, storage=url)
    message = str(caught.value)
    assert message.startswith("storage ")
    assert "\n" not in message
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(caught.value)
    assert SECRET not in told
    assert "choose another output folder" not in message


def test_a_database_that_goes_away_is_waited_for_and_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, notes, asked = f"sqlite:///{tmp_path}/db?password={SECRET}", [], []
    backend = RDBStorage(f"sqlite:///{tmp_path}/db")
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)

    def away(name: str) -> int:
        asked.append(name)
        raise sqlalchemy.exc.OperationalError(f"connect {SECRET}", {}, Exception(f"refused for {SECRET}"))

    monkeypatch.setattr(backend, "get_study_id_from_name", away)
    patient = storage.Patient(backend, url, "storage x", patience_s=0.05, notice=notes.append)
    with pytest.raises(storage.StorageLost, match=r"storage x: .*the same command goes on") as caught:
        patient.get_study_id_from_name("a")
    assert len(asked) > 1
    assert len(notes) == 1
    assert "does not answer" in notes[0]
    assert SECRET not in notes[0] + "".join(traceback.format_exception(caught.value))
