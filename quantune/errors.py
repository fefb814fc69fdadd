"""Every error quantune raises on purpose. Each carries the exit code its driver ends with."""

from __future__ import annotations


class QuantuneError(Exception):
    """Base of all errors whose message is written for the user: one line, no traceback needed."""

    exit_code = 1


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
