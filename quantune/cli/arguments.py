"""What the command lines of all tools share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from quantune.errors import UsageError


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the whole usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(UsageError.exit_code, f"{self.prog}: {message} (see {self.prog} --help)\n")


def writable_folder(path: Path | str, option: str) -> None:
    """Create the folder of an option before the work that fills it; UsageError naming the option otherwise."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}; expected a writable folder") from error
