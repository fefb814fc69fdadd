"""What every rewrite is: a frozen dataclass whose fields are its options, and the errors it may end with.

Importing this file does not import the MLIR bindings, so that a pipeline's text can be read and checked cheaply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

if TYPE_CHECKING:
    from torch_mlir import ir
    from torch_mlir.passmanager import PassManager

_PLAIN_VALUE = re.compile(r"[\w.+\-/:@%*<>]+")
_OPTION = re.compile(r'\s*([\w-]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)')


class PipelineError(ValueError):
    """A pipeline's text is wrong: an unknown pass, an unknown option, a value that does not parse."""


class PipelineFailure(Exception):
    """A pass rejected the module; the message is its first diagnostic and, where written, the reproducer."""


class PassFailure(Exception):
    """A pass cannot do its work on `op`; becomes the diagnostic `'linalg.matmul' op <message>` at the op's location."""

    def __init__(self, op: ir.Operation, message: str) -> None:
        super().__init__(message)
        self.op = op.operation


@dataclass(frozen=True)
class Missed:
    """Why something is left as it is, for people: "its weights are not constant"."""

    reason: str


@dataclass(frozen=True)
class Pass:
    """A rewrite of a whole module; a subclass's fields are its options (int, float, str, bool, tuple[int, ...])."""

    name: ClassVar[str]

    def run(self, module: ir.Operation) -> None:
        """Rewrite `module` (a `builtin.module`) in place, or raise `PassFailure`."""
        raise NotImplementedError

    @classmethod
    def parse(cls, options: str) -> Self:
        """The pass with the options of `opt=1 other-opt=x`; raises `PipelineError`."""
        kinds = {f.name: (f, hint) for f, hint in option_fields(cls)}
        values: dict[str, Any] = {}
        for key, text in _split_options(cls.name, options):
            if key.replace("-", "_") not in kinds:
                known = ", ".join(name.replace("_", "-") for name in kinds) or "none"
                raise PipelineError(f"pass '{cls.name}' has no option '{key}'; its options: {known}")
            field, hint = kinds[key.replace("-", "_")]
            if field.name in values:
                raise PipelineError(f"pass '{cls.name}' has option '{key}' twice")
            values[field.name] = _parse_value(cls.name, key, hint, text)
        for field, _ in kinds.values():
            if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
                raise PipelineError(f"pass '{cls.name}' needs option '{field.name.replace('_', '-')}'")
        try:
            return cls(**values)
        except ValueError as error:
            raise PipelineError(f"pass '{cls.name}': {error}") from error

    def __str__(self) -> str:
        """The text that `Pipeline.parse` reads back: the name, and in braces the options that are not the default."""
        options = []
        for field, _ in option_fields(type(self)):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                options.append(f"{field.name.replace('_', '-')}={_print_value(value)}")
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name

    def add_to(self, manager: PassManager, rejected_by: list[str] | None = None) -> None:
        """Append this pass to an MLIR pass manager anchored at `builtin.module`.

        `rejected_by` receives the pass's name when it fails: MLIR's own error does not say which pass it was.
        """

        def run(module: ir.Operation, external: Any) -> None:
            try:
                self.run(module)
            except PassFailure as failure:
                if rejected_by is not None:
                    rejected_by.append(self.name)
                failure.op.location.emit_error(f"'{failure.op.name}' op {failure}")
                external.signal_pass_failure()

        manager.add(run, name=type(self).__name__, argument=self.name)


def option_fields(pass_class: type[Pass]) -> list[tuple[Field[Any], Any]]:
    """The options of a pass: its dataclass fields with their resolved types, in order."""
    hints = get_type_hints(pass_class)
    return [(field, hints[field.name]) for field in fields(pass_class)]


def _split_options(pass_name: str, options: str) -> Iterator[tuple[str, str]]:
    position = 0
    while options[position:].strip():
        match = _OPTION.match(options, position)
        if match is None:
            raise PipelineError(f"pass '{pass_name}': expected option=value at '{options[position:].strip()}'")
        yield match.group(1), match.group(2)
        position = match.end()


def _parse_value(pass_name: str, key: str, kind: Any, text: str) -> Any:
    try:
        value = json.loads(text) if text.startswith('"') else text
        if kind is str:
            return value
        if kind is bool:
            return {"true": True, "false": False}[value]
        if kind is int or kind is float:
            return kind(value)
        if kind == tuple[int, ...]:
            return tuple(int(item) for item in value.split(",")) if value else ()
    except (KeyError, ValueError) as error:
        expected = {bool: "true or false", int: "an integer", float: "a number"}.get(kind, "integers such as 1,2,3")
        raise PipelineError(f"pass '{pass_name}': option '{key}' is '{text}', expected {expected}") from error
    raise TypeError(f"pass '{pass_name}': option '{key}' has a type that options do not support: {kind}")


def _print_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    text = str(value)
    return text if not isinstance(value, str) or _PLAIN_VALUE.fullmatch(text) else json.dumps(text)
