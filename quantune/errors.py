"""Every error quantune raises on purpose. Each carries the exit code its driver ends with."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
)


class QuantuneError(Exception):
    """Base of all errors whose message is written for the user: one line, no traceback needed.

    transient: the machine failed, not what was asked of it (a child was killed, memory, time or disk ran out), so that
    the same may succeed another time.
    """

    exit_code = 1

    def __init__(self, *args: object, transient: bool = False) -> None:
        super().__init__(*args)
        self.transient = transient


class UsageError(QuantuneError):
    """The request is wrong: an unknown name, a bad option, an unreadable or contradictory input."""

    exit_code = 2


class EnvironmentFailure(QuantuneError):
    """The machine lacks something the request needs: a device, a driver, a compiler, a processor feature."""

    exit_code = 4


class ImportFailed(QuantuneError):
    """A model could not be turned into linalg; names the operator and where it stands in the model."""


class PassFailed(QuantuneError):
    """A rewrite rejected its input; names the pass, the operation and the reproducer."""


class CompileFailed(QuantuneError):
    """IREE did not produce an artifact: an error, a crash, a time-out or exhausted memory."""


class RunFailed(QuantuneError):
    """A compiled artifact could not be loaded or run."""


def machine_lacks(error: OSError) -> bool:
    """Whether the system refuses for want of space, memory or handles: with other names it would refuse as well."""
    return error.errno in _MACHINE


def missing(error: ImportError, extra: str = "compile", purpose: str = "compiles and searches") -> EnvironmentFailure:
    """The error to raise where a package is not installed: what to install."""
    advice = f"pip install 'quantune[{extra}]' brings what {purpose}"
    return EnvironmentFailure(f"a package cannot be imported: {error}; {advice}")


def hint(value: object, allowed: Iterable[str]) -> str:
    """`` (did you mean X?)`` if a name of ``allowed`` begins with ``value`` or is close to it, else nothing."""
    text, names = str(value), list(allowed)
    close = [name for name in names if text and name.startswith(text)] or difflib.get_close_matches(text, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def refused(what: str, error: OSError, remedy: str = "") -> QuantuneError:
    """The error to raise where the system refuses ``what``; a remedy follows where it is the request that is wrong."""
    reason = f"{what}: {error.strerror or error}"
    if machine_lacks(error):
        return EnvironmentFailure(f"{reason}; make room and run the same command again")
    return UsageError(f"{reason}; {remedy}" if remedy else reason)
