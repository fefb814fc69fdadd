"""What is kept of what was made last."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from quantune.tuning.recent import Recent


def test_the_last_ones_asked_for_are_kept() -> None:
    recent: Recent[str, str] = Recent(2)
    made: list[str] = []

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == list("abcb")  # c took the place of b, which was asked for longer ago than a


def test_sizes_are_bounded_and_the_last_one_stays_whatever_its_size() -> None:
    recent: Recent[str, int] = Recent(10, size=lambda value: value)
    for key, value in {"a": 4, "b": 6, "c": 11}.items():
        assert recent.get(key, lambda value=value: value) == value
        assert recent.get(key, lambda: 0) == value
    assert recent.get("b", lambda: 5) == 5
    assert recent.get("c", lambda: 5) == 5  # together with b's it was too much


def test_a_value_is_made_once_while_others_wait_and_again_after_a_failure() -> None:
    recent: Recent[str, int] = Recent(1)
    began, go_on, made = threading.Event(), threading.Event(), []

    def slowly() -> int:
        made.append(1)
        began.set()
        assert go_on.wait(60)
        return 7

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(recent.get, "a", slowly)
        assert began.wait(60)
        second = pool.submit(recent.get, "a", slowly)
        assert recent.get("b", lambda: 2) == 2  # another key waits for nobody
        go_on.set()
        assert (first.result(60), second.result(60), len(made)) == (7, 7, 1)
    with pytest.raises(ZeroDivisionError):
        recent.get("c", lambda: 1 // 0)
    assert recent.get("c", lambda: 3) == 3
