"""Model references -> imported models: torchvision:NAME, builtin:NAME, PKG.MOD:FACTORY, .pt2, .onnx and .mlir files."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from quantune.errors import UsageError, first_line, hint
from quantune.frontend import importer
from quantune.frontend.checkpoints import unreadable
from quantune.frontend.files import SUFFIXES, converted_weights, import_file
from quantune.frontend.imported import ImportedModel
from quantune.torchvision_compat import torchvision
from quantune.user_code import call_factory
from quantune.zoo import store
from quantune.zoo.recipes import PLAIN, RECIPES, SIZES, Recipe, names

LARGEST_BATCH_BYTES = 1 << 30
"""Of the images of one call."""

LARGEST_CLASSES = 10**6

WeightsOf = Callable[[Recipe], Path]
"""Finds the weights of a built-in model, or makes them."""


def shipped(recipe: Recipe) -> Path:
    """The weights of a built-in model that are part of the package; UsageError where they are not."""
    path = store.shipped(recipe)
    if path is None:
        raise UsageError(f"builtin:{recipe.name} is trained on demand, which needs a folder for its weights")
    return path


@dataclass(frozen=True)
class ModelRequest:
    """What the user asked for. shape: of one image (c, h, w); None lets the model's reference decide."""

    reference: str
    weights: Path | None = None
    shape: tuple[int, int, int] | None = None
    batch: int = 1
    classes: int | None = None
    seed: int = 0


def load_model(request: ModelRequest, weights_of: WeightsOf = shipped) -> ImportedModel:
    """Resolve and import a model; ``weights_of`` gives the weights of a built-in one.

    Raises UsageError for a wrong reference or a file that cannot be read, ImportFailed for a model that does not lower.
    """
    for what, value in (("batch", request.batch), ("classes", request.classes), ("shape", min(request.shape or (1,)))):
        if value is not None and value < 1:
            raise UsageError(f"{what} {value}: expected 1 or more")
    reference = request.reference
    if reference.endswith(SUFFIXES):
        _refuse(request, "weights", "shape", "classes", "batch")
        return import_file(reference)
    kind, _, name = reference.partition(":")
    if kind == "torchvision" and name:
        model, title = _torchvision_model(request, name), name
    elif kind == "builtin" and name:
        recipe = _recipe_for(request)
        model, title = store.network(recipe, weights_of(recipe), plain=name != recipe.name), name
    elif kind and name:
        _refuse(request, "classes")
        model, title = _call_factory(reference), name
    else:
        raise UsageError(
            f"model '{reference}': expected torchvision:NAME, builtin:NAME, PKG.MOD:FACTORY, "
            "FILE.pt2, FILE.onnx, FILE.mlir or FILE.mlirbc"
        )
    if request.weights is not None:
        load_weights(model, request.weights)
    shape = request.shape or default_shape(reference)
    return importer.import_module(model, example(request.batch, shape), title)


def example(batch: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """A batch of black images. Raises UsageError for one that no network could be run on."""
    size = 4 * batch * math.prod(shape)
    if size > LARGEST_BATCH_BYTES:
        raise UsageError(
            f"{batch} images of shape {shape} take {size / 2**30:.1f} GiB; expected at most "
            f"{LARGEST_BATCH_BYTES / 2**30:g} GiB in one call"
        )
    return torch.zeros(batch, *shape)


def default_shape(reference: str) -> tuple[int, int, int]:
    """The image shape a reference is made for: the builtin models' own, else ImageNet's."""
    if reference.startswith("builtin:"):
        size = SIZES[_recipe(reference).task]
        return (3, size, size)
    return (3, 299, 299) if "inception" in reference else (3, 224, 224)


def request_key(request: ModelRequest, weights_of: WeightsOf = shipped) -> str | None:
    """A key under which an imported model may be cached, or None where the reference alone does not fix the weights."""
    if not request.reference.startswith(("torchvision:", "builtin:")):
        return None
    kind, _, name = request.reference.partition(":")
    path = request.weights
    if request.reference.startswith("builtin:"):
        recipe = _recipe_for(request)
        path = weights_of(recipe)
        name = f"{name} {recipe.octaves}"
    weights = "" if path is None else hashlib.sha256(_existing(str(path), "weights").read_bytes()).hexdigest()
    versions = (torch.__version__, torchvision().__version__)
    return repr((kind, name, weights, request.shape, request.batch, request.classes, request.seed, versions))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from safetensors or a torch file (tensors only) into ``model``; UsageError on any mismatch."""
    _existing(str(path), "weights")
    if path.suffix == ".safetensors":
        state = _plain(path, path)
    else:
        with converted_weights(path) as plain:
            state = _plain(plain, path)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    expected = model.state_dict()
    problems = [f"'{n}' is missing" for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    problems += [f"'{n}' is unknown" for n in state if n not in expected and not n.startswith(("aux", "AuxLogits"))]
    problems += [
        f"'{n}' has shape {tuple(v.shape)}, the model {tuple(expected[n].shape)}"
        for n, v in state.items()
        if n in expected and v.shape != expected[n].shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UsageError(f"weights '{path}' do not fit the model: {problems[0]}{more}")
    model.load_state_dict({n: v.to(expected[n].dtype) for n, v in state.items() if n in expected}, strict=False)


def _plain(file: Path, asked: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # safetensors and torch fail in their own ways, and all mean the same to the user
        raise unreadable(asked, error) from error


def _torchvision_model(request: ModelRequest, name: str) -> nn.Module:
    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(f"torchvision has no classification model '{name}'{hint(name, known)}")
    torch.manual_seed(request.seed)  # random weights when none are given: the same on every run
    options: dict[str, Any] = {"weights": None}
    if request.classes is not None:
        if request.classes > LARGEST_CLASSES:
            raise UsageError(f"{request.classes} classes: expected at most {LARGEST_CLASSES}")
        options["num_classes"] = request.classes
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # its own takes minutes; torch's default is as good for random weights
    model = models.get_model(name, **options).eval()
    if request.weights is None:
        shape = request.shape or default_shape(request.reference)
        example(request.batch, shape)
        try:
            calibrate_batch_norms(model, shape)
        except Exception as error:  # the model's own checks are assertions
            raise UsageError(f"model '{name}' does not take images of shape {shape}: {first_line(error)}") from error
    return model


def calibrate_batch_norms(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Give a model with random weights batch norm statistics of its own activations: signals keep their scale."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average: one pass sets the statistics
    model.train()
    for dropout in dropouts:
        dropout.eval()
    with torch.no_grad():
        model(torch.randn(8, *shape))
    model.eval()


def _recipe_for(request: ModelRequest) -> Recipe:
    recipe = _recipe(request.reference)
    _refuse(request, "weights", "classes")
    return recipe


def _recipe(reference: str) -> Recipe:
    name = reference.removeprefix("builtin:")
    if name not in names():
        raise UsageError(f"no builtin model '{name}'{hint(name, names())}; there is {', '.join(names())}")
    return RECIPES[name.removesuffix(PLAIN)]


def _call_factory(reference: str) -> nn.Module:
    model = call_factory(reference, ("torchvision", "builtin"))
    if not isinstance(model, nn.Module):
        raise UsageError(f"{reference}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def _existing(name: str, what: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{what} '{name}': no such file")
    return path


def _refuse(request: ModelRequest, *options: str) -> None:
    for option in options:
        if getattr(request, option) != getattr(ModelRequest, option):
            name = "image-shape" if option == "shape" else option
            raise UsageError(f"--{name} does not apply to model '{request.reference}', which fixes it")
