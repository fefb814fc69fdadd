"""Optuna storages by address: how one is opened, and how a search gets over a database that is away for a while."""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from quantune.errors import EnvironmentFailure, UsageError
from quantune.process.interrupts import held, pending
from quantune.search.urls import scrub, scrubbed, shown

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Direction = Literal["minimize", "maximize"]

PATIENCE_S = 300.0
"""How long a search waits for a database that answered before and does not now."""
HURRY_S = 5.0
"""The same once it was interrupted."""
LOCK_WAIT_S = 60
CONNECT_WAIT_S = 10
IDLE_S = 20
"""After this time PostgreSQL ends a transaction in which nothing happens: its worker was stopped, and holds locks."""
_RACES = 8
CLAIM = "claim"
"""The user attribute that tells a trial made just now from all others."""


class StorageLost(EnvironmentFailure):
    """The database does not answer any more."""


class Patient(BaseStorage):
    """A storage whose operations are tried again while the database is away, and end whole when one is interrupted.

    where: what to call it. notice: hears once what is waited for. Raises StorageLost with one line after
    ``patience_s``.
    """

    def __init__(
        self, backend: BaseStorage, url: str, where: str, *, patience_s: float, notice: Callable[[str], None]
    ) -> None:
        self.backend, self.url, self.where = backend, url, where
        self.patience_s, self._notice = patience_s, notice

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See BaseStorage."""
        return self._try(lambda: self.backend.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """See BaseStorage."""
        return self._try(self.backend.get_all_studies)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See BaseStorage. One with the user attribute `CLAIM` is made once, even if the answer gets lost."""
        mark = None if template_trial is None else template_trial.user_attrs.get(CLAIM)
        failures: list[Exception] = []

        def create() -> int:
            if failures and mark is not None:
                for trial in self.backend.get_all_trials(study_id, deepcopy=False):
                    if trial.user_attrs.get(CLAIM) == mark:
                        return trial._trial_id
            try:
                return self.backend.create_new_trial(study_id, template_trial)
            except Exception as error:
                failures.append(error)
                raise

        return self._try(create)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.set_trial_param(trial_id, param_name, param_value_internal, distribution))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See BaseStorage."""
        failures: list[Exception] = []

        def write() -> bool:
            try:
                return self.backend.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if failures and self.backend.get_trial(trial_id).state == state:
                    return True  # the first try was heard, its answer was not
                raise
            except Exception as error:
                failures.append(error)
                raise

        return self._try(write)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.set_trial_intermediate_value(trial_id, step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._try(lambda: self.backend.set_trial_system_attr(trial_id, key, value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See BaseStorage."""
        return self._try(lambda: self.backend.get_all_trials(study_id, deepcopy, states))

    def _try(self, action: Callable[[], Result]) -> Result:
        begin, pause = time.monotonic(), 0.1
        while True:
            try:
                with held():  # half a transaction would leave the connection unusable
                    return action()
            except Exception as error:
                if not away(error):
                    raise
                reason = line_of(error, self.url)
                patience = min(self.patience_s, HURRY_S) if pending() else self.patience_s
                if time.monotonic() - begin >= patience:
                    raise StorageLost(
                        f"{self.where}: {reason}; everything measured is kept, the same command goes on"
                    ) from scrub(error, self.url)
            if pause == 0.1:
                self._notice(f"{self.where} does not answer ({reason}); trying for {self.patience_s:g} s")
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


def away(error: Exception) -> bool:
    """Whether the database itself failed, not the request."""
    if isinstance(error, StorageInternalError | SQLAlchemyError):
        return True
    code = getattr(error, "code", None)  # of a grpc.RpcError, which may not be installed
    return type(error).__module__.startswith("grpc") and callable(code)


def line_of(error: BaseException, url: str) -> str:
    """What an error says, in one line and without passwords; of Optuna's own the reason behind it."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    origin = getattr(error, "orig", None) or error
    details = getattr(error, "details", None)  # of a grpc.RpcError, whose text is a dump
    text = details() if callable(details) else str(origin)
    text = scrubbed(" ".join(str(text).split()) or type(error).__name__, url)
    return text if len(text) <= 160 else text[:157] + "..."


def open_storage(url: str, *, known: bool = False) -> BaseStorage:
    """The storage at an address: a database as SQLAlchemy names it, or grpc://HOST:PORT of Optuna's proxy.

    known: the tables were made a moment ago. Several may open a fresh database at once. Raises UsageError where the
    address cannot be right, and what the driver raises where it may be.
    """
    if url.startswith("grpc:"):
        return _grpc(url)
    for left in range(_RACES, -1, -1):
        try:
            return get_storage(_rdb(url, known=known))
        except ImportError as error:
            raise UsageError(
                f"storage {shown(url)}: its driver is not installed; for PostgreSQL: pip install 'quantune[storage]'"
            ) from error
        except SQLAlchemyError:
            # Two that make the tables of a fresh database at once disturb each other; the second try finds them.
            if not left or known:
                raise
            time.sleep(random.uniform(0.1, 0.4))
    raise AssertionError("not reached")


def release(storage: BaseStorage) -> None:
    """Close the connections of a storage that `open_storage` opened."""
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.engine.dispose()
    elif isinstance(backend, GrpcStorageProxy):
        backend.close()


def make_study(storage: BaseStorage, name: str, direction: Direction) -> bool:
    """Create a study unless there is one of this name; whether it was created here."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))  # it tells of each study that it creates
    try:
        optuna.create_study(study_name=name, storage=storage, direction=direction)
    except optuna.exceptions.DuplicatedStudyError:
        return False
    finally:
        optuna.logging.set_verbosity(verbosity)
    return True


def _rdb(url: str, *, known: bool) -> RDBStorage:
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        # SQLite answers "database is locked" at once by default, and a dashboard that reads is enough to get it.
        options["connect_args"] = {"timeout": LOCK_WAIT_S}
    else:
        options["pool_pre_ping"] = True  # connections from before a restart are found to be dead
    if url.startswith(("postgresql:", "postgresql+psycopg")):
        given = {
            "connect_timeout": CONNECT_WAIT_S,
            "options": f"-c idle_in_transaction_session_timeout={1000 * IDLE_S}",
        }
        options["connect_args"] = {name: value for name, value in given.items() if f"{name}=" not in url}
    # Optuna fills in {SCHEMA_VERSION}; other braces are of the password. Finding out which schema a database has takes
    # longer than all else; one made a moment ago has today's.
    escaped = url.replace("{", "{{").replace("}", "}}")
    return RDBStorage(escaped, engine_kwargs=options, skip_compatibility_check=known, skip_table_creation=known)


def _grpc(url: str) -> BaseStorage:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme != "grpc" or not host or not port or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(f"storage {shown(url)}: expected grpc://HOST:PORT of Optuna's gRPC storage proxy")
    try:
        import grpc
    except ImportError as error:
        raise UsageError(f"storage {url}: needs grpcio and protobuf: pip install 'quantune[storage]'") from error
    logger.debug("gRPC %s", grpc.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=port)
    try:
        storage.wait_server_ready(timeout=CONNECT_WAIT_S)
    except ConnectionError as error:
        storage.close()
        raise EnvironmentFailure(
            f"storage {url}: no answer within {CONNECT_WAIT_S} s; start Optuna's gRPC storage proxy there"
        ) from error
    return storage
