"""Weights as torch saves them, of which tensors alone are read; meant for a process that may end (see files.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quantune.errors import UsageError, first_line


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, each with memory of its own; of a training's checkpoint, those of its state_dict.

    Raises UsageError for a file of anything else. Nothing in the file is run.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zip, pickle and torch fail in their own ways, and all mean the same to the user
        raise unreadable(path, error) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    pairs: list[tuple[Any, Any]] = list(state.items()) if isinstance(state, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        raise UsageError(f"weights '{path}': expected a mapping from names to tensors")
    try:
        return {name: value.detach().contiguous().clone() for name, value in pairs}
    except (RuntimeError, NotImplementedError) as error:  # sparse ones, those of a device, those too large
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> UsageError:
    """The error to raise where a library could not read a file of weights."""
    kind = path.suffix or "torch"
    return UsageError(
        f"weights '{path}': not a readable {kind} file of tensors: {type(error).__name__}: {first_line(error)}"
    )
