"""What the tests of searches share: a fixed, cheap stand-in for compiling and running, and a death at any write."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution

from quantune.quantization import space as level1
from quantune.quantization.config import QuantConfig
from quantune.search.scores import Score, TrialFailed
from quantune.search.storage import Patient

F32, F16 = QuantConfig(precision="f32"), QuantConfig(precision="f16")
SMALL = {name: CategoricalDistribution(values[:2]) for name, values in level1.PARAMETERS.items()}
ONE_AXIS = {n: CategoricalDistribution(v if n == "scheme" else v[:1]) for n, v in level1.PARAMETERS.items()}


def measure(config: QuantConfig) -> Score:
    """A score that the configuration alone decides."""
    if config.is_float:
        return Score(0.80, 10.0 if config == F32 else 9.0, 4000 if config == F32 else 2000, 1000)
    noise = int(hashlib.sha256(str(config).encode()).hexdigest()[:8], 16) / 2**32
    return Score(0.70 + 0.1 * round(noise, 3), 5.0 + noise, 1000 + int(100 * noise), 1000)


class Recorder:
    """Measures and remembers what it was asked."""

    def __init__(self, fail: Callable[[QuantConfig], bool] = lambda c: False, stop_at: int | None = None) -> None:
        self.seen: list[QuantConfig] = []
        self._fail, self._stop_at = fail, stop_at

    def __call__(self, config: QuantConfig) -> Score:
        self.seen.append(config)
        if len(self.seen) == self._stop_at:
            raise KeyboardInterrupt
        if self._fail(config):
            raise TrialFailed("no kernel for it")
        return measure(config)


class Killed(BaseException):
    """The process is gone; nothing that it would still do happens."""


WRITES = ("create_new_trial", "set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values")


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, write: int, error: type[BaseException] = Killed) -> Iterator[list[str]]:
    """Ends the process right after its write of this number (from 1), or presses Ctrl-C there (KeyboardInterrupt).

    Gives the names of the writes that were made.
    """
    made: list[str] = []

    def dying(name: str) -> Callable[..., object]:
        real = getattr(Patient, name)

        def act(self: Patient, *args: object, **options: object) -> object:
            if error is Killed and len(made) >= write:
                raise Killed
            result = real(self, *args, **options)
            made.append(name)
            if len(made) == write and error is Killed:
                raise Killed
            if len(made) == write:
                signal.raise_signal(signal.SIGINT)
            return result

        return act

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(Patient, name, dying(name))
        yield made


@pytest.fixture(scope="module")
def quick_disk() -> Iterator[None]:
    """SQLite does not wait for the disk: these tests end no machine."""

    def connected(connection: object, _: object) -> None:
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(verbosity)
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", connected)
