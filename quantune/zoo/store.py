"""Weights of the built-in networks: some are files of this package, the others are trained at their first use."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from quantune.errors import EnvironmentFailure
from quantune.process import private
from quantune.process.private import write_atomically
from quantune.zoo.imbalance import imbalance
from quantune.zoo.recipes import SIZES, Recipe
from quantune.zoo.train import Report, train

logger = logging.getLogger(__name__)


def shipped(recipe: Recipe) -> Path | None:
    """The file of trained weights in this package, or None where the network is trained on demand."""
    path = Path(__file__).with_name(f"{recipe.name}.safetensors")
    return path if path.is_file() else None


def trained(recipe: Recipe, folder: Path) -> Path:
    """Where under ``folder``, the root of the cache, the weights of a network that does not ship are kept."""
    return folder / "models" / f"{recipe.name}-{recipe.key}.safetensors"


def weights(recipe: Recipe, folder: Path, report: Report = lambda done, text: None) -> Path:
    """The trained weights of a recipe, training the network now if it neither ships nor was trained before.

    A training that was stopped goes on after its last whole epoch. Two processes do not train the same network: the
    second waits. Raises EnvironmentFailure where ``folder`` cannot be written.
    """
    path = shipped(recipe)
    if path is not None:
        return path
    path = trained(recipe, folder)
    if path.is_file() and _told(path) == _sha256(path):
        return path
    with _locked(path.with_suffix(".lock")):
        if path.is_file() and _told(path) is None:  # of an earlier version, or of a process that was killed right then
            _tell(path)
        elif path.is_file() and _told(path) != _sha256(path):
            aside = path.with_name(f"{path.name}.damaged")
            logger.warning("%s is damaged (its sha256 is not the one beside it); kept as %s", path, aside.name)
            path.replace(aside)
        if not path.is_file():
            text = f"training builtin:{recipe.name}, once (about {recipe.minutes} minutes on two CPU cores)"
            logger.warning("%s; its weights will be %s", text, path)
            report(0.0, text)
            train(recipe, path, report)
            _tell(path)
    return path


def _told(path: Path) -> str | None:
    """The digest in the file beside ``path``, None where there is none."""
    try:
        return path.with_suffix(".sha256").read_text(encoding="ascii", errors="replace")[:64]
    except FileNotFoundError:
        return None


def _tell(path: Path) -> None:
    """Write the digest of a file beside it, as ``sha256sum --check`` reads it."""
    write_atomically(path.with_suffix(".sha256"), f"{_sha256(path)}  {path.name}\n".encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def network(recipe: Recipe, path: Path, *, plain: bool = False) -> nn.Module:
    """The network with the weights in ``path``, and, unless ``plain``, with the channel imbalance of its recipe.

    A file that cannot be read is an EnvironmentFailure.
    """
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise EnvironmentFailure(f"{path}: damaged ({error}); delete it, and it will be made again") from error
    model = recipe.network()
    model.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    if recipe.octaves and not plain:
        imbalance(model, recipe.octaves, size=SIZES[recipe.task])
    return model


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system gives it back when the process ends, however it ends."""
    try:
        private.check(private.folder(path.parent))
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise EnvironmentFailure(
            f"{path.parent}: {error.strerror or error}; set XDG_CACHE_HOME to a writable folder"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
