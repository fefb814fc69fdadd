"""quantune-compile: a model, images and a target in; the best quantized artifact that keeps the accuracy budget out."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quantune.cli import entry
from quantune.cli.arguments import OneLineParser, count, number, seconds, version_line
from quantune.cli.entry import interrupted, run
from quantune.errors import UsageError
from quantune.process import interrupts, places

if TYPE_CHECKING:
    from quantune.api import ModelOptions
    from quantune.cli.console import Console
    from quantune.cli.streams import Notes
    from quantune.compiler.pipelines import Debugging
    from quantune.compiler.targets import Target
    from quantune.runtime.artifact import Artifact

OK, FAILED, INFEASIBLE = 0, 1, 3
_FOLDER = "quantune-out"
_SEARCH_ONLY = (
    "max_trials", "time_budget", "storage", "evaluate_on", "retry_failed", "weight_bits", "size_budget",
    "smallest_within", "score", "propose", "walk", "formats", "space",
    "no_transfer", "no_early_stop",
)  # fmt: skip
_SEARCH_DEFAULTS = {
    "objective": "accuracy", "max_drop": 0.01, "sampler": "xgboost", "seed": 0, "threads": 1,
}  # fmt: skip
"""What a search takes where an option is not given; without a search such an option is refused like the others."""

EPILOG = """\
models    torchvision:NAME  builtin:NAME_shapes  PKG.MOD:FACTORY  FILE.pt2  FILE.mlir  FILE.mlirbc
data      builtin:shapes  builtin:digits  imagefolder:DIR?resize=256&crop=224  npz:FILE  PKG.MOD:FACTORY
          (?count=N limits any of them)
targets   {targets}

exit codes  0 done   1 failed   2 wrong request   3 nothing keeps the accuracy bound (best effort written)
            4 the machine lacks something   130 interrupted (143 by SIGTERM, 129 by SIGHUP), state saved:
            the same command resumes

