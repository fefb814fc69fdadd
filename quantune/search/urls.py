"""Addresses of storages as they may be shown: without passwords, also inside what a driver says of them."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"
_SECRET = re.compile(r"pass(word|wd|phrase|file)?$|pwd$|secret|token|api_?key|credential", re.IGNORECASE)
_LOGIN = re.compile(r"(?P<before>//[^/?#]*?:)(?P<secret>.+)@(?P<host>[^@]*)$", re.DOTALL)


def shown(url: str) -> str:
    """The address with its passwords masked, those in query parameters too; also of an address that is no URL."""
    return scrubbed(url, url)


def scrubbed(text: str, url: str) -> str:
    """A text that may repeat the address, or a password of it in any spelling, with the passwords masked."""
    for secret in sorted(secrets(url), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def secrets(url: str) -> set[str]:
    """The passwords in an address, each as written there, decoded, and as others may write it."""
    address, _, query = url.partition("?")
    found = set()
    if (login := _LOGIN.search(address)) or (login := _LOGIN.search(url)):
        found.add(login["secret"])
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if _SECRET.search(unquote(name)):
            found.add(value)
    spellings = {form(secret) for secret in found for form in (str, unquote, unquote_plus)}
    spellings |= {form(secret) for secret in spellings for form in (quote, quote_plus, _quoted, _escaped)}
    return {secret for secret in spellings if secret}


def scrub(error: BaseException, url: str) -> BaseException:
    """Mask the passwords in the arguments of an error and of all that led to it, so that a traceback may be printed."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.args = tuple(_scrubbed(value, url) for value in each.args)
        for name, value in list(vars(each).items()):  # such as SQLAlchemy's statement and params, gRPC's details
            if isinstance(value, str):
                setattr(each, name, scrubbed(value, url))
        waiting += [each.__cause__, each.__context__]
    return error


def _scrubbed(value: object, url: str) -> object:
    return scrubbed(value, url) if isinstance(value, str) else value


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _escaped(text: str) -> str:
    return repr(text)[1:-1]
