"""What the command lines of all tools share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from quantune.cli.streams import one_line
from quantune.errors import UsageError
from quantune.versions import versions

_LARGEST = 10**9
_LONGEST = 300
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(ms|s|m|h)?", re.ASCII)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the whole usage; takes only arguments that are text."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        text = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
        self.exit(UsageError.exit_code, f"{self.prog}: {one_line(text)} (see {self.prog} --help)\n")

    def read(self, args: Sequence[str] | None) -> argparse.Namespace:
        """Read the command line. What it holds goes into reports and commands, which are UTF-8."""
        found = self.parse_args(args)
        for name, value in vars(found).items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str | Path) and not _is_text(str(text)):
                    self.error(f"{name.replace('_', '-')} {str(text)!r}: expected text in UTF-8 without zero bytes")
        return found


def version_line() -> str:
    """What --version prints: the versions that a report of a problem should quote."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def count(text: str) -> int:
    """Read a whole number, for argparse; ten digits at most, so that no sum or product of a few overflows."""
    if not re.fullmatch(r"[+-]?\d{1,10}", text, re.ASCII) or abs(int(text)) > _LARGEST:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number up to {_LARGEST}")
    return int(text)


def number(text: str) -> float:
    """Read a finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}': expected a number such as 0.01")
    return value


def seconds(text: str) -> float | None:
    """Read a time such as 90s, 500ms, 10m or 1h (seconds without a unit); None for anything else."""
    found = _TIME.fullmatch(text.strip())
    return float(found[1]) * _UNITS[found[2] or "s"] if found else None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def size(text: str) -> int:
    """Read a size in bytes such as 500, 64KB, 256MB or 4GB, for argparse."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)(B|KB|MB|GB)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}': expected a size such as 64KB, 256MB or 4GB")
    return int(float(found[1]) * 10 ** (3 * "BKMG".index((found[2] or "B")[0].upper())))
