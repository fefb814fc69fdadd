"""Pipelines: text such as `quantune-insert-qdq,cse,quantune-lower-quant` that runs as one.

A pipeline mixes quantune's passes with the ones built into MLIR in one pass manager, so that verification, IR printing,
dumps and timing cover both. MLIR's own text parser cannot name passes written in Python; this file's can.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mlir_passes.base import Pass, PipelineError, PipelineFailure
from mlir_passes.registry import PASSES, load_pass, near_misses

if TYPE_CHECKING:
    from torch_mlir import ir

_LARGE_ELEMENTS = 16  # constants with more elements are elided in printed and dumped IR
_OPEN, _CLOSE = "({[", ")}]"
_POSITION = re.compile(r'"((?:[^"\\]|\\.)*)":(\d+):(\d+)')


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes: quantune's as objects, MLIR's own as their text."""

    elements: tuple[Pass | str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `a,b{option=1},func.func(c)`, with or without `builtin.module(...)` around; raises `PipelineError`."""
        elements = list(_split(text))
        if len(elements) == 1 and elements[0].startswith("builtin.module("):
            elements = list(_split(elements[0].removeprefix("builtin.module(").removesuffix(")")))
        return cls(tuple(_parse_element(element) for element in elements))

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        return ",".join(str(element) for element in self.elements)

    def run(
        self,
        module: ir.Module | ir.Operation,
        *,
        print_ir_after_all: bool = False,
        dump_dir: str | Path | None = None,
        reproducer_dir: str | Path | None = None,
        timing: bool = False,
    ) -> None:
        """Rewrite `module` in place; raises `PipelineFailure` when a pass rejects it (the module is then half done).

        `print_ir_after_all` prints to stderr; `dump_dir` receives a tree of files, one a pass; `reproducer_dir`
        receives, on failure only, the module as it was before the pipeline, under the command that fails on it.
        """
        from torch_mlir import ir
        from torch_mlir.passmanager import PassManager

        root = module.operation
        rejected_by: list[str] = []
        # A clone shares all attributes, so that remembering the input costs no copy of the weights.
        before = root.clone() if reproducer_dir is not None else None
        with root.context as context:
            manager = PassManager("builtin.module")
            for element in self.elements:
                if isinstance(element, Pass):
                    element.add_to(manager, rejected_by)
                else:
                    manager.add(element)
            if print_ir_after_all or dump_dir is not None:
                context.enable_multithreading(False)
            if print_ir_after_all:
                manager.enable_ir_printing(large_elements_limit=_LARGE_ELEMENTS)
            if dump_dir is not None:
                manager.enable_ir_printing(large_elements_limit=_LARGE_ELEMENTS, tree_printing_dir_path=str(dump_dir))
            if timing:
                manager.enable_timing()
            try:
                manager.run(root)
            except ir.MLIRError as error:
                notes = [f"pass {rejected_by[0]}"] if rejected_by else []
                if before is not None and reproducer_dir is not None:
                    notes.append(self._kept(before, Path(reproducer_dir)))
                message = first_diagnostic(error)
                raise PipelineFailure(f"{message} ({'; '.join(notes)})" if notes else message) from error

    def _kept(self, module: ir.Operation, directory: Path) -> str:
        """Write the reproducer; where it is, or why it is nowhere."""
        try:
            return f"reproducer: {self._write_reproducer(module, directory)}"
        except OSError as error:
            return f"what reproduces it cannot be kept in {directory}: {error.strerror or error}"

    def _write_reproducer(self, module: ir.Operation, directory: Path) -> Path:
        command = f"// RUN-ME: quantune-opt --pass-pipeline={shlex.quote(str(self))} %s"
        text = f"{command}\n{module}\n"
        path = directory / f"reproducer-{hashlib.sha256(text.encode()).hexdigest()[:12]}.mlir"
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


def first_diagnostic(error: ir.MLIRError) -> str:
    """The first message of an MLIR error as one line, `file:line:column: error: text`."""
    if not error.error_diagnostics:
        return " ".join(str(error).split())
    diagnostic = error.error_diagnostics[0]
    message = diagnostic.message.splitlines()[0]
    position = _POSITION.search(str(diagnostic.location))
    if position is None:
        name = str(diagnostic.location).removeprefix("loc(").removesuffix(")").strip('"')
        return f"error: {message}" if name == "unknown" else f"{name}: error: {message}"
    path, line, column = position.groups()
    return f"{path}:{line}:{column}: error: {message}"


def _split(text: str) -> Iterator[str]:
    """The elements between top-level commas; brackets and double-quoted strings keep theirs."""
    depth, start, quoted, escaped = 0, 0, False, False
    for position, character in enumerate(text):
        if escaped:
            escaped = False
        elif quoted:
            escaped = character == "\\"
            quoted = character != '"'
        elif character == '"':
            quoted = True
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth < 0:
                raise PipelineError(f"pipeline has an unmatched '{character}' at column {position + 1}: {text}")
        elif character == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    if depth or quoted:
        raise PipelineError(f"pipeline ends inside {'a string' if quoted else 'brackets'}: {text}")
    if text.strip():
        yield text[start:].strip()


def _parse_element(text: str) -> Pass | str:
    name, brace, options = text.partition("{")
    if not text:
        raise PipelineError("pipeline has an empty element: two commas in a row, or one at its end")
    if not name.startswith("quantune-"):
        _check_native(text)
        return text
    if brace and not options.endswith("}"):
        raise PipelineError(f"expected '}}' at the end of '{text}'")
    return load_pass(name.strip()).parse(options.removesuffix("}"))


@functools.cache
def _check_native(text: str) -> None:
    """Raise `PipelineError` unless MLIR knows every pass in `text`."""
    from torch_mlir import ir
    from torch_mlir.passmanager import PassManager

    nested = next((name for name in PASSES if re.search(rf"(?<![\w-]){name}(?![\w-])", text)), None)
    if nested is not None:
        raise PipelineError(
            f"pass '{nested}' rewrites a whole module: write it outside '{text.partition('(')[0]}(...)'"
        )
    try:
        with ir.Context():
            PassManager("builtin.module").add(text)
    except ValueError as error:
        raise PipelineError(_native_error(text, str(error))) from error


def _native_error(text: str, error: str) -> str:
    unknown = re.search(r"'([^']*)' does not refer to a registered pass", error)
    if unknown is not None:
        return f"unknown pass '{unknown.group(1)}'{near_misses(unknown.group(1))}"
    reason = error.strip().splitlines()[0].rpartition("error: ")[2]
    return f"bad pipeline element '{text}': {reason}"
