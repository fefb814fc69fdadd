"""``PACKAGE.MODULE:FUNCTION``: the user's own function that makes a model or an image source, or is a metric."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantune.errors import UsageError, hint


def call_factory(target: str, kinds: Iterable[str] = ()) -> object:
    """Import and call ``PACKAGE.MODULE:FACTORY``, looking in the current folder too.

    kinds: prefixes that ``target`` may have been meant to have. Raises UsageError, also for what the factory raises.
    """
    factory = load(target, kinds, "a function without arguments")
    with _current_folder_importable():
        try:
            return factory()
        except (Exception, SystemExit) as error:
            name = target.partition(":")[2]
            raise UsageError(f"{target}: {name}() raised {type(error).__name__}: {_line(error)}") from error


def load(target: str, kinds: Iterable[str] = (), expected: str = "a function") -> Callable[..., Any]:
    """Import ``PACKAGE.MODULE:FUNCTION``, looking in the current folder too; see ``call_factory``."""
    module_name, _, name = target.partition(":")
    with _current_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            suggestion = hint(module_name, kinds) if isinstance(error, ModuleNotFoundError) else ""
            raise UsageError(f"{target}: cannot import {module_name}: {_line(error)}{suggestion}") from error
    found = getattr(module, name, None)
    if found is None:
        raise UsageError(f"{target}: {module_name} has no '{name}'{hint(name, dir(module))}")
    if not callable(found):
        raise UsageError(f"{target}: '{name}' is {type(found).__name__}, expected {expected}")
    return found


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
