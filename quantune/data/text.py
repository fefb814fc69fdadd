"""Text of others in messages of ours."""

from __future__ import annotations


def one_line(text: object) -> str:
    """What an error or another object says, in one line that any terminal can show."""
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """``text`` with escapes for what would break a line or cannot be encoded (controls, halves of surrogate pairs)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