example
  quantune-compile builtin:mobilenet_v2_shapes --calib builtin:shapes --eval builtin:shapes --max-trials 16 -o out
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``quantune-compile``; returns the exit code."""
    return run("quantune-compile", command, argv)


def command(argv: list[str] | None, notes: Notes) -> int:
    """What the command does; its errors are told by `quantune.cli.entry`."""
    arguments = parser().read(argv)
    if arguments.verbose:
        notes.verbose()
    return _run(arguments)


def parser() -> OneLineParser:
    """The command line, for help and for its tests."""
    from quantune.compiler.targets import BACKENDS

    top = OneLineParser(
        prog="quantune-compile",
        description=__doc__,
        epilog=EPILOG.format(targets="  ".join(f"{each.name} ({each.option})" for each in BACKENDS.values())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("model", nargs="?", help="what to compile, see below")
    top.add_argument(
        "-o",
        "--output",
        default=None,
        help="folder of the results (default quantune-out), or a file with --config or --emit",
    )
    top.add_argument("--version", action="version", version=version_line())
    model = top.add_argument_group("model")
    model.add_argument("--weights", type=Path, metavar="FILE", help="state dict, .safetensors or .pth")
    model.add_argument("--image-shape", type=_shape, metavar="C,H,W", help="default: the evaluation images' own shape")
    model.add_argument("--classes", type=count, metavar="N", help="outputs of a torchvision model")
    model.add_argument(
        "--batch", type=count, default=1, metavar="N", help="images in one call of the artifact (default 1)"
    )
    data = top.add_argument_group("images")
    data.add_argument("--calib", metavar="DATA", help="calibration images")
    data.add_argument("--eval", metavar="DATA", help="labelled evaluation images")
    target = top.add_argument_group("target")
    *names, last = BACKENDS
    target.add_argument("--target", metavar="T", help=f"{', '.join(names)} or {last} (default cpu)")
    for each in BACKENDS.values():
        target.add_argument(each.option, metavar=each.metavar, dest=f"target_{each.field}", help=each.help)
    target.add_argument("--threads", type=count, metavar="N", help="processor threads for the latency (default 1)")
    target.add_argument(
        "--device", metavar="URI", help="compile for and measure on a device: tcp://HOST:PORT (quantune-device serve)"
    )
    target.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="of each compiler and worker, such as 2GB, or none (default: by the machine)",
    )
    search = top.add_argument_group("search")
    search.add_argument("--objective", metavar="M", help="accuracy (default), latency or size")
    search.add_argument("--max-drop", type=number, metavar="X", help="largest loss of top-1, as a fraction (0.01)")
    search.add_argument("--max-trials", type=count, metavar="N", help="configurations to measure (default: all)")
    search.add_argument(
        "--space",
        metavar="NAME",
        help="paper (default): 96 configurations; wide: all clip rules, weight ranges and bias correction too, 2160",
    )
    search.add_argument("--time-budget", type=_seconds, metavar="TIME", help="such as 90s, 10m or 1h")
    search.add_argument("--sampler", metavar="S", help="xgboost (default), random, grid, genetic or tpe")
    search.add_argument("--seed", type=count, metavar="N")
    search.add_argument(
        "--no-transfer", action="store_true", default=None, help="search without what was measured on other models"
    )
    search.add_argument(
        "--no-early-stop",
        action="store_true",
        default=None,
        help="measure every trial on all images, hopeless ones too",
    )
    search.add_argument(
        "--storage", metavar="URL", help="a database that workers share instead of OUT/study.db (docs/workers.md)"
    )
    search.add_argument(
        "--retry-failed", action="store_true", default=None, help="measure again what failed or was given up"
    )
    search.add_argument(
        "--evaluate-on",
        metavar="WHERE",
        help="where accuracy is counted: here, device or dask://HOST:PORT (default: here if possible)",
    )
    bits = top.add_argument_group("bits")
    bits.add_argument("--weight-bits", type=count, metavar="N", help="bits of all weights, 2 to 8 (default 8)")
    bits.add_argument(
        "--size-budget", metavar="SIZE", help="of all weights, such as 1.2MB or 0.5x of eight bits: bits layer by layer"
    )
    bits.add_argument(
        "--smallest-within",
        type=number,
        metavar="X",
        help="the smallest artifact that loses at most so much top-1, as a fraction: no size to guess",
    )
    bits.add_argument("--score", metavar="NAME", help="how a layer's bits are judged (default sqnr; docs/bits.md)")
    bits.add_argument("--propose", metavar="NAME", help="optimal (default), greedy, list, uniform or random")
    bits.add_argument("--walk", metavar="NAME", help="to the smallest: bisection (default), interpolation, brute-force")
    bits.add_argument("--formats", metavar="NAMES", help="what layers may have beside widths, such as w2h,w3k,e2m1")
    one = top.add_argument_group("without a search")
    one.add_argument("--config", metavar="LINE", help="build this one: scheme=asymmetric,clip=kl,precision=int8 …")
    one.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="make this artifact again from its record, and say whether it is equal",
    )
    one.add_argument(
        "--emit",
        choices=("linalg", "qdq", "integer", "vmfb"),
        metavar="STAGE",
        help="stop at linalg, qdq, integer or vmfb",
    )
    one.add_argument("--print-ir-after-all", action="store_true", help="the IR after each pass, on stderr")
    one.add_argument("--dump-ir-dir", type=Path, metavar="DIR", help="the IR after each pass, as files")
    top.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")
    top.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    return top


def _run(arguments: argparse.Namespace) -> int:
    from quantune.cli.console import Console

    console = Console(quiet=arguments.quiet)
    _check(arguments)
    if arguments.like is not None:
        return _rebuild(arguments, console)
    if _emits_text(arguments):
        return _emit(arguments, console)
    if arguments.config is not None or arguments.emit == "vmfb":
        return _build_one(arguments, console)
    return _search(arguments, console)


def _check(arguments: argparse.Namespace) -> None:
    """What argparse cannot say: which options need or exclude each other."""
    if arguments.like is not None:
        _check_like(arguments)
    if arguments.model is None and arguments.like is None:
        raise UsageError(
            "MODEL is missing: name what to compile, such as torchvision:resnet18 (--help lists the forms)"
        )
    searching = arguments.config is None and arguments.emit is None and arguments.like is None
    if searching:
        for name in ("calib", "eval"):
            if getattr(arguments, name) is None:
                raise UsageError(f"--{name} is missing: a search needs --calib and --eval (or give --config LINE)")
        for name in ("objective", "max_drop") if arguments.smallest_within is not None else ():
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is said by --smallest-within already; give one of them")
        if arguments.print_ir_after_all or arguments.dump_ir_dir:
            raise UsageError(
                "--print-ir-after-all and --dump-ir-dir need --config or --emit: a search runs the passes many times"
            )
        return
    given = [n for n in (*_SEARCH_ONLY, *_SEARCH_DEFAULTS) if getattr(arguments, n) is not None]
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} belongs to a search; leave out --config, --emit and --like, or it"
        )
    if arguments.dump_ir_dir is not None:
        places.folder(arguments.dump_ir_dir, "--dump-ir-dir")
    if arguments.output is not None and (_emits_text(arguments) or Path(arguments.output).suffix == ".vmfb"):
        places.file(arguments.output, "output")
    elif not _emits_text(arguments) and (arguments.like is None or arguments.output is not None):
        places.folder(arguments.output or _FOLDER, "output folder")


def _check_like(arguments: argparse.Namespace) -> None:
    """Refuse what an artifact's record says, and what making it again has no use for."""
    from quantune.compiler.targets import BACKENDS

    for name in ("config", "emit"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--like takes the configuration from the file's record; leave out --{name}, or it")
    target = {"target": "--target", **{f"target_{each.field}": each.option for each in BACKENDS.values()}}
    for name, option in {**target, "device": "--device"}.items():
        if getattr(arguments, name) is not None:
            raise UsageError(f"--like takes the target from the file's record; leave out {option}, or it")
    for name in ("memory_limit", "print_ir_after_all", "dump_ir_dir"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')} has no effect with --like; leave out one of them")


def _emits_text(arguments: argparse.Namespace) -> bool:
    """Whether the result is a stage of the network, and no artifact."""
    return arguments.emit in ("linalg", "qdq", "integer")


def _search(arguments: argparse.Namespace, console: Console) -> int:
    import optuna

    from quantune import api

    optuna.logging.disable_default_handler()  # it prints what `Notes` decides about
    optuna.logging.enable_propagation()
    folder = arguments.output or _FOLDER
    for name, default in _SEARCH_DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    with console.search(arguments.max_trials) as display:
        result = api.compile(
            arguments.model, calib=arguments.calib, eval=arguments.eval,
            target=_target(arguments), objective=arguments.objective,
            max_drop=arguments.max_drop, max_trials=arguments.max_trials, time_budget_s=arguments.time_budget,
            out=folder, space=arguments.space, sampler=arguments.sampler, seed=arguments.seed,
            threads=arguments.threads, options=_options(arguments), memory_limit=arguments.memory_limit,
            storage=arguments.storage,
            retry_failed=bool(arguments.retry_failed), early_stop=not arguments.no_early_stop,
            transfer=not arguments.no_transfer, device=arguments.device, evaluate_on=arguments.evaluate_on,
            weight_bits=arguments.weight_bits,
            size_budget=arguments.size_budget, smallest_within=arguments.smallest_within, score=arguments.score,
            propose=arguments.propose, walk=arguments.walk, formats=arguments.formats, progress=display.progress,
        )  # fmt: skip
    console.show(result, Path(folder))
    if result.tuning.interrupted:
        print("quantune-compile: interrupted; everything measured is kept, the same command resumes", file=sys.stderr)
        return interrupted()
    if not any(trial.score for trial in result.tuning.trials):
        last = next((trial.reason for trial in reversed(result.tuning.trials)), result.tuning.stopped)
        print(f"quantune-compile: no quantized artifact could be measured ({last}); once the cause is mended, "
              "the same command with --retry-failed tries again", file=sys.stderr)  # fmt: skip
        return FAILED
    return OK if result.feasible else INFEASIBLE


def _build_one(arguments: argparse.Namespace, console: Console) -> int:
    from quantune import api
    from quantune.quantization.config import QuantConfig

    config = QuantConfig.parse(arguments.config) if arguments.config is not None else QuantConfig()
    with console.stages() as progress:
        artifact = api.quantize(
            arguments.model, config, calib=_calibration(arguments, config.is_float), eval=arguments.eval,
            target=_target(arguments), device=arguments.device, options=_options(arguments),
            memory_limit=arguments.memory_limit, debugging=_debugging(arguments), progress=progress,
        )  # fmt: skip
    _save(artifact, arguments, console)
    return OK


def _save(artifact: Artifact, arguments: argparse.Namespace, console: Console) -> None:
    output = Path(arguments.output or _FOLDER)
    path = output if output.suffix == ".vmfb" else places.folder(output, "output folder") / "best.vmfb"
    with interrupts.held():
        artifact.save(path)
    console.show_artifact(artifact, path)


def _rebuild(arguments: argparse.Namespace, console: Console) -> int:
    from quantune.rebuilding import rebuild

    options = _options(arguments)
    with console.stages() as progress:
        made = rebuild(
            arguments.like, model=arguments.model, calib=arguments.calib, eval=arguments.eval,
            options=None if options == type(options)() else options, progress=progress,
        )  # fmt: skip
    if arguments.output is not None:
        _save(made.artifact, arguments, console)
    if made.differences:
        print(f"{arguments.like}: made again, but it differs in {', '.join(made.differences)}")
        return FAILED
    print(f"{arguments.like}: made again, the same byte for byte")
    return OK


def _emit(arguments: argparse.Namespace, console: Console) -> int:
    from quantune import api
    from quantune.compiler.pipelines import parse as parse_module
    from quantune.quantization.config import QuantConfig

    config = QuantConfig.parse(arguments.config) if arguments.config is not None else QuantConfig()
    if config.is_float and arguments.emit != "linalg":
        raise UsageError(f"--emit={arguments.emit} with {config}: nothing is quantized; use --emit=linalg")
    with console.stages() as progress:
        builder = api.make_builder(
            arguments.model, calib=_calibration(arguments, config.is_float or arguments.emit == "linalg"),
            target=_target(arguments), device=arguments.device, sizes=(config.calib,),
            eval=arguments.eval, options=_options(arguments), memory_limit=arguments.memory_limit,
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


def _target(arguments: argparse.Namespace) -> Target:
    from quantune.compiler.targets import parse

    return parse(arguments.target or "cpu", **_target_details(arguments))


def _target_details(arguments: argparse.Namespace) -> dict[str, str | None]:
    from quantune.compiler.targets import BACKENDS

    return {each.field: getattr(arguments, f"target_{each.field}") for each in BACKENDS.values()}


def _options(arguments: argparse.Namespace) -> ModelOptions:
    from quantune.api import ModelOptions

    return ModelOptions(arguments.weights, arguments.image_shape, arguments.batch, arguments.classes)


def _debugging(arguments: argparse.Namespace) -> Debugging:
    from quantune.compiler.pipelines import Debugging

    return Debugging(arguments.dump_ir_dir, arguments.print_ir_after_all, Path("quantune-failures"))


def _shape(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d{0,5},[1-9]\d{0,5},[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{text}': expected channels,height,width such as 3,224,224")
    c, h, w = map(int, text.split(","))
    return c, h, w


def _seconds(text: str) -> float:
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError(f"'{text}': expected a time such as 90s, 10m or 1h")
    return value


if __name__ == "__main__":
    entry.quantune_compile()
