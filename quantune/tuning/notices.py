"""Warnings as data: what our loggers tell while a call runs is kept for its result, and shown as before."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOGGERS = ("quantune", "mlir_passes")


class Notices(logging.Handler):
    """Keeps the text of each warning once, in their order."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}

    @property
    def texts(self) -> tuple[str, ...]:
        """What was told so far."""
        return tuple(self._texts)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._texts.setdefault(" ".join(record.getMessage().split()))
        # Where nobody handles records Python prints warnings, unless there is a handler such as this one.
        if logging.lastResort is not None and not logging.getLogger().handlers:
            logging.lastResort.handle(record)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the warnings of this process inside the block, whatever level logging is set to."""
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(self)
            if logger.getEffectiveLevel() > logging.WARNING:
                logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(self)
                logger.setLevel(level)
