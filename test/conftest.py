"""How hypothesis draws, and signals as they are by default.

The same examples every time in `make test`, others with a printed seed in `make test-all`.

No profile has a deadline, and none minds slow draws: both would fail tests on a loaded machine.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Undo what ``nohup`` or a shell's ``&`` does to the signals that interrupt: tests send them to themselves."""
    ignored = [s for s in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM) if signal.getsignal(s) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
