"""Counts what the tests of this folder tried to break, prints the table, and fails the run if anything did not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from obligations import Obligation, table

if TYPE_CHECKING:
    from searching import Uninterrupted

OBLIGATIONS: dict[str, Obligation] = {}


@pytest.fixture
def obligation() -> Iterator[Callable[[str], Obligation]]:
    """Gives the obligation of a name, shared by all tests that name it; fails a test that broke one or tried none."""
    before: dict[str, tuple[int, int]] = {}

    def named(name: str) -> Obligation:
        promise = OBLIGATIONS.setdefault(name, Obligation(name))
        before.setdefault(name, (promise.count, len(promise.broken)))
        return promise

    yield named
    for name, (count, broken) in before.items():
        promise = OBLIGATIONS[name]
        if promise.broken[broken:]:
            pytest.fail(f"{name}: " + "; ".join(promise.broken[broken:]), pytrace=False)
        if promise.count == count:
            pytest.fail(f"{name}: nothing was tried", pytrace=False)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """A search that nobody disturbed, for those that are disturbed to compare with."""
    from searching import uninterrupted  # it imports all of quantune

    return uninterrupted(tmp_path_factory.mktemp("whole"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if OBLIGATIONS:
        terminalreporter.section("obligations")
        terminalreporter.write("\n".join(table(list(OBLIGATIONS.values()))) + "\n")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if any(each.broken for each in OBLIGATIONS.values()) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
