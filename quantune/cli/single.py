"""What quantune-compile does without a search: one configuration, an artifact again from its record, one stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantune.errors import UsageError
from quantune.process import interrupts, places

if TYPE_CHECKING:
    import argparse

    from quantune.api import ModelOptions
    from quantune.cli.console import Console
    from quantune.compiler.pipelines import Debugging
    from quantune.compiler.targets import Target
    from quantune.runtime.artifact import Artifact

OK, FAILED, FOLDER = 0, 1, "quantune-out"
FILES = (".vmfb", ".onnx")
"""What -o names a file by; anything else is a folder."""


def check_export(arguments: argparse.Namespace) -> None:
    """Refuse an export where nothing is made that could be, and an ONNX file without one."""
    from quantune.tuning import exports

    if arguments.export is None:
        if Path(arguments.output or "").suffix == ".onnx":
            raise UsageError(f"output '{arguments.output}': an ONNX file is written with --export qdq-onnx")
        return
    exports.check(arguments.export)
    if Path(arguments.output or "").suffix == ".onnx" and arguments.config is None and arguments.emit is None:
        raise UsageError(
            f"output '{arguments.output}': a search writes a folder; give --config for a file, or a folder"
        )
    if arguments.like is not None or arguments.emit not in (None, "vmfb"):
        other = "--like" if arguments.like is not None else f"--emit={arguments.emit}"
        raise UsageError(f"--export writes what a search or --config makes; leave out {other}, or it")


def build_one(arguments: argparse.Namespace, console: Console) -> int:
    """Build one configuration, as an artifact and in another format if asked."""
    from quantune import api
    from quantune.quantization.config import QuantConfig
    from quantune.tuning import exports

    config = QuantConfig.parse(arguments.config) if arguments.config is not None else QuantConfig()
    calib, path = _calibration(arguments, config.is_float), _path(arguments)
    with console.stages() as progress:
        builder = api.make_builder(
            arguments.model, calib=calib, eval=arguments.eval, target=target(arguments), device=arguments.device,
            sizes=(config.calib,), options=options(arguments), memory_limit=arguments.memory_limit,
            debugging=_debugging(arguments), progress=progress,
        )  # fmt: skip
        if arguments.export is not None:
            exports.check_model(arguments.export, builder)
        if config.refinement:
            nearest = config.rounding == "nearest"
            progress.on_stage("correcting biases" if nearest else "choosing how weights are rounded")
        artifact = None if path.suffix == ".onnx" else builder.artifact(config)
        exported = None
        if arguments.export is not None:
            exported = exports.write(
                arguments.export, builder, config, path.with_suffix(exports.FORMATS[arguments.export])
            )
    if artifact is not None:
        _save(artifact, arguments, console)
    if exported is not None:
        console.show_export(exported, config)
    return OK


def build_local(arguments: argparse.Namespace, console: Console) -> int:
    """Build an artifact whose worst layers stay in f32."""
    from quantune import api

    with console.stages() as progress:
        artifact, text = api.quantize_local(
            arguments.model, calib=arguments.calib, config=arguments.config, target=target(arguments),
            target_db=arguments.target_sqnr, max_slowdown=arguments.max_slowdown, options=options(arguments),
            memory_limit=arguments.memory_limit, progress=progress,
        )  # fmt: skip
    print(text)
    _save(artifact, arguments, console)
    return OK


def _path(arguments: argparse.Namespace) -> Path:
    """The file that is asked for: an artifact, or with --export the other format alone."""
    output = Path(arguments.output or FOLDER)
    return output if output.suffix in FILES else places.folder(output, "output folder") / "best.vmfb"


def _save(artifact: Artifact, arguments: argparse.Namespace, console: Console) -> None:
    path = _path(arguments)
    with interrupts.held():
        artifact.save(path)
    console.show_artifact(artifact, path)


def make_again(arguments: argparse.Namespace, console: Console) -> int:
    """Make an artifact again from its record; fails where it differs."""
    from quantune.rebuilding import rebuild

    given = options(arguments)
    with console.stages() as progress:
        made = rebuild(
            arguments.like, model=arguments.model, calib=arguments.calib, eval=arguments.eval,
            options=None if given == type(given)() else given, progress=progress,
        )  # fmt: skip
    if arguments.output is not None:
        _save(made.artifact, arguments, console)
    if made.differences:
        print(f"{arguments.like}: made again, but it differs in {', '.join(made.differences)}")
        return FAILED
    print(f"{arguments.like}: made again, the same byte for byte")
    return OK


def emit(arguments: argparse.Namespace, console: Console) -> int:
    """Print or write the network at a stage of the compilation."""
    from quantune import api
    from quantune.compiler.pipelines import parse as parse_module
    from quantune.quantization.config import QuantConfig

    config = QuantConfig.parse(arguments.config) if arguments.config is not None else QuantConfig()
    if config.is_float and arguments.emit != "linalg":
        raise UsageError(f"--emit={arguments.emit} with {config}: nothing is quantized; use --emit=linalg")
    with console.stages() as progress:
        builder = api.make_builder(
            arguments.model, calib=_calibration(arguments, config.is_float or arguments.emit == "linalg"),
            target=target(arguments), device=arguments.device, sizes=(config.calib,),
            eval=arguments.eval, options=options(arguments), memory_limit=arguments.memory_limit,
            debugging=_debugging(arguments), progress=progress,
        )  # fmt: skip
        lowered = builder.lower(config, until=arguments.emit)
    if arguments.output is None:
        print(parse_module(lowered.module).operation.get_asm(large_elements_limit=16))
        return OK
    path = Path(arguments.output)
    text = lowered.module if path.suffix == ".mlirbc" else str(parse_module(lowered.module)).encode()
    places.write(path, text, "output")
    return OK


def _calibration(arguments: argparse.Namespace, is_float: bool) -> str | None:
    if arguments.calib is None and not is_float:
        raise UsageError("--calib is missing: a quantized configuration needs calibration images")
    return arguments.calib


def target(arguments: argparse.Namespace) -> Target:
    """What is compiled for."""
    from quantune.compiler.targets import parse

    return parse(arguments.target or "cpu", **_target_details(arguments))


def _target_details(arguments: argparse.Namespace) -> dict[str, str | None]:
    from quantune.compiler.targets import BACKENDS

    return {each.field: getattr(arguments, f"target_{each.field}") for each in BACKENDS.values()}


def options(arguments: argparse.Namespace) -> ModelOptions:
    """What the model reference leaves open."""
    from quantune.api import ModelOptions

    return ModelOptions(arguments.weights, arguments.image_shape, arguments.batch, arguments.classes)


def _debugging(arguments: argparse.Namespace) -> Debugging:
    from quantune.compiler.pipelines import Debugging

    return Debugging(arguments.dump_ir_dir, arguments.print_ir_after_all, Path("quantune-failures"))
