"""Making an artifact again from the record in its file, and saying whether the result is the same, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from quantune import api
from quantune.artifact.provenance import Provenance
from quantune.cache import ArtifactCache
from quantune.compiler.targets import parse
from quantune.data.choice import Images
from quantune.data.sources import Reference
from quantune.errors import UsageError
from quantune.quantization.config import QuantConfig
from quantune.runtime.artifact import Artifact, load
from quantune.tuning.request import ModelOptions, Origin

if TYPE_CHECKING:
    from quantune.api import ModelLike

_DATA = ("torchvision:", "builtin:"), (".pt2", ".onnx", ".mlir", ".mlirbc")


@dataclass(frozen=True)
class Rebuilt:
    """An artifact made again. differences: in what it is not the file it was made like, in words; empty if it is."""

    artifact: Artifact
    differences: tuple[str, ...]


def rebuild(
    like: Path | str,
    *,
    model: ModelLike | None = None,
    calib: Images | None = None,
    eval: Images | None = None,
    options: ModelOptions | None = None,
    cache: ArtifactCache | None = None,
    progress: api.Progress | None = None,
) -> Rebuilt:
    """Make the artifact in the file ``like`` again: its model, target, configuration and calibration images.

    model, calib, eval, options: in place of what the record names; needed for what was a Python object or is made by
    the user's own function, which is not called because a file says so. Raises UsageError when the model or the images
    are not those that the record has the fingerprints of.
    """
    where = str(like)
    record = load(like).provenance
    if record is None:
        raise UsageError(f"{where}: it has no record of how it was made; expected an artifact of quantune")
    origin = Origin.from_arguments(record.sources, where)
    try:
        config = QuantConfig.parse(record.configuration)
    except UsageError as error:
        raise UsageError(f"{where}: the record's configuration cannot be used ({error})") from error
    builder = api.make_builder(
        model if model is not None else _model(origin, where),
        calib=calib if calib is not None else _images(origin.calibration, "calib", where, needed=not config.is_float),
        eval=eval if eval is not None else _images(origin.evaluation, "eval", where, needed=False),
        target=parse(record.target),
        sizes=(config.calib,),
        options=options or origin.options,
        cache=cache,
        progress=progress,
    )
    pairs = [("another model", record.fingerprint, builder.model.fingerprint)]
    if not config.is_float and builder.calib is not None:
        pairs.append(("other calibration images", record.data.get("calibration", ""), builder.calib.fingerprint))
    for what, expected, found in pairs:
        if found != expected:
            raise UsageError(f"{where}: it was made from {what}: fingerprint {expected[:16]}, given is {found[:16]}")
    artifact = builder.artifact(config)
    assert artifact.provenance is not None
    differences = _differences(record, artifact.provenance)
    if not differences:
        artifact = builder.artifact(config, record.measured)  # of the same program: what was measured holds
    return Rebuilt(artifact, differences)


def _model(origin: Origin, where: str) -> str:
    if origin.model is None:
        raise UsageError(f"{where}: its model was a Python object: give it too (MODEL, or model=… in Python)")
    starts, ends = _DATA
    if not origin.model.startswith(starts) and not origin.model.endswith(ends):
        raise UsageError(f"{where}: its model is made by a function, '{origin.model}': name it if it is to be called")
    return origin.model


def _images(reference: str | None, option: str, where: str, *, needed: bool) -> str | None:
    if reference is None:
        if needed:
            how = f"--{option}, or {option}=… in Python"
            raise UsageError(f"{where}: its images were Python objects: give them too ({how})")
        return None
    if Reference.parse(reference).kind == "factory":
        made = f"its images are made by a function, '{reference}'"
        raise UsageError(f"{where}: {made}: give --{option} if it is to be called")
    return reference


def _differences(old: Provenance, new: Provenance) -> tuple[str, ...]:
    """Where two records differ, what was measured apart; each holds its program's sha256, so none means equal files."""
    found = []
    for name in (field.name for field in fields(Provenance) if field.name != "measured"):
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, Mapping):
            changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
            parts = (f"{key} {before.get(key, 'none')} -> {after.get(key, 'none')}" for key in changed)
            found.append(f"{name} ({', '.join(parts)})")
        else:
            found.append("program" if name == "sha256" else name)
    return tuple(found)
