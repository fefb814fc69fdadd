"""quantune-opt: run passes over a .mlir file and print the result, as mlir-opt does for the passes built into MLIR."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mlir_passes import PASSES, Pass, Pipeline, PipelineError, PipelineFailure, load_pass
from mlir_passes.base import option_fields
from mlir_passes.reading import NotMlir, parse
from quantune.cli.arguments import OneLineParser, count, version_line
from quantune.cli.entry import quantune_opt, run
from quantune.cli.streams import Notes, one_line
from quantune.errors import PassFailed, QuantuneError, UsageError
from quantune.process import guard, places

_SPLIT = re.compile(r"^// -----.*\n", re.MULTILINE)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code: 0, 1 when a pass rejected the input, 2 when the request is wrong."""
    return run("quantune-opt", command, argv)


def command(argv: list[str] | None, notes: Notes) -> int:
    """What the command does; its errors are told by `quantune.cli.entry`."""
    arguments = _parser().read(argv)
    if arguments.list_passes:
        print(_list_passes(markdown=arguments.markdown))
        return 0
    return _transform(arguments)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="quantune-opt", description=__doc__)
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument("input", nargs="?", default="-", help="a .mlir or .mlirbc file; - (the default) reads stdin")
    parser.add_argument("--pass-pipeline", default="", metavar="PASSES", help="for example 'quantune-lower-quant,cse'")
    parser.add_argument("--split-input-file", action="store_true", help="treat parts between '// -----' lines apart")
    parser.add_argument(
        "--allow-unregistered-dialect", action="store_true", help="accept operations MLIR does not know"
    )
    parser.add_argument("--print-ir-after-all", action="store_true", help="print the module after each pass to stderr")
    parser.add_argument("--dump-ir-dir", metavar="DIR", help="write the module after each pass into files under DIR")
    parser.add_argument("--timing", action="store_true", help="print the time of each pass to stderr")
    parser.add_argument("--elide", type=count, metavar="N", help="print constants with more than N elements as '...'")
    parser.add_argument("--list-passes", action="store_true", help="list quantune's passes and their options, and stop")
    parser.add_argument("--markdown", action="store_true", help="with --list-passes: the reference, as markdown")
    return parser


def _transform(arguments: argparse.Namespace) -> int:
    from torch_mlir import ir

    try:
        pipeline = Pipeline.parse(arguments.pass_pipeline)
    except PipelineError as error:
        raise UsageError(f"--pass-pipeline: {error}") from error
    if arguments.elide is not None and arguments.elide < 0:
        raise UsageError(f"--elide {arguments.elide}: expected 0 or more")
    if arguments.dump_ir_dir is not None:  # MLIR prints a warning for a folder it cannot make, and goes on
        places.folder(arguments.dump_ir_dir, "--dump-ir-dir")
    exit_code = 0
    for index, source in enumerate(_sources(arguments.input, split=arguments.split_input_file)):
        if index:
            print("// -----")
        with ir.Context() as context, ir.Location.unknown():
            context.allow_unregistered_dialects = arguments.allow_unregistered_dialect
            try:
                print(_run(pipeline, source, arguments))
            except QuantuneError as error:
                if os.environ.get("QUANTUNE_DEBUG"):
                    raise
                # The message starts with its own file, line and "error:"; the other parts of the file go on.
                print(one_line(_with_file_name(str(error), arguments.input)), file=sys.stderr)
                exit_code = max(exit_code, error.exit_code)
    return exit_code


def _run(pipeline: Pipeline, source: bytes, arguments: argparse.Namespace) -> str:
    where = f"'{one_line(arguments.input)}'"
    try:
        with guard.reading(where, len(source)):
            module = parse(source)
    except NotMlir as error:
        raise UsageError(str(error)) from error
    except MemoryError as error:
        raise UsageError(f"{where} takes too much memory to read") from error
    try:
        with guard.working(f"the passes on {where}"):
            pipeline.run(
                module,
                print_ir_after_all=arguments.print_ir_after_all,
                dump_dir=arguments.dump_ir_dir,
                timing=arguments.timing,
            )
    except PipelineFailure as error:
        raise PassFailed(str(error)) from error
    with guard.working(f"printing {where}"):
        return module.operation.get_asm(large_elements_limit=arguments.elide).rstrip()


def _sources(path: str, *, split: bool) -> Iterator[bytes]:
    """The input's parts, each with blank lines in front so that its line numbers are the file's."""
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read '{path}': {error.strerror or error}; give a .mlir file, or - for stdin"
        ) from error
    if not split:
        yield content
        return
    try:
        text, start = content.decode(), 0
    except UnicodeDecodeError as error:
        raise UsageError(f"--split-input-file: '{path}' is not text; leave the option out for bytecode") from error
    for end in [*(match.end() for match in _SPLIT.finditer(text)), len(text)]:
        yield (b"\n" * text.count("\n", 0, start)) + text[start:end].encode()
        start = end


def _with_file_name(message: str, path: str) -> str:
    """MLIR calls text it parses `-`, or nothing."""
    if message.startswith("error: "):
        return f"{path}: {message}"
    return f"{path}{message.removeprefix('-')}" if message.startswith("-:") else message


def _list_passes(*, markdown: bool) -> str:
    passes = [load_pass(name) for name in PASSES]
    if markdown:
        return "\n\n".join(["# Passes", *(_markdown(each) for each in passes)])
    return "\n".join(f"{_usage(each)}\n    {_summary(each)}" for each in passes)


def _usage(pass_class: type[Pass]) -> str:
    options = []
    for field, hint in option_fields(pass_class):
        kind = hint.__name__ if hint in (int, float, str, bool) else "int,int,…"
        options.append(f"{field.name.replace('_', '-')}=<{kind}>")
    return f"{pass_class.name}{{{' '.join(options)}}}" if options else pass_class.name


def _summary(pass_class: type[Pass]) -> str:
    return (inspect.getdoc(pass_class) or "").partition("\n")[0]


def _markdown(pass_class: type[Pass]) -> str:
    lines = [f"## `{pass_class.name}`", "", inspect.getdoc(pass_class) or ""]
    options = option_fields(pass_class)
    if options:
        lines += ["", "| option | type | default |", "|---|---|---|"]
    for field, hint in options:
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default}`"
        kind = hint.__name__ if hint in (int, float, str, bool) else "integers"
        lines.append(f"| `{field.name.replace('_', '-')}` | {kind} | {default} |")
    lines += ["", "```text", (sys.modules[pass_class.__module__].__doc__ or "").strip(), "```"]
    return "\n".join(lines)


if __name__ == "__main__":
    quantune_opt()
