"""Where a device is, and the token that both sides know."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from quantune.errors import UsageError

DEFAULT_PORT = 7433
TOKEN = "QUANTUNE_DEVICE_TOKEN"
SCHEME = "tcp://"


@dataclass(frozen=True)
class Address:
    """Where a device listens, as ``tcp://HOST:PORT?token-file=FILE&wait=SECONDS``.

    wait_s: how long to wait for one that is busy or went away. token: by default what QUANTUNE_DEVICE_TOKEN holds.
    """

    host: str
    port: int = DEFAULT_PORT
    token: str = field(default="", repr=False)
    wait_s: float = 60.0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a URI. Raises UsageError, with an example, for what is none."""
        example = f"expected tcp://HOST:{DEFAULT_PORT}, and ?token-file=FILE&wait=SECONDS where needed"
        try:
            parts = urllib.parse.urlsplit(text)
            port = parts.port
            options = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)))
            wait = float(options.pop("wait", cls.wait_s))
        except ValueError as error:
            raise UsageError(f"device '{text}': {error}; {example}") from error
        if parts.scheme != "tcp" or not parts.hostname or parts.path not in ("", "/") or "@" in parts.netloc:
            raise UsageError(f"device '{text}': {example}")
        file = options.pop("token-file", None)
        if options or not 0 <= wait < 86400:
            raise UsageError(f"device '{text}': {example}")
        return cls(parts.hostname, port or DEFAULT_PORT, read_token(file) or "", wait)

    def __str__(self) -> str:
        return f"tcp://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def read_token(file: str | Path | None) -> str | None:
    """The token in a file, or in QUANTUNE_DEVICE_TOKEN; None without either. UsageError when it cannot be read."""
    if file is None:
        return os.environ.get(TOKEN, "").strip() or None
    try:
        token = Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f"token file {file}: {reason}") from error
    if not token:
        raise UsageError(f"token file {file}: empty; expected the token that the device has too")
    return token
