"""What a foreign file says, value by value: of the type that is expected there, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
"""What may be written into Python: torch compiles code from the names in a graph."""

WEIGHT = re.compile(r"[\w.\-\[\]:/ ]+", re.ASCII)
"""The path of a weight, which torch writes into Python in quotes."""

_WORD = re.compile(r"[\w,.> -]*", re.ASCII)
_LONGEST = 10_000  # characters of a name or a text


class Refused(Exception):
    """What is wrong with a file, in words."""


def typed(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """The value, if it is of that kind; a bool is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Refused(f"{name!r:.60} is {value!r:.60}, which is of the wrong type")
    return value


def field(value: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """An entry of an object, if it is there and of that kind."""
    return typed(typed(value, dict, name).get(name), kind, name)


def match(value: Any, name: str, pattern: re.Pattern[str]) -> str:
    """An entry of an object, if it is text of that form."""
    text = field(value, name, str)
    if len(text) > _LONGEST or not pattern.fullmatch(text):
        raise Refused(f"{name!r:.60} is {text!r:.60}, which is no name")
    return text


def identifier(value: Any) -> str:
    """A name as in Python."""
    return match({"name": value}, "name", NAME)


def word(value: Any) -> str:
    """One of the words that choose among what an operator can do, or an equation."""
    return match({"text": value}, "text", _WORD)


def printable(value: Any) -> str:
    """Text on one line."""
    text = typed(value, str, "text")
    if len(text) > _LONGEST or not text.isprintable():
        raise Refused(f"the text {text!r:.60} is no name")
    return text


def variant(value: Any) -> tuple[str, Any]:
    """The only entry of an object: which alternative it is, and its value."""
    if not isinstance(value, dict) or len(value) != 1:
        raise Refused(f"{value!r:.60} is no argument")
    return next(iter(value.items()))


def mapping(value: dict[str, Any], names: re.Pattern[str], each: Callable[[Any], Any]) -> dict[str, Any]:
    """An object whose keys are of a form, each value as ``each`` gives it back."""
    return {match({"name": key}, "name", names): each(item) for key, item in value.items()}
