"""A PostgreSQL server for tests: a private cluster in a temporary folder, on a free port of this machine alone."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PASSWORD = "open sesame/1"
_URL_PASSWORD = "open%20sesame%2F1"


def missing() -> str:
    """Why there can be no server here; empty where there can."""
    if importlib.util.find_spec("psycopg") is None:
        return "needs the package psycopg (pip install 'quantune[storage]')"
    if not (shutil.which("postgres") and shutil.which("initdb")):
        return "needs the programs postgres and initdb"
    if os.geteuid() == 0 and _user() is None:
        return "postgres does not run as root and there is no user postgres"
    return ""


def _user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


class Postgres:
    """Use it as a context manager; `url` names a database of it."""

    def __init__(self) -> None:
        self._who = {"user": _user(), "group": _user(), "extra_groups": []} if os.geteuid() == 0 else {}
        self._folder = Path(tempfile.mkdtemp(prefix="quantune-postgres-", dir="/tmp"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._who:
            for path in (self._folder, secret):
                shutil.chown(path, str(self._who["user"]), str(self._who["group"]))
        command = [
            shutil.which("initdb"), "-D", str(self._folder / "data"), "-U", "quantune", "-A", "scram-sha-256",
            f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--locale=C",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._who)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """The address of a database, as a user of quantune gives it."""
        return f"postgresql+psycopg://quantune:{_URL_PASSWORD}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            str(shutil.which("postgres")), "-D", str(self._folder / "data"), "-h", "127.0.0.1", "-p", str(self._port),
            "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=60",
        ]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", start_new_session=True, **self._who
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once, connections or not, as after a power cut."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(60)

    def database(self, name: str) -> str:
        """Create a database; its address."""
        import psycopg

        with self._connection() as connection:
            assert isinstance(connection, psycopg.Connection)
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def _connection(self):
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self._port, user="quantune", password=PASSWORD, dbname="postgres", autocommit=True
        )

    def _answers(self) -> bool:
        import psycopg

        try:
            self._connection().close()
        except psycopg.OperationalError:
            return False
        return True
