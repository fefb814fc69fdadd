"""Signals become one KeyboardInterrupt, which waits while something is written."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from quantune.cli.streams import shown_as_notes
from quantune.process import interrupts


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in interrupts.SIGNALS} == before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_each_signal_interrupts(number: signal.Signals) -> None:
    with interrupts.installed():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert interrupts.received() == number
    assert interrupts.received() is None


def test_signals_that_follow_at_once_say_the_same(clock: list[float]) -> None:
    with interrupts.installed():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        clock[0] += 0.9 * interrupts.SAME_WISH_S
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        clock[0] += 0.2 * interrupts.SAME_WISH_S
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.received() == signal.SIGTERM  # the first one gives the exit code


def test_held_signals_wait_for_the_end_of_the_outermost_block() -> None:
    done = []

    def work() -> None:
        with interrupts.held():
            with interrupts.held():
                signal.raise_signal(signal.SIGHUP)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]


def test_an_error_in_a_held_block_is_not_replaced() -> None:
    def work() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("disk")

    with interrupts.installed(), pytest.raises(ValueError, match="disk"):
        work()


def test_held_keeps_ctrl_c_waiting_without_a_command_too() -> None:
    done = []

    def work() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with interrupts.installed():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_nothing_is_interrupted_any_more_at_the_end_of_a_process() -> None:
    code = (
        "import signal\nfrom quantune.process import interrupts\nwith interrupts.installed(last=True):\n    pass\n"
        "for number in interrupts.SIGNALS:\n    signal.raise_signal(number)\nprint('whole')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "whole\n", "")


def test_other_threads_neither_hold_nor_install() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with interrupts.installed(), interrupts.held():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_an_interruption_that_a_finalizer_swallows_comes_again() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        made = Finalized()
        del made
        for _ in range(600):  # ended by the interruption
            time.sleep(0.1)

    with interrupts.installed(), shown_as_notes("test"), pytest.raises(KeyboardInterrupt):
        work()


def test_these_tests_run_where_signals_are_ignored() -> None:
    """As under nohup, or in the background of a shell."""
    command = "trap '' INT HUP TERM; exec \"$@\""
    tests = [
        f"{__file__}::{test.__name__}" for test in (test_each_signal_interrupts, test_an_ignored_signal_stays_ignored)
    ]
    words = ["sh", "-c", command, "sh", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout
