"""Weights of the built-in networks: some are files of this package, the others are trained at their first use."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from quantune.errors import EnvironmentFailure
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
    path = shipped(recipe) or trained(recipe, folder)
    if path.is_file():
        return path
    with _locked(path.with_suffix(".lock")):
        if not path.is_file():
            text = f"training builtin:{recipe.name}, once (about {recipe.minutes} minutes on two CPU cores)"
            logger.warning("%s; its weights will be %s", text, path)
            report(0.0, text)
            train(recipe, path, report)
    return path


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
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise EnvironmentFailure(
            f"{path.parent}: {error.strerror or error}; set XDG_CACHE_HOME to a writable folder"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
