"""torch.export program -> f32 linalg module whose layers carry their module path and whose weights are readable.

Two things differ from torch-mlir's default import. Weights become ``dense`` constants, because a ``dense_resource``
cannot be read back from Python and passes must read, quantize and repack weights. Locations become module paths, which
survive the lowering to linalg, and from which the attribute ``quantune.layer`` is set.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch_mlir import fx, ir
from torch_mlir.dialects import torch as torch_dialect
from torch_mlir.extras.fx_importer import ContextCache, FxImporter, FxImporterHooks

from quantune.errors import ImportFailed, UsageError, first_line
from quantune.frontend.folding import fold_batch_norms
from quantune.frontend.imported import ImportedModel, from_module


def import_program(program: ExportedProgram, name: str) -> ImportedModel:
    """Fold batch norms and lower to linalg. Raises ImportFailed naming the operator and its place in the model."""
    said: list[str] = []
    try:
        with quiet():
            module = _lower(program, said)
    except Exception as error:  # torch and torch-mlir raise whatever their Python raises on what they do not know
        reason = said[0] if said else f"{_culprit(error)}{first_line(error, 300)}"
        raise ImportFailed(f"model '{name}' cannot be lowered: {reason}") from error
    return from_module(module, name)


def _lower(program: ExportedProgram, said: list[str]) -> ir.Module:
    """The program as linalg with its batch norms folded; what MLIR complains of is added to ``said``."""
    fold_batch_norms(program)
    context = ir.Context()
    torch_dialect.register_dialect(context)
    importer = FxImporter(context=context, hooks=_ReadableWeights())
    importer._cc.__class__ = _NamedLocations

    def note(diagnostic: ir.Diagnostic) -> bool:
        if diagnostic.severity == ir.DiagnosticSeverity.ERROR:
            said.append(_reason(diagnostic.message, str(diagnostic.location)))
        return True  # or MLIR prints it

    handler = context.attach_diagnostic_handler(note)
    try:
        return fx.export_and_import(program, output_type="linalg-on-tensors", fx_importer=importer)
    finally:
        handler.detach()


def import_module(model: torch.nn.Module, example: torch.Tensor, name: str) -> ImportedModel:
    """Export ``model`` (in eval mode) for inputs shaped like ``example`` and import it; ``model`` stays as it is.

    Raises UsageError where the weights are not f32 or the model does not take such inputs, ImportFailed where it does
    and torch cannot export it.
    """
    for weight, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            kind = str(value.dtype).removeprefix("torch.")
            raise UsageError(f"model '{name}': '{weight}' is {kind}, expected float32: call .float() on the model")
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), quiet():
            model.eval()
            _try(model, example, name)
            program = torch.export.export(model, (example,), strict=False)
    except UsageError:
        raise
    except Exception as error:
        raise ImportFailed(f"model '{name}' cannot be exported by torch.export: {first_line(error, 300)}") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return import_program(_with_own_state(program), name)


def _try(model: torch.nn.Module, example: torch.Tensor, name: str) -> None:
    """Run the model once: what fails here is the request, not the export."""
    try:
        model(example)
    except Exception as error:  # the model is the user's code, which may raise anything
        shape = tuple(example.shape)
        raise UsageError(
            f"model '{name}' does not run on f32 images of shape {shape}: {first_line(error, 300)}; "
            "another shape is given by the images or --image-shape"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from printing graphs, warnings and tracebacks inside the block; what fails there raises anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            with _descriptors_to_nowhere():
                yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _descriptors_to_nowhere() -> Iterator[None]:
    """The same for what C++ prints."""
    with contextlib.ExitStack() as after:
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:  # OSError: they are closed
            for number in (1, 2):
                kept = os.dup(number)
                after.callback(os.close, kept)
                os.dup2(nowhere.fileno(), number)
                after.callback(os.dup2, kept, number)
        yield


def module_path(node: torch.fx.Node) -> str:
    """The path of the module whose call produced ``node`` (``features.0.0``), or the node's own name at top level."""
    stack: dict[str, Any] | None = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    path = path.removeprefix("L['self'].").removeprefix("L['self']").replace("['", ".").replace("']", "")
    return path or node.name


def _with_own_state(program: ExportedProgram) -> ExportedProgram:
    """Detach the program's state from the live model, which folding must not touch."""
    for name, tensor in list(program.state_dict.items()):
        copy = tensor.detach().clone()
        program.state_dict[name] = torch.nn.Parameter(copy, False) if isinstance(tensor, torch.nn.Parameter) else copy
    return program


class _NamedLocations(ContextCache):
    """Locations that are module paths instead of lines of Python."""

    __slots__ = ()

    def get_node_location(self, node: torch.fx.Node) -> ir.Location:
        return ir.Location.name(module_path(node), context=self._c)


class _ReadableWeights(FxImporterHooks):
    """Literals as ``dense`` elements instead of ``dense_resource``."""

    def resolve_literal(self, gni: Any, literal: Any, info: Any) -> Any:
        if not isinstance(literal, torch.Tensor) or literal.dtype != torch.float32 or literal.numel() < 2:
            return None
        array = np.ascontiguousarray(literal.detach().cpu().numpy())
        with gni._c:
            elements = ir.DenseElementsAttr.get(array, type=ir.F32Type.get())
            result = gni._cc.tensor_to_vtensor_type(literal)
            operation = ir.Operation.create("torch.vtensor.literal", results=[result], attributes={"value": elements})
            return operation.result


def _culprit(error: BaseException) -> str:
    """The operator that was being imported when ``error`` was raised, and its layer; nothing where none was."""
    nodes = [
        value
        for frame, _ in traceback.walk_tb(error.__traceback__)
        for value in frame.f_locals.values()
        if isinstance(value, torch.fx.Node) and value.op == "call_function"
    ]
    return f"operator '{nodes[-1].target}' in layer '{module_path(nodes[-1])}': " if nodes else ""


def _reason(message: str, location: str) -> str:
    """One line from torch-mlir's diagnostic: the operator and, from its location, the layer."""
    line = message.strip().partition("\n")[0]
    unknown = re.search(r'"torch\.operator".*name = "torch\.([^"]+)"', line)
    illegal = re.match(r"failed to legalize operation '(?:torch\.)?([^']+)'", line)
    operator = unknown or illegal
    place = re.search(r'loc\("([^"]+)"', location)
    where = f" in layer '{place.group(1)}'" if place else ""
    return f"no lowering for operator '{operator.group(1)}'{where}" if operator else f"{line[:200]}{where}"
