"""MLIR text or bytecode from outside -> module, or one line that says why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .pipeline import first_diagnostic

if TYPE_CHECKING:
    from torch_mlir import ir


class NotMlir(Exception):
    """Text or bytes that are no MLIR; the message has the position, ``-:line:column: error: reason``."""


def parse(source: bytes, context: ir.Context | None = None) -> ir.Module:
    """Read a module into ``context``, or the current one; raises NotMlir.

    The parser may crash, hang or take all memory on bytes made for that: read what is foreign in a child process.
    """
    from torch_mlir import ir

    try:
        return ir.Module.parse(source, context=context)
    except ir.MLIRError as error:
        raise NotMlir(first_diagnostic(error)) from error
    except (ValueError, RuntimeError, TypeError) as error:  # such as a diagnostic that is no UTF-8
        raise NotMlir("error: no MLIR text or bytecode, nor is what MLIR says of it text") from error
