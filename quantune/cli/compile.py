"""quantune-compile: a model, images and a target in; the best quantized artifact that keeps the accuracy budget out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quantune.cli import entry
from quantune.cli.compile_options import parser
from quantune.cli.entry import interrupted, run
from quantune.cli.single import (
    FAILED,
    FILES,
    FOLDER,
    OK,
    build_local,
    build_one,
    check_export,
    emit,
    make_again,
    options,
    target,
)  # fmt: skip
from quantune.errors import UsageError
from quantune.process import places

if TYPE_CHECKING:
    from quantune.cli.console import Console
    from quantune.cli.streams import Notes

INFEASIBLE = 3
_SEARCH_ONLY = (
    "max_trials", "time_budget", "storage", "evaluate_on", "retry_failed", "weight_bits", "size_budget",
    "smallest_within", "score", "propose", "walk", "formats", "space", "metric", "max_drop", "max_relative_drop",
    "no_transfer", "no_early_stop",
)  # fmt: skip
_SEARCH_DEFAULTS = {
    "objective": "accuracy", "sampler": "xgboost", "seed": 0, "threads": 1,
}  # fmt: skip
"""What a search takes where an option is not given; without a search such an option is refused like the others."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``quantune-compile``; returns the exit code."""
    return run("quantune-compile", command, argv)


def command(argv: list[str] | None, notes: Notes) -> int:
    """What the command does; its errors are told by `quantune.cli.entry`."""
    arguments = parser().read(argv)
    if arguments.verbose:
        notes.verbose()
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from quantune.cli.console import Console

    console = Console(quiet=arguments.quiet)
    _check(arguments)
    if arguments.like is not None:
        return make_again(arguments, console)
    if arguments.mode == "local":
        return build_local(arguments, console)
    if _emits_text(arguments):
        return emit(arguments, console)
    if arguments.config is not None or arguments.emit == "vmfb":
        return build_one(arguments, console)
    return _search(arguments, console)


def _check(arguments: argparse.Namespace) -> None:
    """What argparse cannot say: which options need or exclude each other."""
    if arguments.like is not None:
        _check_like(arguments)
    if arguments.model is None and arguments.like is None:
        raise UsageError(
            "MODEL is missing: name what to compile, such as torchvision:resnet18 (--help lists the forms)"
        )
    _check_mode(arguments)
    check_export(arguments)
    local = arguments.mode == "local"
    searching = arguments.config is None and arguments.emit is None and arguments.like is None and not local
    if searching:
        for name in ("calib", "eval"):
            if getattr(arguments, name) is None:
                raise UsageError(f"--{name} is missing: a search needs --calib and --eval (or give --config LINE)")
        for name in ("objective", "max_drop", "max_relative_drop") if arguments.smallest_within is not None else ():
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is said by --smallest-within already; give one of them")
        if arguments.print_ir_after_all or arguments.dump_ir_dir:
            raise UsageError(
                "--print-ir-after-all and --dump-ir-dir need --config or --emit: a search runs the passes many times"
            )
        return
    given = [n for n in (*_SEARCH_ONLY, *_SEARCH_DEFAULTS) if getattr(arguments, n) is not None]
    if given:
        without = "--mode local" if local else "--config, --emit and --like"
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to a search; leave out {without}, or it")
    if arguments.dump_ir_dir is not None:
        places.folder(arguments.dump_ir_dir, "--dump-ir-dir")
    if arguments.output is not None and (_emits_text(arguments) or Path(arguments.output).suffix in FILES):
        places.file(arguments.output, "output")
    elif not _emits_text(arguments) and (arguments.like is None or arguments.output is not None):
        places.folder(arguments.output or FOLDER, "output folder")


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


def _check_mode(arguments: argparse.Namespace) -> None:
    """What --mode and its options need and exclude."""
    if arguments.mode not in (None, "search", "local"):
        raise UsageError(f"--mode '{arguments.mode}': expected search or local")
    if arguments.mode != "local":
        for name in ("target_sqnr", "max_slowdown"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} belongs to --mode local; give that too, or leave it out")
        return
    for name in ("emit", "export", "like", "device", "dump_ir_dir", "print_ir_after_all"):
        if getattr(arguments, name) not in (None, False):
            option = name.replace("_", "-")
            raise UsageError(f"--mode local builds an artifact for this machine; leave out --{option}, or it")
    if arguments.eval is not None:
        raise UsageError("--mode local evaluates nothing; leave out --eval, or it")
    if arguments.calib is None:
        raise UsageError("--calib is missing: --mode local compares the network with itself on calibration images")


def _emits_text(arguments: argparse.Namespace) -> bool:
    """Whether the result is a stage of the network, and no artifact."""
    return arguments.emit in ("linalg", "qdq", "integer")


def _search(arguments: argparse.Namespace, console: Console) -> int:
    import optuna

    from quantune import api
    from quantune.metrics import DEFAULT
    from quantune.metrics import parse as parse_metric

    optuna.logging.disable_default_handler()  # it prints what `Notes` decides about
    optuna.logging.enable_propagation()
    folder = arguments.output or FOLDER
    for name, default in _SEARCH_DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    metric = arguments.metric or DEFAULT
    drop = ... if arguments.max_drop is None else arguments.max_drop
    with console.search(arguments.max_trials, parse_metric(metric)) as display:
        result = api.compile(
            arguments.model, calib=arguments.calib, eval=arguments.eval,
            target=target(arguments), objective=arguments.objective, metric=metric,
            max_drop=drop, max_relative_drop=arguments.max_relative_drop,
            max_trials=arguments.max_trials, time_budget_s=arguments.time_budget,
            out=folder, space=arguments.space, sampler=arguments.sampler, seed=arguments.seed,
            threads=arguments.threads, options=options(arguments), memory_limit=arguments.memory_limit,
            storage=arguments.storage,
            retry_failed=bool(arguments.retry_failed), early_stop=not arguments.no_early_stop,
            transfer=not arguments.no_transfer, device=arguments.device, evaluate_on=arguments.evaluate_on,
            export=arguments.export, weight_bits=arguments.weight_bits,
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


if __name__ == "__main__":
    entry.quantune_compile()
