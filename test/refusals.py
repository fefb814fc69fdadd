"""What a reader refuses, for tests: one declared line, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from quantune.errors import UsageError


def refusal(read: Callable[[], object]) -> str | None:
    """The UsageError's one line, None if reading went well; any other exception fails the test."""
    try:
        read()
    except UsageError as error:
        message = str(error)
    else:
        return None
    assert message.isprintable(), repr(message)
    return message
